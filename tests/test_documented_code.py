"""The Python of README.md and of pages in docs/ runs as it stands, block after block."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from documented import fenced, run
from shared import SHARED, needs_shared

from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.sources import amazon_scientific

ROOT = Path(__file__).parent.parent


def first_update(tx, params):
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), (2, *p.shape)), params)
    return jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(grads, params)


def test_the_readme_takes_a_step_inside_the_null_space():
    defined = run("README.md")
    leaks = defined["gj"].null_space_leak(defined["updates"], defined["null_space"])
    assert leaks.keys() == {"dense"}
    assert leaks["dense"] <= 1e-5
    assert float(jnp.linalg.norm(defined["updates"]["dense"])) > 0
    general = jnp.eye(16)[:4]
    before = jax.tree.map(jnp.subtract, defined["params"], defined["updates"])
    np.testing.assert_allclose(
        *(defined["model"](params, general) for params in (defined["params"], before)), atol=1e-6
    )


def test_the_readme_is_a_front_page():
    text = (ROOT / "README.md").read_text()
    (program,) = fenced("README.md", "python")
    assert len([line for line in program.splitlines() if line]) == 10  # as its heading says
    assert len(text.splitlines()) <= 112


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


def queries_made(items, folder, monkeypatch):
    (folder / "data/amazon_scientific").mkdir(parents=True)
    (folder / "data/amazon_scientific/Scientific.item.json").write_bytes(items)
    monkeypatch.chdir(folder)
    run("docs/datasets.md")
    return amazon_scientific.read_queries(
        Path("data/amazon_scientific/queries.tsv"), json.loads(items), Quarantine(1.0)
    )


def test_the_queries_of_a_dataset_are_made_of_its_category_paths(tmp_path, monkeypatch):
    items = {"7": {"categories": "Industrial & Scientific,Fasteners,Staples"}, "9": {"categories": ""}}
    assert queries_made(json.dumps(items).encode(), tmp_path, monkeypatch) == {"7": "fasteners staples"}


@needs_shared
def test_the_queries_of_the_published_items_are_those_of_the_results(tmp_path, monkeypatch):
    theirs = SHARED / "data/amazon_scientific"
    made = queries_made((theirs / "Scientific.item.json").read_bytes(), tmp_path, monkeypatch)
    rows = (line.split("\t") for line in (theirs / "queries.tsv").read_text().splitlines()[1:])
    assert made == {item: query for item, _, query in rows if query}


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
