"""A kernel on its way through a program: which of its axes the axes of the present value are."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from gems_jax.transform.plan import KernelPlan


class Refused(Exception):
    """A use of a kernel that products with bases cannot stand for; the text says which."""


class Atom(NamedTuple):
    """A part of a kernel's axis: all of it, or after a reshape one of its factors, by their order."""

    axis: int
    place: tuple[int, ...]
    size: int


Dim = tuple[Atom, ...]  # an axis of a view, which several of the kernel's may have been flattened into


class Part(NamedTuple):
    """A basis, and the zeros whose cotangent is the gradient's product with it.

    Attributes:
      basis: ``[*stack, d, r]``.
      carrier: ``[*stack, r, e]`` zeros.
      spans: the side of the kernel, ``"in"`` or ``"out"``, that ``d`` is.
    """

    basis: jax.Array
    carrier: jax.Array
    spans: str


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["value", "bases", "carriers"], meta_fields=["spans", "form"]
)
@dataclasses.dataclass(frozen=True)
class KernelView:
    """A kernel's value in a program, cast, transposed, reshaped or a layer of it, with its bases beside it.

    Attributes:
      value: the array that the program has here.
      bases, carriers, spans: see `Part`.
      form: what the axes are.
    """

    value: Any
    bases: tuple[Any, ...]
    carriers: tuple[Any, ...]
    spans: tuple[str, ...]
    form: "Form"

    @property
    def parts(self) -> list[Part]:
        return [Part(*part) for part in zip(self.bases, self.carriers, self.spans, strict=True)]


@dataclasses.dataclass(frozen=True)
class Form:
    """The axes of a view.

    Attributes:
      path: of the kernel.
      sides: ``"in"`` and ``"out"``: the kernel's axes that are, in the order of its matrix.
      dims: of the value.
      stack: the leading axes of bases and carriers: those of the kernel's stack that are left.
    """

    path: str
    sides: tuple[tuple[str, tuple[int, ...]], ...]
    dims: tuple[Dim, ...]
    stack: tuple[Atom, ...]

    def side_of(self, atoms: Sequence[Atom]) -> str | None:
        """The side that these are all of, ``None`` if there is none."""
        for side, _ in self.sides:
            if set(atoms) == set(self.atoms_of(side)):
                return side
        return None

    def atoms_of(self, side: str) -> tuple[Atom, ...]:
        """The parts of a side's axes, in the order of the kernel's matrix; without those of size one."""
        axes = dict(self.sides)[side]
        mine = [atom for atom in itertools.chain(*self.dims) if atom.axis in axes]
        return tuple(sorted(mine, key=lambda atom: (axes.index(atom.axis), atom.place)))


def first_view(kernel: KernelPlan, value: Any, parts: Sequence[Part]) -> KernelView:
    """A kernel as the program gets it."""
    spec = kernel.spec
    batch = len(spec.batch_shape)
    rest = spec.order[batch:]
    split = next(n for n in range(1, len(rest)) if math.prod(spec.shape[a] for a in rest[:n]) == spec.matrix_shape[0])
    atoms = [Atom(axis, (), size) for axis, size in enumerate(spec.shape)]
    form = Form(
        kernel.path,
        (("in", rest[:split]), ("out", rest[split:])),
        tuple((atom,) if atom.size > 1 else () for atom in atoms),
        tuple(atoms[axis] for axis in spec.order[:batch]),
    )
    bases, carriers, spans = zip(*parts, strict=True)
    return _without_ones(KernelView(value, bases, carriers, spans, form))


def _without_ones(view: KernelView) -> KernelView:
    """Stacks of one are no stacks: axes of size one carry nothing, in the value and beside it."""
    ones = tuple(axis for axis, atom in enumerate(view.form.stack) if atom.size == 1)
    if not ones:
        return view
    squeeze = lambda x: x.reshape(*(n for axis, n in enumerate(x.shape) if axis not in ones))  # noqa: E731
    stack = tuple(atom for atom in view.form.stack if atom.size > 1)
    return dataclasses.replace(
        view,
        bases=tuple(map(squeeze, view.bases)),
        carriers=tuple(map(squeeze, view.carriers)),
        form=dataclasses.replace(view.form, stack=stack),
    )


