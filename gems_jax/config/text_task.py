"""General text as one more task of a run, see ``train.text_task``: its name, and with what it cannot be."""

from collections.abc import Iterator, Sequence
from typing import Any

# Its name wherever tasks are listed.
TEXT_TASK = "text"


def trained_tasks(train: Any, tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks that have gradients, in the order of the task axis: those that are ranked, general text behind them.

    Args:
      train: section of a configuration.
      tasks: that are ranked.

    Example:
      >>> from gems_jax.config.train import TrainConfig
      >>> trained_tasks(TrainConfig(), ("rec", "src")), trained_tasks(TrainConfig(text_task="distill"), ("rec", "src"))
      (('rec', 'src'), ('rec', 'src', 'text'))
    """
    return tuple(tasks) if train.text_task == "none" else (*tasks, TEXT_TASK)


def text_task_contradictions(config: Any) -> Iterator[str]:
    """What a run's general text as a task does not go together with, a sentence each."""
    train = config.train
    if train.text_task == "none":
        return
    given = f"train.text_task {train.text_task}"
    if train.text_task_rows % train.accumulate:
        yield f"train.text_task_rows {train.text_task_rows} must be divisible by train.accumulate {train.accumulate}"
    if config.mesh.task != 1:
        yield f"{given} cannot be split over mesh.task {config.mesh.task}: its rows are unlike the others'; set it to 1"
    if TEXT_TASK in config.items.prompts:
        yield f"{given} is a task named {TEXT_TASK!r}, and items.prompts has one, too; give that task another name"
