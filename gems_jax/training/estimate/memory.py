"""The memory that a run needs on each device, estimated from shapes alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from gems_jax.config.run import Config
from gems_jax.models import from_config
from gems_jax.training.distributed.mesh import axis_sizes, task_axis
from gems_jax.training.estimate.abstract import (
    ANSWER,
    abstract_null_space,
    batch_lengths,
    device_bytes,
    sharded,
    sharded_params,
)
from gems_jax.training.losses import task_loss
from gems_jax.training.optimiser.chain import make_optimiser, needs_null_space, null_space_side
from gems_jax.training.trainable import split_model
from gems_jax.transform.sharding import state_sharding

GIB = 2**30
# Of the row that distinct inputs of kernels are found with; any number would do.
_TOKENS = 8
# The logits of a chunk of label tokens, their gradient and the softmax between them, see `chunked_token_losses`.
_LOGITS = 3 * 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Resources:
    """Bytes on each device.

    Attributes:
      parameters: of the model that trains, and of the one it began from, which evaluation compares it with.
      gradients: one of each task, and the update they become.
      optimiser: state, null-space factors included.
      activations: what the backward pass needs of the forward pass.

    Example:
      >>> print(Resources(2**30, 3 * 2**30, 2**29, 2**28))
      parameters 1.00, gradients 3.00, optimiser 0.50, activations 0.25: 4.75 GiB
    """

    parameters: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimiser + self.activations

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in dataclasses.asdict(self).items())
        return f"{parts}: {self.total / GIB:.2f} GiB"


def estimate(config: Config, model_config: Any, tasks: int = 2, data: int = 1, protected: float = 0.5) -> Resources:
    """The memory that a run needs on each device, the largest parts alone; programs' scratch space comes on top.

    Parameters and state are what their shapes say, on the mesh of the configuration. Gradients are ``T + 1`` trees
    of what trains. Activations are the inputs of all layers, one layer's inner values, which are computed again
    (``remat: full``), and a chunk of logits: with ``n`` tokens on a device, ``b`` bytes a number, ``L`` layers of width
    ``d``, inner width ``f`` and ``h`` heads over ``S`` tokens

        n d b L + n (10 d + 3 f) b + 3 n h S 4 + logits

    T5-base with 32 rows of 256 tokens a task in float32, as XLA compiles the step for CPU, has 4.68 GiB of temporaries;
    gradients and activations are 4.73 here.

    Args:
      config: of the run.
      model_config: a `T5Config` or `DecoderConfig`, item tokens included.
      tasks: ``T``.
      data: devices of the mesh's first axis.
      protected: share of each input's directions that the null space protects; a half needs most memory.

    Returns:
      Bytes on a device.
    """
    sizes = axis_sizes(config.mesh, data)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    model = nnx.eval_shape(lambda: from_config(model_config, jax.random.key(0)))
    graph, trained, frozen = split_model(model, config)
    params, fixed = sharded_params(trained, mesh), sharded_params(frozen, mesh)
    null_space = None
    if needs_null_space(config):
        lengths = batch_lengths(model_config, _TOKENS)
        row = {name: jax.ShapeDtypeStruct((1, length), jnp.int32) for name, length in lengths.items()}
        loss = task_loss(graph, config.train.loss_vocabulary, ANSWER, config.train.loss_chunk)
        null_space = abstract_null_space(loss, params, fixed, row, protected, null_space_side(config))
    tx = make_optimiser(config, tasks, null_space)
    state = jax.tree.map(sharded, jax.eval_shape(tx.init, params), state_sharding(tx, params, task_axis(mesh)))
    moved = device_bytes(params)
    per_device = -(-tasks // config.mesh.task)
    return Resources(
        parameters=2 * (moved + device_bytes(fixed)),
        gradients=(per_device + 1) * moved,
        optimiser=device_bytes(state),
        activations=_activations(config, model_config, per_device, sizes),
    )


def _activations(config: Config, model_config: Any, tasks: int, sizes: dict[str, int]) -> int:
    train, length = config.train, config.items.max_length
    rows = -(-train.batch_size // (train.accumulate * sizes["data"] * sizes["fsdp"]))
    tokens = tasks * rows * length
    width, inner = model_config.d_model, model_config.d_ff
    number = jnp.dtype(train.compute_dtype or config.model.dtype).itemsize
    kept = tokens * width * number * model_config.num_layers
    layer = tokens * (10 * width + 3 * inner) * number // sizes["tensor"]
    scores = 3 * tokens * model_config.num_heads * length * 4 // sizes["tensor"]
    return kept + layer + scores + _LOGITS