def with_dims(view: KernelView, value: Any, dims: Sequence[Dim]) -> KernelView:
    """A view of the same parts of a kernel, its value moved."""
    return dataclasses.replace(view, value=value, form=dataclasses.replace(view.form, dims=tuple(dims)))


def reshaped(view: KernelView, value: Any, shape: Sequence[int]) -> KernelView:
    """After a reshape: axes are flattened together, or split.

    Raises:
      Refused: an axis of the result has parts of several of the kernel's axes, and not all of each.
    """
    atoms = list(itertools.chain(*view.form.dims))
    dims: list[Dim] = []
    cut: dict[Atom, list[Atom]] = {}
    for size in shape:
        taken: list[Atom] = []
        while size > 1:
            if not atoms:
                raise Refused("it is reshaped across its axes")
            atom = atoms.pop(0)
            if size % atom.size == 0:
                taken.append(atom)
                size //= atom.size
            elif atom.size % size == 0:
                pieces = [Atom(atom.axis, (*atom.place, 0), size), Atom(atom.axis, (*atom.place, 1), atom.size // size)]
                cut[atom] = pieces
                taken.append(pieces[0])
                atoms.insert(0, pieces[1])
                size = 1
            else:
                raise Refused("it is reshaped across its axes")
        dims.append(tuple(taken))
    if any(atom in view.form.stack for atom in cut):
        raise Refused("its stack is reshaped")
    return with_dims(view, value, dims)


def layer(view: KernelView, value: Any, dim: int, cut: Any) -> KernelView:
    """After a slice of one entry of an axis that is a stack of layers; ``cut(x, axis)`` slices what is beside it.

    Raises:
      Refused: the axis is no stack.
    """
    axis = _stack_axis(view, dim)
    dims = tuple(() if i == dim else d for i, d in enumerate(view.form.dims))
    stack = tuple(atom for i, atom in enumerate(view.form.stack) if i != axis)
    one = lambda x: cut(x, axis).reshape(*x.shape[:axis], *x.shape[axis + 1 :])  # noqa: E731
    return dataclasses.replace(
        view,
        value=value,
        bases=tuple(map(one, view.bases)),
        carriers=tuple(map(one, view.carriers)),
        form=dataclasses.replace(view.form, dims=dims, stack=stack),
    )


def stack_first(view: KernelView) -> KernelView:
    """With the stack that its first axis is as the first of all arrays: as a scan over it takes them.

    Raises:
      Refused: the first axis is no stack.
    """
    if view.form.dims[0]:
        axis = _stack_axis(view, 0)
        order = (axis, *(i for i in range(len(view.form.stack)) if i != axis))
        move = lambda x: x.transpose(*order, *range(len(order), x.ndim))  # noqa: E731
        stack = tuple(view.form.stack[i] for i in order)
    else:  # of size one: bases and carriers are without it
        move = lambda x: x[None]  # noqa: E731
        stack = (Atom(-1, (), 1), *view.form.stack)
    return dataclasses.replace(
        view,
        bases=tuple(map(move, view.bases)),
        carriers=tuple(map(move, view.carriers)),
        form=dataclasses.replace(view.form, stack=stack),
    )


def entered(view: KernelView) -> KernelView:
    """Inside a scan over the first axis, whose arrays have lost it."""
    form = dataclasses.replace(view.form, dims=view.form.dims[1:], stack=view.form.stack[1:])
    return dataclasses.replace(view, form=form)


def _stack_axis(view: KernelView, dim: int) -> int:
    atoms = view.form.dims[dim]
    if len(atoms) != 1 or atoms[0] not in view.form.stack:
        raise Refused("it is sliced, or scanned over, along an axis that is no stack of layers")
    return view.form.stack.index(atoms[0])
