"""The Python of README.md and docs/optimiser.md runs as it stands, block after block."""

import re
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent


def run(path):
    """Names that the page's programs define."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
    assert blocks
    defined = {"__name__": "page"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{path}, block {number + 1}", "exec"), defined)  # noqa: S102
    return defined


def test_the_readme_tunes_attention_of_flax_inside_the_null_space(capsys):
    defined = run("README.md")
    assert len(defined["null_space"].inputs) == 5
    leaks = defined["gj"].null_space_leak(defined["updates"], defined["null_space"])
    assert len(leaks) == 5
    assert all(leak <= 1e-5 for leak in leaks.values())
    assert "attention/query/kernel" in capsys.readouterr().out


def test_the_loop_of_the_optimiser_s_page_runs():
    defined = run("docs/optimiser.md")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(defined["params"]))
    assert defined["gj"].diagnostics(defined["state"])["refreshed"] > 0
