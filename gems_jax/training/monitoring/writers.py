"""Metrics for other programs to show."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from gems_jax.staging import is_remote


class Writer(Protocol):
    """Takes the lines of ``metrics.jsonl``."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``tensorboard/`` of the work directory, by tensorboardX, which knows ``gs://`` and ``s3://``."""

    def __init__(self, workdir: Path, name: str, step: int):
        package = _package("tensorboardX", "tensorboard")
        # What was written after this step is written again.
        self._writer = package.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, of the configuration's name; its own environment variables say where."""

    def __init__(self, workdir: Path, name: str, step: int):
        package = _package("wandb", "wandb")
        identity = "-".join((workdir.parent.name, workdir.name)).strip("-")
        # Its own files are for this machine.
        folder = None if is_remote(workdir) else str(workdir)
        self._run = package.init(name=name, id=identity, dir=folder, resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb}


def open_writers(kinds: tuple[str, ...], workdir: Path, name: str, step: int) -> list[Writer]:
    """The writers that are asked for.

    Args:
      kinds: ``tensorboard``, ``wandb``.
      workdir: of the run.
      name: of the run.
      step: updates made already.

    Raises:
      ValueError: a writer's package is not installed.
    """
    return [KINDS[kind](workdir, name, step) for kind in kinds]


def _package(name: str, kind: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(
            f"train.writers {kind} needs the package {name}: pip install {name}, or leave the writer out"
        ) from None
