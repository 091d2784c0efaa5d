"""Notebooks run from top to bottom; a minute or two, as newcomers see them."""

import contextlib
import importlib.metadata
import re
import shutil
import subprocess
import tempfile

import nbformat
import pytest
from house import loaded

notebooks = loaded("notebooks")
NOTEBOOKS = notebooks.NOTEBOOKS
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


def read(name):
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def shown(notebook):
    """What a notebook has printed, and how many pictures it has drawn."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    return said, sum("image/png" in output.get("data", {}) for output in outputs)


def run(name, monkeypatch, fewer=()):
    """What a notebook shows when it is run, with ``fewer`` steps: pairs of a text and what stands there instead."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # mostly compilation otherwise
    notebook = read(name)
    for many, few in fewer:
        (cell,) = (cell for cell in notebook.cells if many in cell.source)
        cell.source = cell.source.replace(many, few)
    notebooks.run(notebook, timeout=240)
    return shown(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_of_a_notebook_is_small_and_of_one_run_from_the_top(name):
    stored = (NOTEBOOKS / name).read_text()
    assert len(stored) < 300_000
    assert not re.search(r"/(home|root|Users|tmp|work)/", stored)
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts in ([None] * len(code), list(range(1, len(code) + 1)))
    kinds = {(output.output_type, output.get("name")) for cell in code for output in cell.outputs}
    assert kinds <= {("stream", "stdout"), ("display_data", None)}
    assert not any(cell.outputs for cell in code) or counts[0] == 1


def test_notebooks_install_what_they_need_in_the_same_way_and_the_readme_lists_them():
    first = [next(cell.source for cell in read(name).cells if cell.cell_type == "code") for name in NAMES]
    assert len({re.sub(r"EXTRAS, BESIDE = .*", "", source) for source in first}) == 1
    beside = re.search(r'"(flax>.*?)"', "".join(first))[
        1
    ]  # an older one, as Colab has, cannot be imported with our jax
    assert f'"{beside}",' in (NOTEBOOKS.parent / "pyproject.toml").read_text()
    readme = (NOTEBOOKS.parent / "README.md").read_text()
    assert [name for name in NAMES if f"notebooks/{name}" not in readme] == []


def first_cell(monkeypatch, origin, name=NAMES[0], before=lambda package: None, ends=None, loaded=None):
    """Runs it with ``origin`` as the repository: what pip would get and the clone, or None if it asks pip for nothing.

    Args:
      before: version of a package that is there before, or None. All are there when pip has run, unless ``ends`` says
        that they are not.
      ends: what the cell ends with.
      loaded: packages of a module that is loaded.
    """
    works = ends is None or not ends.startswith("not installed")
    installed, real = [], importlib.metadata.version

    def version(package):
        found = real(package) if works and installed else before(package)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    source = next(cell.source for cell in read(name).cells if cell.cell_type == "code")
    source = source.replace('REPOSITORY = ""', f"REPOSITORY = {str(origin)!r}")  # a folder: pip takes no such address
    source = source.replace('Path("/dev"', f'Path("{origin.parent}/dev"')
    source = source.replace("%pip install --quiet {packages}", "installed.append((packages, checkout))")
    elsewhere = origin.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(tempfile, "tempdir", str(origin.parent))
    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"re": loaded or []})
    with pytest.raises(SystemExit, match=re.escape(ends)) if ends else contextlib.nullcontext():
        exec(source, {"installed": installed})  # noqa: S102
    return installed[0] if installed else None


@pytest.fixture
def origin(tmp_path):
    """A repository of git that looks like ours."""
    origin = tmp_path / "origin"
    (origin / "gems_jax").mkdir(parents=True)
    (origin / "gems_jax/version.py").touch()
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a commit -qm a"):
        subprocess.run(["git", *words.split()], cwd=origin, check=True)
    return origin


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@needs_git
@pytest.mark.parametrize("ends", [None, "not installed: gems-jax;"])
def test_the_first_cell_installs_a_clone_of_whatever_address_git_takes_or_says_what_is_missing(
    origin, monkeypatch, ends
):
    _, checkout = first_cell(monkeypatch, origin, ends=ends)
    assert (checkout / "gems_jax/version.py").is_file()


