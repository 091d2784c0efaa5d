"""Reads what a run has logged, as a few points a curve."""

from pathlib import Path

import numpy as np

from gems_jax.report.records import read_records

# Keys of metrics.jsonl that a study shows.
_SHOWN = ("conflict/", "gate/", "captured/", "loss/", "grad_norm/", "null_space/")
_POINTS = 60

Curve = dict[str, list[float]]


def curves(folder: Path, points: int = _POINTS) -> dict[str, Curve]:
    """The curves of a run, each value the mean of its neighbours.

    Args:
      folder: of the run.
      points: most points of a curve.

    Returns:
      Key -> ``{"step": [...], "value": [...]}``.
    """
    records = read_records(folder)
    by_key: dict[str, Curve] = {}
    for prefix in _SHOWN:
        for key in records.keys(prefix):
            steps, values = records.series(key)
            if len(steps):
                by_key[key] = {"step": _thinned(steps, points), "value": _thinned(values, points)}
    return by_key


def _thinned(values: np.ndarray, points: int) -> list[float]:
    parts = np.array_split(values.astype(np.float64), min(points, len(values)))
    return [float(f"{part.mean():.6g}") for part in parts]
