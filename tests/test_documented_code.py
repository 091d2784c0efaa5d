"""The Python of README.md and of pages in docs/ runs as it stands, block after block."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tiny import gems_jax, read

ROOT = Path(__file__).parent.parent


def run(path):
    """Names that the page's programs define."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
    assert blocks
    defined = {"__name__": "page"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{path}, block {number + 1}", "exec"), defined)  # noqa: S102
    return defined


def first_update(tx, params):
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), (2, *p.shape)), params)
    return jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(grads, params)


def test_the_readme_takes_a_step_inside_the_null_space():
    defined = run("README.md")
    leaks = defined["gj"].null_space_leak(defined["updates"], defined["null_space"])
    assert leaks.keys() == {"dense"}
    assert leaks["dense"] <= 1e-5
    assert float(jnp.linalg.norm(defined["updates"]["dense"])) > 0


def test_every_script_of_the_benchmarks_finds_what_it_imports_when_a_file_of_it_is_run():
    """In one process, with what Python puts on its path for a script: the script's folder, not the checkout."""
    program = """if True:
        import runpy, sys
        scripts, installed = sys.argv[1:], [folder for folder in sys.path if folder]
        for script in scripts:
            for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "planning")]:
                del sys.modules[name]
            sys.path[:] = [script.rpartition("/")[0], *installed]
            runpy.run_path(script)
    """
    scripts = sorted(map(str, (ROOT / "benchmarks").glob("*.py")))
    assert len(scripts) > 15
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program, *scripts], env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_overview_tunes_attention_of_flax_inside_the_null_space(capsys):
    defined = run("docs/overview.md")
    assert len(defined["null_space"].inputs) == 5
    leaks = defined["gj"].null_space_leak(defined["updates"], defined["null_space"])
    assert len(leaks) == 5
    assert all(leak <= 1e-5 for leak in leaks.values())
    assert "attention/query/kernel" in capsys.readouterr().out


def test_the_programs_of_the_optimiser_s_page_run_and_do_what_it_says():
    defined = run("docs/optimiser.md")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(defined["params"]))
    assert defined["gj"].diagnostics(defined["state"])["refreshed"] > 0

    params = {"dense": {"kernel": jnp.ones((8, 4))}, "norm": {"scale": jnp.ones(4)}}
    updates = first_update(defined["freezing"], params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert float(jnp.max(jnp.abs(updates["norm"]["scale"]))) == 0

    # Decay behind the transform leads out of the null space, before the constraint or inside it does not.
    del params["norm"]
    inside, behind, leaking = (first_update(defined[name], params) for name in ("inside", "behind", "leaking"))
    leak = lambda updates: float(*defined["gj"].null_space_leak(updates, defined["null_space"]).values())  # noqa: E731
    assert leak(inside) <= 1e-5
    assert leak(behind) <= 1e-5
    assert leak(leaking) > 0.03
    np.testing.assert_allclose(inside["dense"]["kernel"], behind["dense"]["kernel"], atol=1e-8)


def test_the_program_of_the_identifiers_page_separates_its_items():
    assert run("docs/identifiers.md")["apart"].report()["in_collisions"] == 0


def test_the_log_of_the_tutorial_is_made_prepared_and_named_by_its_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/tutorial.md").read_text()
    run("docs/tutorial.md")
    Path("shop.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    assert gems_jax("prepare", "--config", "shop.yaml") == 0
    assert "train: rec 800, src 800" in capsys.readouterr().out
    commands = re.findall(r"^gems-jax (.*)$", text, re.MULTILINE)
    assert [shlex.split(words)[0] for words in commands][-3:] == ["recommend", "search", "export"]
    for words in commands:
        config = read(*shlex.split(words), *([] if "--config" in words else ["--config", "shop.yaml"]))
        assert Path(config.data.dir).resolve() == tmp_path / "runs/shop/data"


def test_messages_that_are_explained_are_messages_of_the_code():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    explained = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    code = "\n".join(path.read_text() for path in (ROOT / "gems_jax").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a text over several lines
    assert len(explained) > 10
    assert [message for message in explained if message not in code] == []


def test_every_page_is_on_the_site_and_in_its_list():
    listed = set(re.findall(r"(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")}
