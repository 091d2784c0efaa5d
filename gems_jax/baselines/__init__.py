"""Other ways to tune on many tasks, with the call of `gems_jax.gems`: stacked gradients in, one update out.

Every one is ``f(inner_tx, *, ...)`` and gives an ``optax.GradientTransformationExtraArgs`` whose
``update(grads, state, params, task_losses=None, task_counts=None)`` takes leaves ``[T, *shape]`` (or
``[1, *shape]`` where already merged) and returns ``[*shape]``. ``inner_tx`` is the optimiser of the merged
gradient, learning rate included. A task that is absent from a step or not finite is left out of it.
"""

from gems_jax.baselines.aligned_mtl import aligned_mtl
from gems_jax.baselines.cagrad import cagrad
from gems_jax.baselines.dwa import dwa
from gems_jax.baselines.galore import galore
from gems_jax.baselines.imtl_g import imtl_g
from gems_jax.baselines.joint import joint
from gems_jax.baselines.mgda import mgda
from gems_jax.baselines.nash_mtl import nash_mtl
from gems_jax.baselines.pcgrad import pcgrad
from gems_jax.baselines.uncertainty import uncertainty
from gems_jax.baselines.upgrad import upgrad

__all__ = [
    "aligned_mtl",
    "cagrad",
    "dwa",
    "galore",
    "imtl_g",
    "joint",
    "mgda",
    "nash_mtl",
    "pcgrad",
    "uncertainty",
    "upgrad",
]
