"""The nearest orthogonal matrix, beside singular value decompositions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gems_jax.linalg.polar import nearest_orthogonal
from gems_jax.linalg.subspace import align

SIZE = 12
nearest = jax.jit(nearest_orthogonal)
EVERY = jnp.ones((1, SIZE), bool)


def matrix(values, seed):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(len(values), len(values))))[0] for _ in range(2))
    return left * np.asarray(values) @ right, left @ right


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    smallest=st.sampled_from([1.0, 0.3, 1e-2, 1e-4, 1e-7, 0.0]), many=st.integers(0, SIZE), seed=st.integers(0, 10**6)
)
def test_the_nearest_orthogonal_matrix_is_found_whatever_the_singular_values(smallest, many, seed):
    values = np.concatenate([np.ones(SIZE - many), np.full(many, smallest)])
    given_matrix, exact = matrix(values, seed)
    found = np.asarray(nearest(jnp.asarray(given_matrix, jnp.float32), EVERY), np.float64)
    np.testing.assert_allclose(found.T @ found, np.eye(SIZE), atol=2e-6)
    # No orthogonal matrix has a larger trace than the sum of the singular values.
    assert np.trace(found.T @ given_matrix) == pytest.approx(values.sum(), abs=2e-5)
    if smallest >= 1e-2:
        np.testing.assert_allclose(found, exact, atol=1e-4)


@pytest.mark.slow
def test_a_singular_value_of_zero_is_completed_even_where_nothing_is_rounded():
    found = np.asarray(nearest_orthogonal(jnp.diag(jnp.array([1.0, 0.0, 0.5, 0.0])), jnp.ones((1, 4), bool)))
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=2e-6)
    np.testing.assert_allclose(found[[0, 2]][:, [0, 2]], np.eye(2), atol=1e-4)


@pytest.mark.slow
def test_what_is_not_there_stays_exactly_as_it_is():
    inner, exact = matrix([0.9, 0.5, 0.2], 3)
    padded = np.zeros((5, 5))
    padded[np.ix_([0, 2, 3], [0, 2, 3])] = inner
    there = jnp.array([[True, False, True, True, False]])
    found = np.asarray(nearest_orthogonal(jnp.asarray(padded, jnp.float32), there))
    np.testing.assert_allclose(found[np.ix_([0, 2, 3], [0, 2, 3])], exact, atol=1e-5)
    apart = np.eye(5)
    apart[np.ix_([0, 2, 3], [0, 2, 3])] = found[np.ix_([0, 2, 3], [0, 2, 3])]
    np.testing.assert_array_equal(found, apart)


def test_a_stack_is_as_good_as_its_members():
    members = [matrix(np.geomspace(1, least, SIZE), seed)[0] for seed, least in enumerate([0.5, 1e-3, 1e-6])]
    stack = jnp.asarray(np.stack(members), jnp.float32)
    together = nearest(stack, jnp.ones((3, 1, SIZE), bool))
    for member, found in zip(stack, together, strict=True):
        trace = np.linalg.svd(np.asarray(member, np.float64), compute_uv=False).sum()
        assert np.trace(np.asarray(found).T @ np.asarray(member)) == pytest.approx(trace, abs=2e-5)


def test_what_is_not_finite_ends_in_zeros():
    assert not np.any(nearest(jnp.full((SIZE, SIZE), jnp.nan), EVERY))


def test_aligning_needs_no_decomposition_that_compilers_unroll():
    basis = jax.ShapeDtypeStruct((3, 8, 4), jnp.float32)
    assert "svd" not in str(jax.make_jaxpr(align)(basis, basis))
