"""The null space of a model, from general text, in one pass."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gems_jax.capture import kernel_moments
from gems_jax.leaf_path import leaf_path
from gems_jax.matrix_dims import MatrixRule, MatrixSpec, matrix_specs, stacked_matrix_dims
from gems_jax.null_space import NullSpace, SecondMoment, Side, weights_fingerprint

PyTree = Any
Batch = Mapping[str, Any]


def estimate_null_space(
    model: Any,
    batches: Iterable[Batch],
    *,
    energy: float | None = None,
    rank: int | float | None = None,
    threshold: float | None = None,
    side: Side = "in",
    progress: bool = True,
    params: PyTree | None = None,
    matrix_dims: MatrixRule | None = None,
) -> NullSpace:
    """The general-domain null space of all kernels of a model, in one pass over general text.

    ``C = E[x x^T]`` of what each kernel is multiplied with (side ``in``) or yields (``out``), padding masked,
    no mean removed; principal directions as in `NullSpace.from_moments` (arXiv 2601.09496, section 3).

    Args:
      model: a Flax NNX module, or a function ``model(params, **batch)`` with ``params``.
      batches: dictionaries of arrays; those that the model's call names are passed to it. ``attention_mask``
        and ``decoder_attention_mask`` (or ``label_mask``) ``[B, S]`` say which positions count.
      energy, rank, threshold: how many directions are protected; exactly one.
      side: ``"in"`` or ``"out"``.
      progress: shows batches done and rate.
      params: parameters where ``model`` is a function.
      matrix_dims: which leaves are kernels; default `stacked_matrix_dims`.

    Returns:
      A `NullSpace` with the weights' fingerprint.

    Raises:
      ValueError: no batches, no kernels seen, or masks of one length that cannot be told apart.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"a": {"kernel": jnp.eye(3)}}
      >>> text = [{"x": jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}]
      >>> ns = estimate_null_space(lambda params, x: x @ params["a"]["kernel"], text, energy=0.7,
      ...                          params=params, progress=False)
      >>> ns.factor("a/kernel").kept.item()
      1
    """
    apply, params, names = _as_function(model, params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    rule = matrix_dims or stacked_matrix_dims
    specs: dict[str, MatrixSpec] = {
        leaf_path(path): spec
        for (path, _), spec in zip(leaves, matrix_specs(params, rule), strict=True)
        if spec is not None
    }
    if not specs:
        raise ValueError("the model has no kernels under matrix_dims; give a rule that names them")
    inputs: dict[str, str] = {}

    @jax.jit
    def moments_of(params: PyTree, batch: Batch) -> dict[str, SecondMoment]:
        masks = _masks(batch)
        called = {k: v for k, v in batch.items() if names is None or k in names}
        found, moments = kernel_moments(lambda params, batch: apply(params, batch), params, called, specs, side, masks)
        inputs.update(found)
        return moments

    total: dict[str, SecondMoment] | None = None
    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
    for batch in _progress(batches, progress):
        moments = moments_of(params, _told_apart(batch))
        total = moments if total is None else add(total, moments)
    if total is None:
        raise ValueError("no batches of general text to calibrate on")
    if not inputs:
        raise ValueError(f"the model's pass uses none of its kernels ({', '.join(list(specs)[:3])}, ...) in products")
    matrices = {name: moment.total / _per_matrix(moment) for name, moment in total.items()}
    by_kernel = {path: matrices[inputs[path]] for path in sorted(inputs)}
    return NullSpace.from_moments(
        by_kernel,
        energy=energy,
        rank=rank,
        threshold=threshold,
        side=side,
        fingerprint=weights_fingerprint(params, inputs),
    )


def _per_matrix(moment: SecondMoment) -> jax.Array:
    return jnp.maximum(moment.count, 1).astype(jnp.float32)[..., None, None]


def _as_function(model: Any, params: PyTree | None) -> tuple[Callable[[PyTree, Batch], Any], PyTree, set[str] | None]:
    """A function of parameters and batch, the parameters, and the batch entries it takes (None: all)."""
    if params is not None:
        return (lambda params, batch: model(params, **batch)), params, _keywords(model)
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(f"model is a {type(model).__name__}; pass a Flax NNX module, or a function with params=")
    graphdef, weights, *others = nnx.split(model, nnx.Param, ...)
    (rest,) = others
    return (
        lambda params, batch: nnx.merge(graphdef, params, rest)(**batch),
        weights,
        _keywords(type(model).__call__),
    )


def _keywords(function: Callable[..., Any]) -> set[str] | None:
    parameters = inspect.signature(function).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


def _masks(batch: Batch) -> dict[tuple[int, ...], jax.Array]:
    """Masks by their shape; the decoder's is its own or that of the labels."""
    masks: dict[tuple[int, ...], jax.Array] = {}
    decoder = "decoder_attention_mask" if "decoder_attention_mask" in batch else "label_mask"
    for name in ("attention_mask", decoder):
        if name in batch:
            masks[tuple(batch[name].shape)] = batch[name]
    return masks


def _told_apart(batch: Batch) -> Batch:
    """Pads the decoder's side by a masked position where both sides are of one length.

    A product's input is matched with its mask by shape, so the two lengths must differ.
    """
    batch = {key: jnp.asarray(value) for key, value in batch.items()}
    if "input_ids" not in batch or "decoder_input_ids" not in batch:
        return batch
    if batch["input_ids"].shape != batch["decoder_input_ids"].shape:
        return batch
    mask = batch.get("decoder_attention_mask", batch.get("label_mask", jnp.ones_like(batch["decoder_input_ids"])))
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 1)))  # noqa: E731
    return batch | {"decoder_input_ids": pad(batch["decoder_input_ids"]), "decoder_attention_mask": pad(mask)}


def _progress(batches: Iterable[Batch], show: bool) -> Iterable[Batch]:
    if not show:
        return batches
    try:
        from tqdm import tqdm
    except ImportError:
        return batches
    return tqdm(batches, desc="calibrating", unit="batch")
