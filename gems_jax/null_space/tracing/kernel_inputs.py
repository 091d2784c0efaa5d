"""Second moments of every kernel's inputs or outputs, from the program of a forward pass.

The forward pass is traced to a jaxpr, in which `find_uses` finds what kernels are multiplied with, and run again,
step by step, adding the second moment of each of these. This sees any model (NNX, Linen, plain functions) as it
is. An input that several kernels share is counted once. Since the pass's own outputs are not asked for, the
compiler drops what only they need: the vocabulary logits, and the layers behind the last one that is counted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax

from gems_jax.leaf_path import named_leaves
from gems_jax.linalg.matrix_dims import MatrixDims, MatrixSpec
from gems_jax.linalg.sizes import real_dtype
from gems_jax.null_space.second_moment import SecondMoment
from gems_jax.null_space.tracing.interpreter import Layers, Run, evaluate
from gems_jax.null_space.tracing.kernel_products import Use
from gems_jax.null_space.tracing.kernel_tags import Scope
from gems_jax.null_space.tracing.kernel_uses import find_uses
from gems_jax.null_space.tracing.position_masks import Masks, Unknown, position_mask, token_axes_of
from gems_jax.null_space.tracing.token_axes import TokenAxes
from gems_jax.types import PyTree

Apply = Callable[[PyTree, PyTree], Any]


@dataclass(frozen=True)
class KernelInput:
    """An input (or output) of one or several kernels.

    Attributes:
      name: path of the first of its kernels.
      kernels: paths of all of them.
      stack: ``[L]`` and the like where each layer has its own, else empty.
      dim: dimension of the vectors.
      uses: where in the program it is.
    """

    name: str
    kernels: tuple[str, ...]
    stack: tuple[int, ...]
    dim: int
    uses: tuple[Use, ...]

    @property
    def is_divisible(self) -> bool:
        """Whether the moments of some layers can be taken without the others'."""
        return bool(self.stack) and all(isinstance(use.slots[0], int | tuple) for use in self.uses)

    @property
    def bytes_of_layer(self) -> int:
        """Size of the moments of one layer, or of all if they are not divisible."""
        matrices = math.prod(self.stack[1:]) if self.is_divisible else math.prod(self.stack)
        return self.dtype.itemsize * self.dim**2 * matrices

    @property
    def dtype(self) -> Any:
        """Type of the moments."""
        return real_dtype(use.var.aval.dtype for use in self.uses)

    def zeros(self, layers: Layers | None = None) -> SecondMoment:
        """Empty moments of these layers."""
        stack = self.stack if layers is None else (layers[1] - layers[0], *self.stack[1:])
        return SecondMoment.zeros(self.dim, stack, self.dtype)


class Inputs(NamedTuple):
    """The distinct inputs in the order in which a forward pass meets them, and remarks about kernels by path.

    Attributes:
      inputs: see `KernelInput`.
      remarks: uses of kernels that are not among them.
      roles: which axes of a kernel products with activations show as its inputs and outputs.
      missed: kernels that meet activations in a way that is not followed, and how.
      tables: leaves whose rows are looked up.
      unaligned: inputs, by name, of which it is not known where they stand along the batch's masks, with such a use.
    """

    inputs: tuple[KernelInput, ...]
    remarks: dict[str, str]
    roles: dict[str, MatrixDims]
    missed: dict[str, str]
    tables: tuple[str, ...]
    unaligned: dict[str, Use]

    def names(self) -> dict[str, str]:
        """Name of its input for each kernel."""
        return {path: entry.name for entry in self.inputs for path in entry.kernels}


def kernel_inputs(
    apply: Apply,
    params: PyTree,
    batch: PyTree,
    specs: Mapping[str, MatrixSpec | None],
    side: str = "in",
    masks: Masks | None = None,
) -> Inputs:
    """The distinct inputs of the named kernels in a forward pass; nothing is computed.

    Args:
      apply: ``apply(params, batch)``, any JAX code.
      params: tree of arrays, or of their shapes and dtypes.
      batch: tree of arrays, or of their shapes and dtypes.
      specs: matrix roles of the wanted kernels, by path; with ``None`` the role is observed.
      side: ``"in"``: what each kernel is multiplied with; ``"out"``: the product.
      masks: of the batch.

    Returns:
      `Inputs`.

    Example:
      >>> import jax.numpy as jnp
      >>> from gems_jax.linalg.matrix_dims import MatrixDims, resolve
      >>> params = {"q": jnp.ones((2, 3)), "k": jnp.ones((2, 3))}
      >>> apply = lambda p, x: (x @ p["q"]) * (x @ p["k"])
      >>> specs = {name: resolve(MatrixDims(), (2, 3)) for name in params}
      >>> [entry.kernels for entry in kernel_inputs(apply, params, jnp.ones((5, 2)), specs).inputs]
      [('k', 'q')]
    """
    return _program(apply, params, batch, specs, side, masks or Masks())[1]


