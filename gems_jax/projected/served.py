"""Which kernels of a model the transform's bases can be multiplied with inside its program, and why others cannot."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.leaf_path import named_leaves
from gems_jax.projected.kernel_notes import Notes
from gems_jax.projected.kernel_view import KernelView, Part, first_view
from gems_jax.projected.program import plain, run_program
from gems_jax.projected.whole_options import option_for_whole
from gems_jax.task_batch import check_tasks, telling_leaves
from gems_jax.transform.init_plans import InitPlan, init_shapes
from gems_jax.transform.plan import Group, KernelPlan
from gems_jax.transform.settings import Settings
from gems_jax.transform.state import GemsState, gems_states, work_dtype
from gems_jax.types import PyTree


class LossProgram(NamedTuple):
    """The program of a loss of one task's batch.

    Attributes:
      jaxpr: closed; its inputs are the leaves of parameters and batch.
      result: structure of what it returns.
    """

    jaxpr: Any
    result: Any


def loss_program(loss_fn: Callable[[PyTree, PyTree], Any], params: PyTree, task_batch: PyTree) -> LossProgram:
    """The program of ``loss_fn(params, batch)`` for one task of a batch ``[T, B, ...]``; nothing is computed."""
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes_of(task_batch))
    with telling_leaves(task_batch):
        jaxpr, result = jax.make_jaxpr(loss_fn, return_shape=True)(shapes_of(params), batch)
    return LossProgram(jaxpr, jax.tree.structure(result))


def run_loss(program: LossProgram, args: Sequence[Any], notes: Notes) -> list[Any]:
    """The leaves that the loss returns, of leaves of parameters, kernels among them as views, and of a batch."""
    loss, *aux = run_program(program.jaxpr.jaxpr, program.jaxpr.consts, args, notes)
    # Nothing is differentiated by way of aux: a kernel in it is an array like others.
    aux = [x.value if isinstance(x, KernelView) else x for x in aux]
    return [*plain([loss], notes, "it is the loss"), *aux]


def shapes_of(tree: PyTree) -> PyTree:
    """Of arrays, numbers or shapes."""
    return jax.eval_shape(lambda tree: tree, tree)


@dataclasses.dataclass(frozen=True)
class Served:
    """A GEMS transform, and the kernels of it that are served.

    Attributes:
      program: of the loss.
      entry: the transform's plan.
      state: its state.
      leaves: number of each leaf of the plan among all parameters.
      groups: of served kernels.
      refused: why the others are not, by path.
      kept: bytes that the backward pass keeps for each kernel's products, by path.
    """

    program: LossProgram
    entry: InitPlan
    state: GemsState
    leaves: dict[int, int]
    groups: tuple[Group, ...]
    refused: dict[str, str]
    kept: dict[str, int]

    @property
    def settings(self) -> Settings:
        return self.entry.settings

    @property
    def kernels(self) -> list[KernelPlan]:
        return [k for group in self.groups for k in group]


def find_served(
    loss_fn: Callable[[PyTree, PyTree], Any], tx: Any, opt_state: PyTree, params: PyTree, task_batch: PyTree
) -> Served:
    """The GEMS transform inside ``tx``, with the kernels that are served.

    Args:
      loss_fn, tx: see `gems_jax.projected_task_grads`.
      opt_state: its state, or ``None``: the shapes of one.
      params, task_batch: arrays, or their shapes.

    Raises:
      ValueError: there is none, or several, the state is not that of ``tx`` and these parameters, or the batch has
        another number of tasks.
    """
    _, plans = init_shapes(tx, shapes_of(params))
    if len(plans) != 1:
        raise ValueError(
            f"tx contains {len(plans)} transforms of gems: projected gradients are products with the bases of one; use "
            "task_value_and_grad"
        )
    (entry,) = plans
    states = [entry.state] if opt_state is None else gems_states(opt_state)
    if [_form(state) for state in states] != [_form(entry.state)]:
        raise ValueError("opt_state is not what tx.init(params) makes: pass the state of this tx and these parameters")
    check_tasks(task_batch, entry.settings.num_tasks)
    params = shapes_of(params)
    number = _numbers(params, entry)
    program = loss_program(loss_fn, params, task_batch)
    dtypes = {path: leaf.dtype for path, leaf in named_leaves(params)}
    kernels, refused = _wanted(entry, dtypes)
    notes = _try(program, {number[k.path]: k for k in kernels}, len(dtypes), entry.settings.num_tasks)
    refused |= notes.refused
    groups = (tuple(k for k in group if k in kernels and k.path not in refused) for group in entry.plan.groups)
    leaves = {i: number[path] for i, path in enumerate(entry.plan.paths)}
    return Served(program, entry, states[0], leaves, tuple(group for group in groups if group), refused, notes.kept)


def _numbers(params: PyTree, entry: InitPlan) -> dict[str, int]:
    """Number of each leaf of the parameters by its path.

    Raises:
      ValueError: two have the same path, or the transform gets other leaves than these.
    """
    paths = [path for path, _ in named_leaves(params)]
    number = {path: i for i, path in enumerate(paths)}
    twice = [path for i, path in enumerate(paths) if number[path] != i]
    if twice:
        raise ValueError(f"two parameters have the path {twice[0]!r}: rename one, kernels are found by their paths")
    other = [path for path in entry.plan.paths if path not in number]
    if other:
        raise ValueError(
            f"gems inside tx gets a leaf {other[0]!r} that is no parameter (as inside optax.flatten): projected "
            "gradients need the parameters' own leaves; use task_value_and_grad"
        )
    return number


def _form(state: GemsState) -> tuple[Any, list[tuple[int, ...]]]:
    """Its structure, and its bases' shapes."""
    return jax.tree.structure(state), [x.shape for x in jax.tree.leaves((state.shared_basis, state.task_basis))]