@needs_git
@pytest.mark.parametrize(
    ("device", "extra"),
    [(None, None), ("nvidia0", "cuda12"), ("dxg", "cuda12"), ("accel0", "tpu"), ("vfio/0", "tpu"), ("vfio/vfio", None)],
)
def test_the_first_cell_installs_jax_for_the_gpu_or_tpu_that_the_machine_has(origin, monkeypatch, device, extra):
    if device:
        path = origin.parent / "dev" / device
        path.parent.mkdir(parents=True)
        path.touch()
    packages, _ = first_cell(monkeypatch, origin)
    extras = re.match(r'"gems-jax\[(.*)\] @ ', packages)[1].split(",")
    assert [extra for extra in extras if extra != "train"] == ([extra] if extra else [])


@needs_git
@pytest.mark.parametrize(
    ("name", "old", "asks"),
    [
        ("your_own_loop.ipynb", {}, False),
        ("your_own_loop.ipynb", {"flax": "0.11.2"}, True),
        ("your_own_loop.ipynb", {"jax": "0.7.2"}, True),
        ("your_own_loop.ipynb", {"transformers": None}, False),
        ("quickstart.ipynb", {"flax": "0.11.2"}, True),
        ("quickstart.ipynb", {"transformers": None}, True),
    ],
)
def test_the_first_cell_replaces_versions_that_do_not_do_and_asks_for_nothing_else(
    origin, monkeypatch, name, old, asks
):
    real = importlib.metadata.version
    asked = first_cell(monkeypatch, origin, name, lambda package: old.get(package, real(package)))
    assert (asked is not None) == asks
    assert not asks or "flax>=0.12.8,<0.13" in asked[0] or "[train]" in asked[0]


@needs_git
def test_the_first_cell_asks_for_a_new_kernel_where_a_package_that_is_loaded_was_replaced(origin, monkeypatch):
    real, old = importlib.metadata.version, {"flax": "0.11.2"}
    first_cell(
        monkeypatch,
        origin,
        before=lambda package: old.get(package, real(package)),
        loaded=["flax", "jax"],
        ends="it has an older flax loaded",
    )


def check_quickstart(said, pictures):
    assert pictures == 2
    assert said.count("would take") == 3
    assert said.count("searches for '") == 3


def test_the_quickstart_runs_from_the_top(monkeypatch):
    """Half a minute, for two programs of training: what newcomers run first."""
    fewer = [
        ("num_users=400", "num_users=100"),
        ("steps=200", "steps=2"),
        ("steps=400, batch_size=48", "steps=3, batch_size=8"),
    ]
    said, pictures = run("quickstart.ipynb", monkeypatch, fewer)
    check_quickstart(said, pictures)
    assert all(f"{task}: target among the first 10 of 100" in said for task in ("rec", "src"))


def test_the_quickstart_as_stored_recommends_items_by_title():
    said, pictures = shown(read("quickstart.ipynb"))
    check_quickstart(said, pictures)
    for task in ("rec", "src"):
        line = next(line for line in said.splitlines() if line.startswith(f"{task}: target among the first 10"))
        ours, popular = (float(part.split()[-1]) for part in line.split(","))
        assert ours > popular + 0.1


def test_the_transform_in_a_loop_of_one_s_own_takes_few_lines_and_keeps_its_bound(monkeypatch):
    """Its cells check the bound, forgetting beside AdamW and projected updates beside whole ones; a minute, since the
    notebook is what people run first and nothing else runs it."""
    said, pictures = run("your_own_loop.ipynb", monkeypatch)
    assert pictures == 2
    new, gone = map(int, re.search(r"(\d+) lines are new, (\d+) go", said).groups())
    assert 0 < new <= 10
    assert new + gone <= 20
    assert float(re.search(r"largest leak of 120 updates: (\S+)", said).group(1)) <= 1e-5
    assert re.search(r"second/kernel +\[128, 128\] +projected", said)


def test_protecting_more_of_a_model_leaves_less_room_and_forgets_less(monkeypatch):
    """Most of its time goes into four programs, one for each null space; no other test tunes one model in several."""
    default = '    "energy .85, share .35 (default)": {"energy": 0.85, "min_share": 0.35},\n'
    said, pictures = run("null_space.ipynb", monkeypatch, [(default, "")])
    assert pictures == 2
    lines = re.findall(r"^(energy \S+|nothing protected) +(\S+) +(\S+) +([+-]\S+) +\S+$", said, re.MULTILINE)
    room, forgotten = ({name: float(line[column]) for name, *line in lines} for column in (0, 2))
    assert 1 == room["nothing protected"] > room["energy .5"] > room["energy .85"] > room["energy .99"] > 0
    assert forgotten["nothing protected"] > forgotten["energy .5"] > forgotten["energy .99"]
