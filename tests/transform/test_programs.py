"""What the programs of a step contain, read from their jaxprs: nothing is compiled."""

import jax
import numpy as np
import pytest
from problems import make_grads, make_null_space, make_params

import gems_jax as gj

SHAPES = {"a": (8, 6), "b": (8, 6), "stack": (3, 6, 8), "bias": (6,)}
SPECTRAL = {"svd", "eigh", "eig", "schur"}
DECOMPOSITIONS = SPECTRAL | {"geqrf", "householder_product", "qr", "cholesky", "lu"}


def jaxprs_in(value):
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr
    elif isinstance(value, list | tuple):
        for part in value:
            yield from jaxprs_in(part)


def decompositions(jaxpr, inside_cond=False):
    """Pairs ``(primitive, whether a cond decides if it runs)`` of all that decompose."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in DECOMPOSITIONS:
            yield name, inside_cond
        is_cond = name == "cond" and eqn.invars[0].aval.shape == ()
        for value in eqn.params.values():
            for inner in jaxprs_in(value):
                yield from decompositions(inner, inside_cond or is_cond)


def program(**options):
    """The decompositions in one step, see `step_of`."""
    return list(decompositions(step_of(**options)))


def decisions(jaxpr):
    """Conds that a step meets where none of them is true, and those that they may lead to."""
    met, deeper = 0, 0
    for eqn in jaxpr.eqns:
        inner = [found for value in eqn.params.values() for found in jaxprs_in(value)]
        # Not those that are between platforms, which are no decisions of a program.
        is_cond = eqn.primitive.name == "cond" and eqn.params.get("branches_platforms") is None
        if is_cond and eqn.invars[0].aval.shape == ():
            met += 1
            deeper += sum(sum(decisions(one)) for one in inner)
        else:
            for one in inner:
                more = decisions(one)
                met, deeper = met + more[0], deeper + more[1]
    return met, deeper


def step_of(**options):
    """The jaxpr of one step of a transform with a null space, a stack and a group of equal kernels."""
    params = make_params(SHAPES)
    rule = lambda path, leaf: gj.MatrixDims() if len(leaf.shape) > 1 else None  # noqa: E731
    ns, _ = make_null_space({"a": 8, "b": 8})
    options = {"refresh_every": 4, "null_space": ns, "matrix_dims": rule} | options
    tx = gj.gems(1e-3, num_tasks=2, rank=3, **options)
    state = jax.eval_shape(tx.init, params)
    step = jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p, task_losses=np.ones(2, np.float32)))
    return step(make_grads(0, shapes=SHAPES), state, params).jaxpr


@pytest.mark.parametrize(("stagger", "asked"), [(False, 1), (True, 2)], ids=["at once", "staggered"])
def test_a_step_asks_once_whether_any_basis_is_due_however_many_groups_there_are(stagger, asked):
    # A device waits for each answer. The second is whether it is the turn of a few members of any stack.
    met, deeper = decisions(step_of(decomposition="svd", stagger=stagger))
    assert met == asked
    assert deeper >= 2  # then each of the two groups decides for itself


@pytest.mark.parametrize(
    "options",
    [
        {"decomposition": "svd"},
        {"decomposition": "eigh", "signs": "align", "complementary": True},
        {"decomposition": "eigh", "stagger": True},
        {"decomposition": "subspace", "moments": "reset", "gate": gj.gates.learned()},
        {"decomposition": "eigh", "refresh_every": lambda count: count % 3 == 0},
    ],
    ids=["svd", "eigh", "staggered", "subspace", "callable"],
)
def test_steps_without_a_refresh_decompose_nothing(options):
    """Every decomposition waits behind a scalar flag: a batched one would run it at every step."""
    found = program(**options)
    assert found
    assert all(waits for _, waits in found), found


def test_subspace_iteration_takes_no_spectral_decomposition():
    names = {name for name, _ in program(decomposition="subspace")}
    assert names
    assert not names & SPECTRAL
    for method in ("svd", "eigh"):
        assert method in {name for name, _ in program(decomposition=method)}


def test_a_step_holds_no_array_of_parameters_as_a_constant():
    """Factors closed over would be constants of every program: they are arguments, in the state."""
    ns, _ = make_null_space({"a": 8, "b": 8})
    params = make_params(SHAPES)
    tx = gj.gems(1e-3, num_tasks=2, rank=3, null_space=ns, weight_decay=0.1)
    jaxpr = jax.make_jaxpr(tx.update)(make_grads(0, shapes=SHAPES), jax.eval_shape(tx.init, params), params)
    assert max((np.size(c) for c in jaxpr.consts), default=0) < ns.factor("a").basis.size
