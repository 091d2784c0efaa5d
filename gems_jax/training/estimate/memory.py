"""The memory that a run needs on each device, estimated from shapes alone."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from gems_jax.config.methods import METHODS
from gems_jax.config.run import Config
from gems_jax.config.text_task import trained_tasks
from gems_jax.leaf_path import named_leaves
from gems_jax.models import from_config
from gems_jax.null_space.space import NullSpace
from gems_jax.training.build import training_model
from gems_jax.training.distributed.mesh import axis_sizes, task_axis
from gems_jax.training.estimate.abstract import (
    ANSWER,
    abstract_null_space,
    batch_lengths,
    bytes_of,
    device_bytes,
    sharded,
    sharded_params,
)
from gems_jax.training.losses import task_loss
from gems_jax.training.optimiser.chain import make_optimiser, needs_null_space, null_space_side
from gems_jax.training.task_gradients import projects
from gems_jax.training.trainable import split_model
from gems_jax.transform.init_plans import init_shapes
from gems_jax.transform.sharding import state_sharding
from gems_jax.types import PyTree

GIB = 2**30
# Of the estimate: programs, their scratch space and the next batches come on top.
HEADROOM = 1.25
# Of the row that distinct inputs of kernels are found with; any number would do.
_TOKENS = 8
# Logits of a chunk of label tokens that are held at once, see `chunked_token_losses`; their gradient and the softmax
# between them are as large.
_LOGITS = 64 * 2**20
# What the optimiser holds at its peak beside state and parameters, in trees of what trains, as measured for CPU:
# a constant, and what each task adds. Methods that weight the losses merge gradients where these are; others keep the
# tasks' apart until the update is made.
_WEIGHTED, _MERGED, _LOW_RANK = (2.0, 1.0), (3.7, 2.0), (3.7, 1.8)
_OF_LOSSES = ("adamw", "uncertainty", "dwa")
# Of a batch; with all the memory that there is.
_MOST_ROWS = 2**20
# Columns beside the bases that projected gradients are measured with, and how many sizes of all products a step holds.
_SKETCH, _PRODUCTS = 8, 3


@dataclasses.dataclass(frozen=True)
class Resources:
    """Bytes on each device.

    Attributes:
      parameters: of the model that trains, and of the one it began from, which evaluation compares it with; for
        ``train.text_task: distill`` once more what trains, as it was.
      gradients: what the step holds at its peak beside activations: the tasks' gradients, their products with the
        bases, the update they become.
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

    Parameters and state are what their shapes say, on the mesh of the configuration. Activations are the inputs of all
    layers, one layer's inner values, which are computed again (``remat: full``), and a chunk of logits: with ``n``
    tokens on a device, ``b`` bytes a number, ``L`` layers of width ``d``, inner width ``f`` and ``h`` heads over ``S``
    tokens

        n d b L + n (17 d + 3 f) b + 3 n h S 4 + logits

    With ``remat: dots`` the products of all layers are kept as well, ``n (3 d + 2 f) b L``, with ``remat: none`` all
    layers' inner values in place of one's, and a tenth more.

    The step holds them beside the tasks' gradients, or, later and without them, what the optimiser works with: the
    larger of both counts. With projected gradients (``train.gradients``) these are the update and three times the
    products of gradients and bases. The numbers of trees were measured on programs for CPU
    (``benchmarks/memory_estimate.py``): all it measures is within a fifth.

    Args:
      config: of the run.
      model_config: a `T5Config` or `DecoderConfig`, item tokens included.
      tasks: ``T``, general text aside.
      data: devices of the mesh's first axis.
      protected: share of each input's directions that the null space protects; a half needs most memory.

    Returns:
      Bytes on a device.
    """
    return by_batch_size(config, model_config, tasks, data, protected)(config.train.batch_size)


def by_batch_size(
    config: Config, model_config: Any, tasks: int = 2, data: int = 1, protected: float = 0.5
) -> Callable[[int], Resources]:
    """`estimate` as a function of ``train.batch_size``: shapes that do not depend on it are made once."""
    sizes = axis_sizes(config.mesh, data)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    model = nnx.eval_shape(lambda: training_model(from_config(model_config, jax.random.key(0)), config))
    graph, trained, frozen = split_model(model, config)
    params, fixed = sharded_params(trained, mesh), sharded_params(frozen, mesh)
    null_space = assumed_null_space(config, model_config, graph, params, fixed, protected)
    trained = len(trained_tasks(config.train, ("",) * tasks))
    tx = make_optimiser(config, trained, null_space, projects(config, params))
    state = jax.tree.map(sharded, jax.eval_shape(tx.init, params), state_sharding(tx, params, task_axis(mesh)))
    moved, held = device_bytes(params), device_bytes(state)

    def of(rows: int) -> Resources:
        sized = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=rows))
        activations = _activations(sized, model_config, tasks, sizes)
        return Resources(
            parameters=2 * (moved + device_bytes(fixed)) + (moved if config.train.text_task == "distill" else 0),
            gradients=_peak(config, tx, params, fixed, trained, activations) - activations,
            optimiser=held,
            activations=activations,
        )

    return of


def assumed_null_space(
    config: Config, model_config: Any, graph: Any, params: PyTree, frozen: PyTree, protected: float = 0.5
) -> NullSpace | None:
    """The shapes of a null space that protects this share of each input's directions; ``None`` where none is used.

    Args:
      config: of the run.
      model_config: a `T5Config` or `DecoderConfig`.
      graph, params, frozen: what `split_model` makes of the model, shapes alone.
      protected: share of the directions.
    """
    if not needs_null_space(config):
        return None
    lengths = batch_lengths(model_config, _TOKENS)
    row = {name: jax.ShapeDtypeStruct((1, length), jnp.int32) for name, length in lengths.items()}
    loss = task_loss(graph, config.train.loss_vocabulary, ANSWER, config.train.loss_chunk)
    return abstract_null_space(loss, params, frozen, row, protected, null_space_side(config))


def largest_batch(config: Config, needs: Callable[[int], Resources], memory: float, data: int = 1) -> int:
    """Rows a task that a batch may have on devices of so much memory, doubled or halved from the configuration's.

    Args:
      config: of the run.
      needs: `by_batch_size` of it.
      memory: bytes of a device.
      data: devices of the mesh's first axis.

    Returns:
      The largest that fits with `HEADROOM`; 0 where none does that the devices and parts of an update divide.
    """
    least = config.train.accumulate * data * config.mesh.fsdp
    rows, fits = config.train.batch_size, lambda rows: HEADROOM * needs(rows).total <= memory
    while fits(2 * rows) and rows < _MOST_ROWS:
        rows *= 2
    while not fits(rows) and rows % (2 * least) == 0:
        rows //= 2
    return rows if fits(rows) else 0


def _peak(config: Config, tx: Any, params: Any, fixed: Any, tasks: int, activations: int) -> int:
    """Bytes of a step at its peak, beside its arguments."""
    method, moved = METHODS[config.train.method], device_bytes(params)
    per_device = -(-tasks // config.mesh.task)
    if projects(config, params):
        return activations + moved + _PRODUCTS * _products(tx, params, tasks)
    backward = activations + per_device * moved
    if method.adapters:  # a kernel with its adapter in it is made, and has a gradient
        adapted = [leaf for path, leaf in named_leaves(fixed) if path.endswith("kernel")]
        return backward + per_device * sum(map(bytes_of, adapted))
    trees, each = _LOW_RANK if method.low_rank else _WEIGHTED if config.train.method in _OF_LOSSES else _MERGED
    return max(backward, round((trees + each * per_device) * moved))


def _products(tx: Any, params: Any, tasks: int) -> int:
    """Bytes of each task's gradient in the shared and its own basis, and in the columns that measure the rest."""
    _, made = init_shapes(tx, params)
    return sum(
        4 * tasks * math.prod(kernel.batch_shape) * (kernel.rank + kernel.task_rank + _SKETCH) * kernel.other
        for entry in made
        for kernel in entry.plan.kernels
        if kernel.rank
    )


