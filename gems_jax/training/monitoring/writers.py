"""Metrics for other programs to show."""

import importlib
import os
import re
import time
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


class MLflow:
    """A run of MLflow, of the configuration's name; its own environment variables say where, by default here.

    Its names of metrics have letters, digits and ``_ - . /`` alone: ``ndcg@10`` is ``ndcg_10`` there.
    """

    def __init__(self, workdir: Path, name: str, step: int):
        self._package = _package("mlflow", "mlflow")
        self._client = self._package.MlflowClient()
        # A client's runs do not get in the way of one that the program around has begun.
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._experiment()
        tags = {"mlflow.runName": name, "gems_jax.workdir": re.sub(r"[^\w./-]", "_", str(workdir))}
        which = f"tags.`gems_jax.workdir` = '{tags['gems_jax.workdir']}'"
        # A run that begins is a new one; the newest of this folder goes on.
        before = self._client.search_runs([experiment], which, max_results=1) if step else []
        run = before[0] if before else self._client.create_run(experiment, tags=tags)
        self._run = run.info.run_id
        self._client.update_run(self._run, status="RUNNING")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "gems-jax")
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now, metric = int(time.time() * 1000), self._package.entities.Metric
        named = {re.sub(r"[^\w./-]", "_", key): value for key, value in values.items()}
        self._client.log_batch(self._run, [metric(key, value, now, step) for key, value in named.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


KINDS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


def open_writers(kinds: tuple[str, ...], workdir: Path, name: str, step: int) -> list[Writer]:
    """The writers that are asked for.

    Args:
      kinds: ``tensorboard``, ``wandb``, ``mlflow``.
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
