"""The circumstances that every result names, and how it is written."""

import datetime
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gems_jax.staging import write_json
from gems_jax.study.machine import machine


def circumstances(*packages: str, device: str = "") -> dict[str, Any]:
    """Machine, versions of ``packages``, threads and date.

    Args:
      packages: names of installed packages that the result depends on.
      device: what JAX computed on, for benchmarks that use it.
    """
    return {
        "machine": f"{machine()}, {device}" if device else machine(),
        "python": platform.python_version(),
        "openblas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "unset"),
        "xla_flags": os.environ.get("XLA_FLAGS", "unset"),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "date": datetime.date.today().isoformat(),
    }


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and each seed's value."""
    return {"mean": statistics.mean(values), "std": statistics.stdev(values), "by_seed": list(values)}


def write(result: dict[str, Any], out: Path | None) -> None:
    """Writes a result where it was asked for."""
    if out is not None:
        write_json(out, result)
