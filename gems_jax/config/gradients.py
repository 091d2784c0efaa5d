"""Whether a run's gradients can be projected ones, and whether they are (`gems_jax.projected_task_grads`)."""

from typing import Any

from gems_jax.config.methods import METHODS
from gems_jax.projected.whole_options import option_for_whole

# Parameters in kernels from which projected gradients are taken by themselves: below, compiling their program takes
# longer than what a run saves.
LEAST_PARAMETERS = 4_000_000


def why_whole(train: Any, gems: Any) -> str | None:
    """The option that needs whole gradients, ``None`` if there is none.

    Args:
      train, gems: sections of a configuration.

    Example:
      >>> from gems_jax.config.optimiser import GemsConfig
      >>> from gems_jax.config.train import TrainConfig
      >>> why_whole(TrainConfig(), GemsConfig()), why_whole(TrainConfig(method="adamw"), GemsConfig())
      (None, 'train.method adamw takes whole gradients')
    """
    if not METHODS[train.method].low_rank:
        return f"train.method {train.method} takes whole gradients"
    if train.text_task != "none":
        return f"train.text_task {train.text_task} takes whole gradients"
    has_task_bases = train.method != "galore" and gems.task_rank != 0
    option = option_for_whole(
        gems.decomposition, gems.constraint, gems.stagger, gems.recovery, gems.gate == "learned", has_task_bases
    )
    words = {
        "decomposition": f"gems.decomposition {gems.decomposition} is of whole gradients",
        "constraint": "gems.constraint gradient projects whole gradients",
        "stagger": "gems.stagger decomposes whole gradients of a few kernels in every step",
        "recovery": f"gems.recovery {gems.recovery} adds what of whole gradients lies outside the bases",
        "gate": "gems.gate learned scores each task's update against the other tasks' gradients",
    }
    return None if option is None else words[option]


def is_projected(train: Any, gems: Any, parameters: int, devices: int) -> bool:
    """Whether a run's gradients are projected, see ``train.gradients``.

    Args:
      train, gems: sections of a configuration.
      parameters: in kernels.
      devices: of the mesh.
    """
    if train.gradients == "auto":
        # An update in parts is there to save memory, of which a refresh of projected gradients takes more.
        small = parameters < LEAST_PARAMETERS or train.accumulate > 1
        return devices == 1 and not small and why_whole(train, gems) is None
    return bool(train.gradients == "projected")
