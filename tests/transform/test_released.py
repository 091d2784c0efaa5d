"""The released optimiser where no stored trajectory reaches: stacks, task numbers, signs, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import difference, make_grads, make_null_space, make_params, run

import gems_jax as gj
from gems_jax.transform.released import released

STACK = {"stack": (2, 8, 6)}
RULE = lambda path, leaf: gj.MatrixDims()  # noqa: E731


@pytest.mark.slow
def test_a_stack_is_its_layers_and_any_number_of_tasks_goes():
    params = make_params(STACK)
    grads_of = lambda i: make_grads(i, 3, STACK)  # noqa: E731
    options = {"num_tasks": 3, "rank": 3, "gap": 2, "weight_decay": 0.1, "matrix_dims": RULE}
    ns, _ = make_null_space({"l0": 6, "l1": 6}, side="out")
    p = [np.eye(6) - (k := np.asarray(ns.factor(n).basis)) @ k.T for n in ("l0", "l1")]
    assert not ns.factor("l0").complement
    projectors = {"stack": jnp.asarray(np.stack(p), jnp.float32)}
    _, _, stacked = run(released(1e-2, null_space=projectors, **options), params, grads_of, 4)
    apart = {f"l{j}": params["stack"][j] for j in range(2)}
    each = lambda i: {f"l{j}": grads_of(i)["stack"][:, j] for j in range(2)}  # noqa: E731
    _, _, layers = run(released(1e-2, null_space=ns, **options), apart, each, 4)
    expected = [{"stack": np.stack([u["l0"], u["l1"]])} for u in layers]
    assert difference(stacked, expected) < 1e-4


def test_refreshes_count_from_one_and_signs_matter_across_them():
    shapes = {"w": (8, 6)}
    grads_of = lambda i: make_grads(i, shapes=shapes)  # noqa: E731
    seen = {}
    for signs in ("canonical", "lapack"):
        tx = released(1e-2, num_tasks=2, rank=3, gap=3, signs=signs)
        _, _, seen[signs] = run(tx, make_params(shapes), grads_of, 3)
    # Calls 1 and 2 share a basis, call 3 has a new one: only then the sign of a vector shows.
    assert difference(seen["lapack"][:2], seen["canonical"][:2]) < 1e-5
    assert difference(seen["lapack"][2], seen["canonical"][2]) > 1e-3


def test_projectors_are_not_left_to_the_compiler_of_init():
    ns, _ = make_null_space({"w": 6}, side="out")
    tx = released(1e-2, num_tasks=2, rank=3, null_space=ns)
    params = make_params({"w": (8, 6)})
    assert "dot_general" not in str(jax.make_jaxpr(tx.init)(params))
    np.testing.assert_array_equal(jax.jit(tx.init)(params).projectors["w"], tx.init(params).projectors["w"])


def test_a_null_space_of_the_input_side_and_values_out_of_range_are_refused():
    ns, _ = make_null_space({"w": 8})
    with pytest.raises(ValueError, match="estimate the null space with side='out'"):
        released(1e-2, num_tasks=2, rank=3, null_space=ns)
    with pytest.raises(ValueError, match="at least 1"):
        released(1e-2, num_tasks=2, rank=3, gap=0)
    with pytest.raises(ValueError, match="signs is 'any'"):
        released(1e-2, num_tasks=2, rank=3, signs="any")
