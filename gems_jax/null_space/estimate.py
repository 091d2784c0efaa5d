"""The null space of a model, from general text."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.argument_checks import check_flag, check_matrix_rule, check_whole, refuse
from gems_jax.first_few import first_few
from gems_jax.linalg.matrix_dims import MatrixRule
from gems_jax.linalg.stacks import check_auto
from gems_jax.null_space.directions import (
    Directions,
    Rule,
    directions_of,
    stack_directions,
    warn_if_little_is_kept,
)
from gems_jax.null_space.fingerprint import weights_fingerprint
from gems_jax.null_space.moment_groups import moment_groups
from gems_jax.null_space.moment_pass import as_function, check_masks, masks_of, moment_pass
from gems_jax.null_space.observed_roles import observe_roles
from gems_jax.null_space.second_moment import SecondMoment, symmetric
from gems_jax.null_space.space import NullSpace, Side
from gems_jax.null_space.tracing.interpreter import mask_fits
from gems_jax.null_space.tracing.kernel_inputs import Inputs, kernel_inputs
from gems_jax.types import PyTree, TextBatch

Batches = Iterable[TextBatch] | Callable[[], Iterable[TextBatch]]


def estimate_null_space(
    model: Any,
    batches: Batches,
    *,
    energy: float | None = None,
    rank: int | float | None = None,
    threshold: float | None = None,
    max_directions: int | None = None,
    min_share: float | None = None,
    unit_norm: bool = False,
    side: Side = "in",
    memory_limit: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: bool = True,
    params: PyTree | None = None,
    matrix_dims: MatrixRule | None = None,
) -> NullSpace:
    """The general-domain null space of all kernels of a model, from general text.

    ``C = E[x x^T]`` of what each kernel is multiplied with (side ``in``) or yields (``out``), padding masked,
    no mean removed; principal directions as in `NullSpace.from_moments` (arXiv 2601.09496, section 3).

    One pass over the text, in which the moments of all layers are held at once: 4 bytes for each entry of
    ``C``, once for each distinct input. With a ``memory_limit`` that is less, one pass for each group of layers
    that fits, as far as the group's last layer. On the host one matrix at a time is decomposed, in float64.

    Args:
      model: a Flax NNX module, or a function ``model(params, **batch)`` with ``params``.
      batches: dictionaries of arrays, or a function that returns an iterator of them; those that the model's
        call names are passed to it. ``attention_mask`` and ``decoder_attention_mask`` (or ``label_mask``)
        ``[B, S]`` say which positions count; the latter for what depends on entries named ``decoder_...``.
      energy, rank, threshold: how many directions are protected; exactly one.
      max_directions, min_share: at most so many of each input, at least this share of them, see `Rule`.
      unit_norm: whether ``C = E[x x^T / |x|^2]``: every token counts alike, so that a few tokens of enormous norm, as
        language models have in some layers, do not take all of ``energy``. On SmolLM2-135M ``energy=0.85`` then
        leaves at most .22 of held-out tokens' energy (of unit norm each) outside in any layer; without it .99.
      side: ``"in"`` or ``"out"``.
      memory_limit: bytes that second moments may take on a device; beside them there is one layer's product.
      mesh: spreads the rows of each moment over its devices, and those of the batches, where they divide.
      progress: shows batches done and rate.
      params: parameters where ``model`` is a function.
      matrix_dims: which leaves are kernels, and which of their axes are inputs and outputs. By default (and with a
        guess, `default_matrix_dims` or `stacked_matrix_dims`) the pass shows it: what is multiplied with activations is
        a kernel, see `observe_roles`.

    Returns:
      A `NullSpace` with the weights' fingerprint and the kernels' roles. Kernels whose products with activations are
      not seen are not in it; a warning names them and says why, and so does `NullSpace.summary`, which also lists
      tables and heads.

    Raises:
      TypeError: an argument, or a batch, of another type (names it).
      ValueError: no batches, no kernels seen, a mask that is added to scores, a ``memory_limit`` below a single moment,
        or one that needs several passes over batches that can be read once.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"a": {"kernel": jnp.eye(3)}}
      >>> text = [{"x": jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}]
      >>> ns = estimate_null_space(lambda params, x: x @ params["a"]["kernel"], text, energy=0.7,
      ...                          params=params, progress=False)
      >>> ns.factor("a/kernel").kept.item()
      1
    """
    rule = Rule(energy, rank, threshold, max_directions, min_share)
    if side not in ("in", "out"):
        raise ValueError(f"side is {side!r}; choose 'in' or 'out'")
    for name, flag in (("unit_norm", unit_norm), ("progress", progress)):
        check_flag(name, flag)
    if memory_limit is not None:
        check_whole("memory_limit", memory_limit, what="a number of bytes")
    check_matrix_rule(matrix_dims)
    if not isinstance(mesh, jax.sharding.Mesh | None):
        refuse("mesh", mesh, "a jax.sharding.Mesh")
    function = as_function(model, params)
    if mesh is not None:
        check_auto(mesh)
        function = function._replace(params=jax.tree.map(lambda leaf: _on(mesh, leaf), function.params))
    read, first = _readable(batches)
    observed = observe_roles(function, first, matrix_dims)
    specs = observed.specs
    distinct = kernel_inputs(function.apply, function.params, function.called(first), specs, side, masks_of(first))
    remarks = observed.remarks | distinct.remarks
    if not distinct.inputs:
        kernels = first_few(specs or remarks, 3)
        raise ValueError(f"the model's pass uses none of its kernels ({kernels}) in products: {_listed(remarks)}")
    _warn(distinct, remarks, first)
    groups = moment_groups(distinct.inputs, memory_limit, 1 if mesh is None else mesh.size)
    if len(groups) > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"memory_limit={memory_limit} needs {len(groups)} passes over the text, but batches can be read once; "
            "give a list, or a function that returns an iterator"
        )
    directions: dict[str, list[Directions]] = {entry.name: [] for entry in distinct.inputs}
    num_batches: int | None = None
    for number, group in enumerate(groups):
        label = "calibrating" if len(groups) == 1 else f"calibrating, pass {number + 1} of {len(groups)}"
        start, add = moment_pass(function, specs, side, distinct.inputs, group, mesh, unit_norm)
        moments, seen = start(), 0
        for batch in _progress(read(), progress, label):
            _check_batch(f"batch {seen}", batch)
            check_masks(batch)
            moments = add(function.params, {key: _placed(value, mesh) for key, value in batch.items()}, moments)
            seen += 1
        if num_batches not in (None, seen):
            raise ValueError(f"batches gave {num_batches} batches at first and {seen} in pass {number + 1}")
        num_batches = seen
        for name in group:
            # One after the other: a moment is let go when it is decomposed.
            directions[name] += _decompose(name, moments.pop(name), rule, mesh)
    stacks = {entry.name: entry.stack for entry in distinct.inputs}
    inputs = dict(sorted(distinct.names().items()))
    factors = {name: stack_directions(directions[name], stacks[name]) for name in dict.fromkeys(inputs.values())}
    warn_if_little_is_kept(factors, energy)
    roles = {path: role for path, role in observed.roles.items() if role is None or path in inputs}
    fingerprint = weights_fingerprint(function.params, inputs)
    made_by = rule.given() | ({"unit_norm": 1.0} if unit_norm else {})
    return NullSpace(factors, inputs, side, fingerprint, made_by, roles, observed.left_out | remarks)


def observed_matrix_dims(model: Any, batch: TextBatch, params: PyTree | None = None) -> MatrixRule:
    """The matrix roles of a model's kernels as its forward pass uses them, as a rule for ``matrix_dims``.

    A leaf that is not multiplied with an activation has no role, nor have tables and heads, see `observe_roles`. The
    rule saves writing `MatrixDims` for the head-split kernels of ``nnx.MultiHeadAttention``, ``nnx.LinearGeneral`` and
    ``nnx.Einsum`` where no null space is estimated; a null space knows these roles itself.

    Args:
      model, params: see `estimate_null_space`.
      batch: arguments of a call; nothing is computed.

    Returns:
      A rule: ``(path, leaf) -> MatrixDims | None``.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"q": {"kernel": jnp.ones((4, 2, 3))}}
      >>> model = lambda params, x: jnp.einsum("bsm,mhd->bshd", x, params["q"]["kernel"])
      >>> observed_matrix_dims(model, {"x": jnp.ones((2, 6, 4))}, params)("q/kernel", params["q"]["kernel"])
      MatrixDims(in_axes=(0,), out_axes=(1, 2))
    """
    _check_batch("the batch", batch)
    roles = observe_roles(as_function(model, params), batch).roles
    return lambda path, leaf: roles.get(path)


def _decompose(name: str, moment: SecondMoment, rule: Rule, mesh: jax.sharding.Mesh | None) -> list[Directions]:
    everywhere = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    counts = np.maximum(np.asarray(moment.count), 1).reshape(-1)
    stack = moment.total.shape[:-2]
    take = jax.jit(_matrix_at, out_shardings=everywhere)

    def matrices() -> Iterator[np.ndarray]:
        for n, index in enumerate(np.ndindex(stack)):
            lower = np.asarray(take(moment.total, tuple(jnp.asarray(i) for i in index)), np.float64)
            yield symmetric(lower) / counts[n]

    return directions_of(name, matrices(), moment.total.shape[-1], rule)


def _matrix_at(total: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
    return total[index]


def _placed(value: Any, mesh: jax.sharding.Mesh | None) -> jax.Array:
    """An entry of a batch, its rows spread over a mesh where they divide."""
    if mesh is None:
        return jnp.asarray(value)
    rows = (mesh.axis_names,) if np.ndim(value) and len(value) % mesh.size == 0 else ()
    return jax.device_put(value, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*rows)))


def _on(mesh: jax.sharding.Mesh, leaf: jax.Array) -> jax.Array:
    """A parameter on the devices of a mesh: as it is if it is there already, else on each."""
    devices = getattr(getattr(leaf, "sharding", None), "device_set", None)
    if devices == set(mesh.devices.flat):
        return leaf
    return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _readable(batches: Batches) -> tuple[Callable[[], Iterable[TextBatch]], TextBatch]:
    """A function that gives all batches (again), and the first."""
    expected = "a list of dictionaries of arrays, by the names of the model's arguments, or a function that gives them"
    if isinstance(batches, Mapping | str | bytes) or not (callable(batches) or hasattr(batches, "__iter__")):
        refuse("batches", batches, expected)
    again = batches if callable(batches) else lambda: batches
    iterator = iter(again())
    first = next(iterator, None)
    if first is None:
        raise ValueError("no batches of general text to calibrate on")
    _check_batch("batch 0", first)
    if isinstance(batches, Iterator):

        def once() -> Iterator[TextBatch]:
            yield first
            yield from iterator

        return once, first
    return again, first


def _check_batch(name: str, batch: Any) -> None:
    if not isinstance(batch, Mapping):
        refuse(f"{name} of general text", batch, "a dictionary of arrays, by the names of the model's arguments")


def _warn(distinct: Inputs, remarks: Mapping[str, str], batch: TextBatch) -> None:
    if remarks:
        warnings.warn(f"not all uses of {len(remarks)} kernels are in the null space: {_listed(remarks)}", stacklevel=3)
    masks = masks_of(batch)
    if masks == (None, None) and (named := [name for name in batch if re.search("mask|padding", name, re.IGNORECASE)]):
        warnings.warn(
            f"all positions count: {', '.join(map(repr, named))} of the batch is not read under that name; call what "
            "says which are padding 'attention_mask' ([rows, positions], 0: padding) or 'decoder_attention_mask'",
            stacklevel=3,
        )
    for entry in distinct.inputs:
        if (use := distinct.unaligned.get(entry.name)) is None:
            continue
        mask = masks.decoder if use.is_decoder else masks.tokens
        assert mask is not None
        sizes = f"its input's positions {list(use.positions)} are those of the mask {list(mask.shape)}"
        warnings.warn(
            f"padding may be counted for kernel {_names(entry.kernels)}: that {sizes} is guessed from their sizes"
            if mask_fits(use.positions, mask.shape)
            else f"padding is counted for kernel {_names(entry.kernels)}: the program does not show which of {sizes}",
            stacklevel=3,
        )


def _names(kernels: Sequence[str], most: int = 8) -> str:
    return first_few(map(repr, kernels), most)


def _listed(remarks: Mapping[str, str], most: int = 5) -> str:
    return first_few((f"{path!r}: {text}" for path, text in remarks.items()), most, between="; ")


def _progress(batches: Iterable[TextBatch], show: bool, label: str) -> Iterable[TextBatch]:
    if not show:
        return batches
    try:
        from tqdm import tqdm
    except ImportError:
        return batches
    return tqdm(batches, desc=label, unit="batch")