def _wanted(entry: InitPlan, dtypes: Mapping[str, Any]) -> tuple[list[KernelPlan], dict[str, str]]:
    """Kernels of a plan that may be served by its options, and why the others may not."""
    settings, moving = entry.settings, [k for k in entry.plan.kernels if k.rank > 0]
    why = _option_against(settings)
    if why is not None:
        return [], {k.path: why for k in moving}
    complex_ones = {k.path: "it is complex" for k in moving if jnp.issubdtype(dtypes[k.path], jnp.complexfloating)}
    return [k for k in moving if k.path not in complex_ones], complex_ones


def _option_against(settings: Settings) -> str | None:
    """The option under which a step needs whole gradients, in words."""
    gate, has_task_bases = settings.gate.needs_progress, settings.task_rank != 0
    option = option_for_whole(
        settings.decomposition, settings.constraint, settings.stagger, settings.recovery, gate, has_task_bases
    )
    words = {
        "decomposition": f"decomposition {settings.decomposition!r} is of the whole gradient",
        "constraint": "constraint 'gradient' projects the whole gradient",
        "stagger": "a staggered refresh is of the whole gradient of a few kernels",
        "recovery": "recovery adds what of the whole gradient lies outside the bases",
        "gate": "the gate scores each task's former update against the other tasks' gradients",
    }
    return None if option is None else words[option]


def _try(program: LossProgram, kernels: dict[int, KernelPlan], leaves: int, num_tasks: int) -> Notes:
    """Notes of a run of the program on shapes, with bases of each kernel's ranks."""
    notes = Notes()

    def run(leaves: Sequence[Any], pairs: dict[int, list[Any]], rest: Sequence[Any]) -> list[Any]:
        parts = {i: [Part(basis, carrier, kernels[i].side) for basis, carrier in some] for i, some in pairs.items()}
        args = with_views(leaves, kernels, parts)
        return run_loss(program, [*args, *rest], notes.repeated(num_tasks))

    inputs = program.jaxpr.jaxpr.invars
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in inputs]
    pairs = {
        i: [_empty_pair(k, columns, work_dtype(avals[i].dtype)) for columns in (k.rank, k.task_rank) if columns]
        for i, k in kernels.items()
    }
    jax.eval_shape(run, avals[:leaves], pairs, avals[leaves:])
    for k in kernels.values():
        if k.path not in notes.kept:
            notes.refuse(k.path, "the loss does not multiply anything with it")
    return notes


def _empty_pair(kernel: KernelPlan, columns: int, dtype: Any) -> tuple[Any, Any]:
    """Shapes of a basis of this many columns and of its carrier, without the stack of one of a single kernel."""
    lead = kernel.spec.batch_shape
    basis = jax.ShapeDtypeStruct((*lead, kernel.kept, columns), dtype)
    return basis, jax.ShapeDtypeStruct((*lead, columns, kernel.other), dtype)


def with_views(
    leaves: Sequence[Any], kernels: Mapping[int, KernelPlan], parts: Mapping[int, Sequence[Part]]
) -> list[Any]:
    """The parameters' leaves, kernels as views with their parts, both by leaf."""
    args = list(leaves)
    for i, kernel in kernels.items():
        args[i] = first_view(kernel, leaves[i], parts[i])
    return args
