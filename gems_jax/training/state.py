"""Where a run is between two updates: what changes, where it goes on from, and when it is over."""

from typing import Any, NamedTuple

from gems_jax.config.train import TrainConfig
from gems_jax.training.build import TrainingRun
from gems_jax.training.early_stopping import Best
from gems_jax.training.workdir.checkpoints import Checkpoints
from gems_jax.types import PyTree


class TrainState(NamedTuple):
    """The part of a run that an update changes.

    Attributes:
      step: updates made.
      params, opt_state: what trains, the optimiser's state; on the mesh, and donated to the next update.
      best: evaluation so far.
      position: of data and counts, as a checkpoint has it; JSON values, those that the run went on from.
    """

    step: int
    params: PyTree
    opt_state: PyTree
    best: Best
    position: dict[str, Any]


def restore(run: TrainingRun, checkpoints: Checkpoints) -> TrainState:
    """The state of the newest intact checkpoint, its rows next in line; without checkpoints that of the beginning.

    The run gives its own parameters and optimiser state away: they are not held twice.
    """
    params, opt_state, run.params, run.opt_state = run.params, run.opt_state, None, None
    restored = checkpoints.restore_latest(params, opt_state)
    if restored is None:
        return TrainState(0, params, opt_state, Best(), {})
    run.batches.set_state(restored.position["batches"])
    return TrainState(*restored[:3], Best.from_json(restored.position["best"]), restored.position)


def is_over(state: TrainState, train: TrainConfig) -> bool:
    """Whether all updates are made, or ``train.metric`` has not been better for ``train.patience`` evaluations."""
    return state.step >= train.steps or bool(train.patience and state.best.worse >= train.patience)
