"""The programs that make documents, docs/rooms.py among them, which reads the package's rooms."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def loaded(name):
    """A program of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rooms, performance, results, leaderboard = map(loaded, ("rooms", "performance", "results", "leaderboard"))
MODULES = rooms.modules()
