"""The compiled pass over text that sums second moments, and what it needs to know of a model."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.argument_checks import check_function
from gems_jax.leaf_path import named_leaves
from gems_jax.linalg.matrix_dims import MatrixRule, MatrixSpec, matrix_specs, stacked_matrix_dims
from gems_jax.null_space.second_moment import SecondMoment
from gems_jax.null_space.space import Side
from gems_jax.null_space.tracing.interpreter import Layers
from gems_jax.null_space.tracing.kernel_inputs import Apply, KernelInput, add_moments
from gems_jax.null_space.tracing.position_masks import Masks
from gems_jax.types import PyTree, TextBatch

# The arrays of a batch of general text, by name.


def kernel_specs(params: PyTree, rule: MatrixRule | None = None) -> dict[str, MatrixSpec | None]:
    """Roles of the kernels under a rule (default `stacked_matrix_dims`), by path.

    Raises:
      ValueError: there are none.
    """
    resolved = zip(named_leaves(params), matrix_specs(params, rule or stacked_matrix_dims), strict=True)
    specs = {path: spec for (path, _), spec in resolved if spec is not None}
    if not specs:
        raise ValueError("the model has no kernels under matrix_dims; give a rule that names them")
    return dict(specs)


class Model(NamedTuple):
    """A forward pass as a function.

    Attributes:
      apply: ``apply(params, batch)``.
      params: tree of arrays.
      names: entries of a batch that it takes; ``None``: all.
      needed: those without which it cannot be called.
    """

    apply: Apply
    params: PyTree
    names: set[str] | None
    needed: tuple[str, ...] = ()

    def called(self, batch: TextBatch) -> dict[str, Any]:
        """The entries of a batch that the model is called with.

        Raises:
          ValueError: one without which it cannot be called is not there.
        """
        if lacking := [name for name in self.needed if name not in batch]:
            raise ValueError(
                f"the model is called with the batch's entries by name and needs {lacking[0]!r}, the batch has "
                f"{', '.join(map(repr, batch)) or 'none'}: name its entries as the model's arguments are named"
            )
        return {key: value for key, value in batch.items() if self.names is None or key in self.names}


class MomentPass(NamedTuple):
    """A pass over text, compiled.

    Attributes:
      start: ``() -> sums`` of nothing, by name of the input.
      add: ``(params, batch, sums) -> sums`` with those of a batch, in place.
    """

    start: Callable[[], dict[str, SecondMoment]]
    add: Callable[[PyTree, TextBatch, dict[str, SecondMoment]], dict[str, SecondMoment]]


def moment_pass(
    model: Model,
    specs: Mapping[str, MatrixSpec | None],
    side: Side,
    inputs: Sequence[KernelInput],
    group: Mapping[str, Layers | None],
    mesh: jax.sharding.Mesh | None = None,
    unit_norm: bool = False,
) -> MomentPass:
    """The pass that sums the second moments of a group of inputs.

    Args:
      model: see `as_function`.
      specs: roles of the kernels, by path.
      side: ``"in"`` or ``"out"``.
      inputs: of the model, see `kernel_inputs`.
      group: names of those that are wanted, with their layers (``None``: all).
      mesh: that the moments' rows are spread over.
      unit_norm: whether each vector is divided by its norm first.

    Returns:
      A `MomentPass`. The sums are right on and below the diagonal.
    """
    wanted = {entry.name: entry for entry in inputs if entry.name in group}
    layers = {name: part for name, part in group.items() if part is not None}
    shardings = None if mesh is None else {name: _moment_sharding(entry, mesh) for name, entry in wanted.items()}

    def zeros() -> dict[str, SecondMoment]:
        return {name: entry.zeros(group[name]) for name, entry in wanted.items()}

    def add(params: PyTree, batch: TextBatch, moments: dict[str, SecondMoment]) -> dict[str, SecondMoment]:
        called, masks = model.called(batch), masks_of(batch)
        whole = mesh is not None
        return add_moments(model.apply, params, called, moments, specs, side, masks, layers, whole, unit_norm)

    return MomentPass(jax.jit(zeros, out_shardings=shardings), jax.jit(add, donate_argnums=2, out_shardings=shardings))


def as_function(model: Any, params: PyTree | None = None) -> Model:
    """A Flax NNX module, or a function ``model(params, **batch)``, as a `Model`.

    Raises:
      TypeError: neither.
    """
    if params is not None:
        check_function("model", model, "a function model(params, **batch), where params are given")
        return Model(lambda params, batch: model(params, **batch), params, *_keywords(model))
    if not _is_module(model):
        raise TypeError(f"model is a {type(model).__name__}; pass a Flax NNX module, or a function with params=")
    from flax import nnx

    graphdef, weights, *others = nnx.split(model, nnx.Param, ...)
    (rest,) = others
    names, needed = _keywords(type(model).__call__)
    return Model(lambda params, batch: nnx.merge(graphdef, params, rest, copy=True)(**batch), weights, names, needed)


def _is_module(model: Any) -> bool:
    """Whether it is a module of Flax NNX; without Flax, nothing is."""
    try:
        from flax import nnx
    except ImportError:
        return False
    return isinstance(model, nnx.Module)


def _keywords(function: Callable[..., Any]) -> tuple[set[str] | None, tuple[str, ...]]:
    """Names that a function takes (``None``: any), and those behind the first, which is not the batch's, it needs."""
    parameters = list(inspect.signature(function).parameters.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = tuple(p.name for p in parameters[1:] if p.kind in named and p.default is p.empty)
    return (None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}), needed


def masks_of(batch: TextBatch) -> Masks:
    """Masks of the two sides; the decoder's is its own or that of the labels."""
    decoder = batch.get("decoder_attention_mask", batch.get("label_mask"))
    as_array = lambda mask: None if mask is None else jnp.asarray(mask)  # noqa: E731
    return Masks(as_array(batch.get("attention_mask")), as_array(decoder))


def check_masks(batch: TextBatch) -> None:
    """Raises ``ValueError`` where a mask is one that is added to scores: 0 means the opposite there.

    Example:
      >>> check_masks({"attention_mask": jnp.array([[1, 0]]), "x": jnp.array([[-1.0, 2.0]])})
    """
    for name in ("attention_mask", "decoder_attention_mask", "label_mask"):
        if name in batch and not np.all(np.asarray(batch[name]) >= 0):
            raise ValueError(
                f"{name} has entries below 0 or nan, as masks have that are added to scores: it must be 0 where there "
                "is padding, and 1 elsewhere"
            )


def _moment_sharding(entry: KernelInput, mesh: jax.sharding.Mesh) -> SecondMoment:
    """Rows over all devices of a mesh, where they divide."""
    rows = mesh.axis_names if entry.dim % mesh.size == 0 else None
    spec = jax.sharding.PartitionSpec(*(None for _ in entry.stack), rows, None)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return SecondMoment(jax.sharding.NamedSharding(mesh, spec), everywhere)  # type: ignore[arg-type]
