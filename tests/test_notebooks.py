"""Notebooks run from top to bottom; a minute or two, as newcomers see them."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def read(name):
    return nbformat.read(NOTEBOOKS / name, as_version=4)


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_is_stored_without_outputs(name):
    for cell in read(name).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_quickstart_runs_and_recommends_items_by_title(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # mostly compilation otherwise
    notebook = read("quickstart.ipynb")
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    said = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert said.count("would take") == 3
    assert said.count("searches for '") == 3
    for task in ("rec", "src"):
        line = next(line for line in said.splitlines() if line.startswith(f"{task}: target among the first 10"))
        ours, popular = (float(part.split()[-1]) for part in line.split(","))
        assert ours > popular + 0.1