def _activations(config: Config, model_config: Any, tasks: int, sizes: dict[str, int]) -> int:
    """Of the tasks or, if these are more, of general text, which has a backward pass of its own behind theirs."""
    train = config.train
    scored = model_config.num_added_tokens + (model_config.vocab_size if train.loss_vocabulary == "full" else 1)
    share = train.accumulate * sizes["data"] * sizes["fsdp"]
    rows = -(-tasks // config.mesh.task) * -(-train.batch_size // share)
    most = _of_rows(config, model_config, rows, config.items.max_length, rows * ANSWER * scored, sizes)
    if train.text_task == "none":
        return most
    rows, length = -(-train.text_task_rows // share), config.text.input_length
    scored = model_config.num_added_tokens + model_config.vocab_size
    return max(most, _of_rows(config, model_config, rows, length, rows * length * scored, sizes))


def _of_rows(config: Config, model_config: Any, rows: int, length: int, scores: int, sizes: dict[str, int]) -> int:
    """Bytes of ``rows`` inputs of ``length`` tokens, ``scores`` logits in all."""
    tokens = rows * length
    width, inner = model_config.d_model, model_config.d_ff
    number = jnp.dtype(config.train.compute_dtype or config.model.dtype).itemsize
    layers, remat = model_config.num_layers, config.train.remat or model_config.remat
    layer = tokens * (17 * width + 3 * inner) * number // sizes["tensor"]
    layer += 3 * tokens * model_config.num_heads * length * 4 // sizes["tensor"]
    inputs, products = tokens * width * number, tokens * (3 * width + 2 * inner) * number // sizes["tensor"]
    kept = {"full": layers * inputs + layer, "dots": layers * (inputs + products) + layer, "none": 1.1 * layers * layer}
    return round(kept[remat]) + 3 * min(_LOGITS, scores * 4)
