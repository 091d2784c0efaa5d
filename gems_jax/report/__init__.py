"""A run's report: one self-contained HTML page with the results table, pictures and examples."""

import os
from pathlib import Path

from gems_jax.report.html_page import page
from gems_jax.report.records import read_records
from gems_jax.staging import write_text


def write_report(workdir: str | os.PathLike[str]) -> Path:
    """Writes ``report.html`` from what a work directory has recorded.

    The page holds its pictures and asks for nothing from outside. It is written whole or not at all.

    Args:
      workdir: folder with ``metrics.jsonl`` (a line a step), ``eval.json``, or both. ``eval.json`` may
        hold an entry a task (``"hit@10"``, ``"hit@10_ci"``, ..., see `gems_jax.evaluation.ranking_summary.summarise`),
        ``"general"`` (see `gems_jax.evaluation.drift.general_drift`), ``"baselines"`` and ``"comparison"`` (the same
        by name), ``"paired"`` (by name, see `gems_jax.evaluation.compare_runs.compare_runs`), ``"examples"``, and
        ``"name"``, the name of this run in the table.

    Returns:
      Path of the page.

    Raises:
      FileNotFoundError: if the folder holds neither file.
      ValueError: if a file is malformed; names the file and line.

    Example:
      >>> import json, pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss/rec": 2.0}) + "\\n")
      >>> write_report(folder).name
      'report.html'
    """
    folder = Path(workdir)
    text = page(read_records(folder), title=folder.resolve().name)
    target = folder / "report.html"
    write_text(target, text)
    return target