def add_moments(
    apply: Apply,
    params: PyTree,
    batch: PyTree,
    moments: Mapping[str, SecondMoment],
    specs: Mapping[str, MatrixSpec | None],
    side: str = "in",
    masks: Masks | None = None,
    layers: Mapping[str, Layers] | None = None,
    whole_rows: bool = False,
    unit_norm: bool = False,
) -> dict[str, SecondMoment]:
    """Adds the second moments of one batch, in one forward pass.

    Args:
      apply, params, batch, specs, side: see `kernel_inputs`.
      moments: sums so far by name of the input; other inputs are not looked at. Right on and below the diagonal.
      masks: which positions count; default all.
      layers: of inputs by name, the layers that their moments are of; default all.
      whole_rows: whether matrices are added whole: for moments whose rows lie on several devices.
      unit_norm: whether each vector is divided by its norm first.

    Returns:
      The sums by name, as ``moments``.

    Raises:
      ValueError: the pass does not have these inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from gems_jax.linalg.matrix_dims import MatrixDims, resolve
      >>> params, specs = {"w": jnp.ones((2, 3))}, {"w": resolve(MatrixDims(), (2, 3))}
      >>> x = jnp.array([[1.0, 2.0]])
      >>> sums = add_moments(lambda p, x: x @ p["w"], params, x, {"w": SecondMoment.zeros(2)}, specs)
      >>> sums["w"].total.tolist()
      [[1.0, 2.0], [2.0, 4.0]]
    """
    masks = masks or Masks()
    closed, inputs, token_axes = _program(apply, params, batch, specs, side, masks)
    by_name = {entry.name: entry for entry in inputs.inputs}
    if missing := sorted(set(moments) - set(by_name)):
        raise ValueError(
            f"this batch's pass has no input of its own at {missing[0]!r}, as the first batch's had: "
            "calibrate with batches of one kind"
        )
    actions: dict[Scope, dict[Any, list[tuple[str, Use]]]] = {}
    for name in moments:
        for use in by_name[name].uses:
            actions.setdefault(use.scope, {}).setdefault(use.var, []).append((name, use))
    run = Run(actions, dict(layers or {}), masks, token_axes, whole_rows, unit_norm, {}, dict(moments))
    evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((params, batch)), (), run)
    return run.moments


def _program(
    apply: Apply, params: PyTree, batch: PyTree, specs: Mapping[str, MatrixSpec | None], side: str, masks: Masks
) -> tuple[Any, Inputs, TokenAxes]:
    # A function of its own: one and the same would be traced once for all, its constants those of that time.
    closed = jax.make_jaxpr(lambda params, batch: apply(params, batch))(params, batch)
    paths = [path for path, _ in named_leaves(params)]
    names = [name for name, _ in named_leaves(batch)]
    wanted = {i: specs[path] for i, path in enumerate(paths) if path in specs}
    is_decoder = [name.startswith("decoder_") for name in names]
    uses_by_leaf = find_uses(closed.jaxpr, wanted, side, is_decoder)
    token_axes = token_axes_of(closed.jaxpr, len(paths), is_decoder, masks)
    shared: dict[Any, list[int]] = {}
    for leaf, uses in uses_by_leaf.uses.items():
        shared.setdefault((uses, _stack(uses, wanted[leaf])), []).append(leaf)
    inputs = []
    for (uses, stack), leaves in shared.items():
        kernels = tuple(sorted(paths[leaf] for leaf in leaves))
        spec = wanted[leaves[0]]
        assert spec is not None
        inputs.append(KernelInput(kernels[0], kernels, stack, spec.matrix_shape[0 if side == "in" else 1], uses))
    said = lambda texts: f"it {' and '.join(texts)}"  # noqa: E731
    missed = {paths[leaf]: said(texts) for leaf, texts in uses_by_leaf.missed.items()}
    remarks = missed | {paths[leaf]: said(texts) for leaf, texts in uses_by_leaf.elsewhere.items()}
    for leaf in wanted:
        if leaf not in uses_by_leaf.uses and leaf not in uses_by_leaf.roles:
            remarks.setdefault(paths[leaf], "the pass does not use it")
    roles = {paths[leaf]: role for leaf, role in uses_by_leaf.roles.items()}
    tables = tuple(paths[leaf] for leaf in uses_by_leaf.tables)
    unaligned = _unaligned(inputs, token_axes, masks)
    return closed, Inputs(tuple(inputs), remarks, roles, missed, tables, unaligned), token_axes


def _unaligned(inputs: Sequence[KernelInput], token_axes: TokenAxes, masks: Masks) -> dict[str, Use]:
    unaligned = {}
    for entry in inputs:
        for use in entry.uses:
            try:
                jax.eval_shape(partial(position_mask, use, token_axes, masks, {}))
            except Unknown:
                unaligned[entry.name] = use
    return unaligned


def _stack(uses: Sequence[Use], spec: MatrixSpec | None) -> tuple[int, ...]:
    assert spec is not None
    return () if all(slot == "all" for use in uses for slot in use.slots) else spec.batch_shape
