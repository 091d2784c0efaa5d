"""What a run holds in the memory of each device, estimated from shapes alone."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from gems_jax.capture import kernel_inputs
from gems_jax.directions import Factor
from gems_jax.leaf_path import leaf_path
from gems_jax.models import DecoderConfig, from_config
from gems_jax.moment_pass import kernel_specs
from gems_jax.null_space import NullSpace
from gems_jax.sharding import state_sharding
from gems_jax.training.config import Config
from gems_jax.training.layout import AXES, spec_of
from gems_jax.training.losses import task_loss
from gems_jax.training.optimiser import make_optimiser, needs_null_space
from gems_jax.training.parts import split_model

PyTree = Any
GIB = 2**30
# An item of one token, and the end token.
ANSWER = 2
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


@dataclasses.dataclass(frozen=True)
class _Zeros:
    """The description of an array; zeros where a traced function asks for its values."""

    shape: tuple[int, ...]
    dtype: Any = jnp.dtype("float32")

    def __jax_array__(self) -> jax.Array:
        return jnp.zeros(self.shape, self.dtype)


def estimate(config: Config, model_config: Any, tasks: int = 2, data: int = 1, protected: float = 0.5) -> Resources:
    """What a run needs of each device, the largest things alone; programs and their scratch space come on top.

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
    axes = (*AXES, "task") if config.mesh.task > 1 else AXES
    sizes = {"data": data} | {name: getattr(config.mesh, name) for name in axes[1:]}
    mesh = AbstractMesh(tuple(sizes.values()), axes, axis_types=(AxisType.Auto,) * len(axes))
    model = nnx.eval_shape(lambda: from_config(model_config, jax.random.key(0)))
    graph, trained, rest = split_model(model, config)
    params, fixed = (_placed(tree, mesh, sizes) for tree in (trained, rest))
    null_space = _null_space(config, model_config, graph, params, fixed, protected)
    tx = make_optimiser(config, tasks, null_space)
    state = jax.eval_shape(tx.init, params)
    places = state_sharding(tx, params, axes[3] if len(axes) > 3 else None)
    held = sum(
        _bytes(place.shard_shape(x.shape), x.dtype)
        for x, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True)
    )
    moved = _held(params)
    per_device = -(-tasks // config.mesh.task)
    return Resources(
        parameters=2 * (moved + _held(fixed)),
        gradients=(per_device + 1) * moved,
        optimiser=held,
        activations=_activations(config, model_config, per_device, sizes),
    )


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def _placed(tree: PyTree, mesh: Any, sizes: dict[str, int]) -> PyTree:
    def place(path: tuple[Any, ...], x: Any) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, spec_of(leaf_path(path), tuple(x.shape), sizes))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(place, tree)


def _held(tree: PyTree) -> int:
    return sum(_bytes(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree))


def _null_space(
    config: Config, model_config: Any, graph: Any, params: PyTree, rest: PyTree, protected: float
) -> NullSpace | None:
    """Factors of the shapes that a null space of these parameters has, one for every distinct input of kernels."""
    if not needs_null_space(config):
        return None
    length, side = 8, config.null_space.side
    lengths = {"input_ids": length, "attention_mask": length}
    decoder = isinstance(model_config, DecoderConfig)
    lengths |= dict.fromkeys(("labels", "label_mask"), length if decoder else ANSWER)
    if not decoder:
        lengths["decoder_input_ids"] = ANSWER
    batch = {name: jax.ShapeDtypeStruct((1, n), jnp.int32) for name, n in lengths.items()}
    loss = task_loss(graph, config.train.loss_vocabulary, ANSWER, config.train.loss_chunk)
    found = kernel_inputs(lambda p, given: loss(p, *given), params, (rest, batch), kernel_specs(params), side)
    factors = {}
    for entry in found.inputs:
        # The thinner of two bases is kept.
        columns = max(1, round(min(protected, 1 - protected) * entry.dim))
        basis: Any = _Zeros((*entry.stack, entry.dim, columns))
        kept = np.full(entry.stack, round(protected * entry.dim))
        factors[entry.name] = Factor(basis, protected > 0.5, kept, np.zeros(entry.stack))
    return NullSpace(factors, found.names(), side)


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
