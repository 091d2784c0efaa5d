"""What is built for a registry: one version everywhere, a wheel whose core needs jax and optax alone."""

import email
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from ends import ranges

import gems_jax as gj

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IN_A_WHEEL = ("gems_jax", "pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in")
# Finds no package but jax, optax and what these need; jax itself looks for others where it can do without.
CORE_ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"flax", "orbax", "transformers", "yaml", "tqdm", "matplotlib", "pyarrow"}:
            raise ModuleNotFoundError(f"{name} is not in the core", name=name)

sys.path.insert(0, sys.argv[1])
sys.meta_path.insert(0, Absent())
import jax.numpy as jnp, optax
import gems_jax as gj

assert gj.__file__.startswith(sys.argv[1]), gj.__file__
tx = gj.gems(1e-2, num_tasks=2, rank=2)
params = {"kernel": jnp.ones((4, 3))}
state = tx.init(params)
print(gj.__version__, gj.state_bytes(tx, params).total > 0, callable(gj.estimate_null_space))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, by the setuptools that is here: nothing is fetched, nothing is left in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in IN_A_WHEEL:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, out], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert citation["version"] == newest == gj.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"


def test_the_wheel_has_the_package_its_types_and_its_licence_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"gems_jax/py.typed", "gems_jax/cli.py", "gems_jax/transform/gems.py"} <= set(names)
    written = {f"gems_jax/{path.relative_to(ROOT / 'gems_jax')}" for path in (ROOT / "gems_jax").rglob("*.py")}
    assert written <= set(names)
    assert {name.split("/")[0] for name in names} == {"gems_jax", f"gems_jax-{gj.__version__}.dist-info"}
    text = zipfile.ZipFile(wheel).read(f"gems_jax-{gj.__version__}.dist-info/METADATA").decode()
    said = email.message_from_string(text)
    assert (said["License-Expression"], said["License-File"]) == ("Apache-2.0", "LICENSE")
    assert said["Requires-Python"] == PROJECT["requires-python"]
    needed = [name for name in said.get_all("Requires-Dist") if "extra ==" not in name]
    assert [re.match(r"\w+", name).group() for name in needed] == ["jax", "optax"]


def test_the_core_of_the_wheel_works_with_jax_and_optax_alone(wheel, tmp_path):
    done = subprocess.run([sys.executable, "-I", "-c", CORE_ALONE, wheel], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [gj.__version__, "True", "True"], done.stderr


def test_extras_for_accelerators_are_extras_of_jax():
    offered = set(metadata("jax").get_all("Provides-Extra"))
    for name in ("cuda12", "cuda13", "tpu"):
        assert PROJECT["optional-dependencies"][name] == [f"jax[{name}]"]
        assert name in offered


def test_hooks_before_a_commit_run_the_versions_that_the_tests_run():
    pinned = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in hooks:
        for name, _, version in (package.partition("==") for package in hook.get("additional_dependencies", [])):
            assert version == pinned[name]


def test_what_is_done_for_every_change_is_done_by_targets_of_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = []
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            commands += [step["run"] for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        called = re.fullmatch(r"make ([\w-]+)( \w+=\S+)*", command.strip())
        assert called, command
        assert called.group(1) in targets


def test_the_page_of_the_installation_states_the_ranges_as_they_are():
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs/install.md").read_text(), re.MULTILINE)
    assert {name: (low, high) for name, low, high in rows} == ranges()
