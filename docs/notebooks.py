"""Runs notebooks from top to bottom and keeps what they print and draw: `python docs/notebooks.py [NAME...]`.

The tests run them too, the long one with few steps, and read what is stored here of the whole run.
"""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run(notebook, timeout=600):
    """Executes a notebook in its folder; a cell that takes more seconds than ``timeout`` ends it."""
    NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()


def tidied(notebook):
    """What a cell prints as one text, without warnings, and the notebook without what is of this machine."""
    folder = re.compile(re.escape(tempfile.gettempdir()) + r"/\w+")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        kept = []
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                continue
            if output.output_type == "stream":
                output.text = folder.sub("TEMPORARY", output.text)
                if kept and kept[-1].output_type == "stream":
                    kept[-1].text += output.text
                    continue
            kept.append(output)
        if "outputs" in cell:
            cell.outputs = kept
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for path in [NOTEBOOKS / name for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        run(notebook)
        nbformat.write(tidied(notebook), path)
        print(path.name)
