"""Bases against float64 singular vectors: orthonormal, inside the null space, as good as any."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import QUICK, orthonormal

from gems_jax.subspace import Frame, align, canonical_signs, leading_vectors, make_basis, orthonormal_columns

FEW = settings(max_examples=12, deadline=None, derandomize=True)
P, Q, KEPT, RANK = 10, 7, 4, 3


def matrix(spectrum, seed, shape=(P, Q)):
    """A matrix with given singular values and random singular vectors."""
    k = min(shape)
    left, right = orthonormal(shape[0], k, [seed, 0]), orthonormal(shape[1], k, [seed, 1])
    return (left * np.asarray(spectrum)[:k]) @ right.T


SPECTRA = {
    "apart": np.geomspace(8, 0.1, 7),
    "rank one": [1, 0, 0, 0, 0, 0, 0],
    "rank two": [3, 1, 0, 0, 0, 0, 0],
    "repeated": [2, 2, 2, 2, 1, 1, 1],
    "all equal": [1] * 7,
    "ill conditioned": [1, 1e-3, 1e-6, 1e-9, 0, 0, 0],
}


@functools.cache
def compiled(method, signs, complement, transposed):
    p = Q if transposed else P

    def basis(gradient, factor, previous, has_previous):
        return make_basis(
            gradient, RANK, Frame(factor, complement), method=method, signs=signs, previous=previous,
            has_previous=has_previous, key=jax.random.key(0),
        )  # fmt: skip

    return p, jax.jit(basis, compiler_options=QUICK)


@pytest.mark.parametrize("transposed", [False, True], ids=["tall", "wide"])
@pytest.mark.parametrize("complement", [False, True], ids=["K", "Q"])
@pytest.mark.parametrize("method", ["svd", "eigh", "subspace"])
@FEW
@given(
    spectrum=st.sampled_from(sorted(SPECTRA)),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e12]),
)
def test_bases_are_orthonormal_inside_the_null_space_and_capture_the_most(
    method, complement, transposed, spectrum, seed, scale
):
    p, basis = compiled(method, "canonical", complement, transposed)
    full = orthonormal(p, p, [seed, 2])
    k, q = full[:, :KEPT], full[:, KEPT:]
    gradient = matrix(SPECTRA[spectrum], seed)
    gradient = gradient.T if transposed else gradient
    factor = jnp.asarray(q if complement else k, jnp.float32)
    previous = jnp.zeros((p, RANK), jnp.float32)
    u, usable = basis(jnp.asarray(gradient * scale, jnp.float32), factor, previous, False)
    assert usable
    u = np.asarray(u, float)
    np.testing.assert_allclose(u.T @ u, np.eye(RANK), atol=1e-5)
    assert np.linalg.norm(np.asarray(k, np.float32).T @ u) < 1e-5
    best = np.sum(np.linalg.svd(q.T @ gradient, compute_uv=False)[:RANK] ** 2)
    assert np.sum((u.T @ gradient) ** 2) >= best * (0.97 if method == "subspace" else 1 - 1e-4)
    # Canonical signs: the largest entry of a column is positive.
    assert np.all(u[np.argmax(np.abs(u), axis=0), np.arange(RANK)] > 0)


@pytest.mark.parametrize("method", ["svd", "eigh", "subspace"])
def test_unusable_gradients_leave_the_former_basis_in_force(method):
    p, basis = compiled(method, "canonical", False, False)
    full = orthonormal(P, P, 5)
    k, previous = jnp.asarray(full[:, :KEPT], jnp.float32), jnp.asarray(full[:, -RANK:], jnp.float32)
    normal = np.random.default_rng(0).normal(size=(P, Q))
    inside_k = full[:, :KEPT] @ normal[:KEPT]  # nothing but rounding is left of it
    for gradient in (0 * normal, normal * np.nan, np.where(normal > 1, np.inf, normal), normal * 1e-43, inside_k):
        u, usable = basis(jnp.asarray(gradient, jnp.float32), k, previous, True)
        assert not usable
        np.testing.assert_array_equal(u, previous)


@pytest.mark.parametrize("shape", [(10, 7), (7, 10), (8, 8)], ids=str)
def test_all_methods_span_the_float64_singular_vectors(shape):
    a = matrix(np.geomspace(8, 0.1, 8), 3, shape)
    expected = np.linalg.svd(a)[0][:, :RANK]
    start = jax.random.normal(jax.random.key(1), (shape[0], RANK))
    for method in ("svd", "eigh", "subspace"):
        u = np.asarray(leading_vectors(jnp.asarray(a, jnp.float32), RANK, method, start), float)
        if method == "subspace":
            u = np.linalg.qr(u)[0]
        np.testing.assert_allclose(u @ u.T, expected @ expected.T, atol=2e-3 if method == "subspace" else 2e-5)


def test_power_iteration_follows_a_drifting_gradient_from_the_former_basis():
    rng = np.random.default_rng(0)
    noise = lambda: rng.normal(size=(32, 24)) * 0.02  # noqa: E731
    base = matrix(np.geomspace(4, 0.05, 24), 1, (32, 24))
    step = jax.jit(lambda a, u: leading_vectors(a, 8, "subspace", u, True), compiler_options=QUICK)
    u = jnp.asarray(np.linalg.svd(base)[0][:, :8], jnp.float32)
    for _ in range(5):
        base = base + noise()
        u = step(jnp.asarray(base, jnp.float32), u)
        best = np.sum(np.linalg.svd(base, compute_uv=False)[:8] ** 2)
        assert np.sum((np.asarray(u, float).T @ base) ** 2) > 0.995 * best


def test_double_precision_stays_double():
    with jax.enable_x64(True):
        a = matrix(np.geomspace(8, 0.1, 7), 3)
        u = leading_vectors(jnp.asarray(a), RANK, "svd")
        assert u.dtype == jnp.float64
        np.testing.assert_allclose(np.abs(np.sum(u * np.linalg.svd(a)[0][:, :RANK], axis=0)), 1, rtol=1e-12)


def test_canonical_signs_take_the_first_of_equal_entries():
    basis = jnp.array([[-0.5, 0.5], [0.5, -0.5], [0.1, 0.2]])
    np.testing.assert_array_equal(canonical_signs(basis), basis * jnp.array([-1.0, 1.0]))
    np.testing.assert_array_equal(canonical_signs(jnp.zeros((3, 2))), jnp.zeros((3, 2)))


@FEW
@given(seed=st.integers(0, 1000))
def test_align_is_the_nearest_rotation_and_undoes_any(seed):
    u = orthonormal(9, 3, seed)
    rotation = orthonormal(3, 3, [seed, 1])
    again = align(jnp.asarray(u @ rotation, jnp.float32), jnp.asarray(u, jnp.float32))
    np.testing.assert_allclose(again, u, atol=1e-5)


def test_an_unknown_decomposition_is_refused():
    with pytest.raises(ValueError, match="'qr' is unknown"):
        leading_vectors(jnp.eye(3), 1, "qr")
    with pytest.raises(ValueError, match="pass start"):
        leading_vectors(jnp.eye(3), 1, "subspace")


@FEW
@given(
    seed=st.integers(0, 1000),
    smallest=st.sampled_from([1.0, 0.3, 1e-2, 1e-5, 0.0]),
    stretch=st.sampled_from([1.0, 1e8]),
)
def test_orthonormal_columns_keep_leading_spans_and_directions(seed, smallest, stretch):
    """Also of blocks that Cholesky cannot take, and where columns differ in length by many orders."""
    block = matrix(np.geomspace(1, smallest, 4) if smallest else [1, 1, 1, 0], seed, (9, 4))
    lengths = np.geomspace(1, stretch, 4)
    q, well = ORTHONORMAL(jnp.asarray(block * lengths, jnp.float32))
    q = np.asarray(q, float)
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=2e-4 if well else 2e-6)
    assert well if smallest >= 0.3 else (not well or smallest == 1e-2)
    if smallest > 1e-3:
        expected = np.linalg.qr(block)[0]
        np.testing.assert_allclose(q, expected * np.sign(np.sum(q * expected, axis=0)), atol=1e-3)
        assert np.all(np.sum(q * block, axis=0) > 0)


ORTHONORMAL = jax.jit(orthonormal_columns, compiler_options=QUICK)


@pytest.mark.parametrize("method", ["svd", "eigh", "subspace"])
def test_a_stack_of_kernels_gets_the_bases_of_its_members(method):
    """Members of all kinds: one without a former basis, one of rank one, one that is not finite."""
    gradients = np.stack(
        [matrix(SPECTRA[name], i) for i, name in enumerate(["apart", "rank one", "apart", "ill conditioned"])]
    )
    gradients[2, 0, 0] = np.nan
    factors = np.stack([orthonormal(P, KEPT, i) for i in range(4)])
    warm = np.array([True, False, True, True])
    previous = np.stack([orthonormal(P, P, [i, 7])[:, -RANK:] for i in range(4)]) * warm[:, None, None]
    exclude = np.stack([orthonormal(P, 1, [i, 8]) for i in range(4)])
    exclude -= factors @ (factors.swapaxes(1, 2) @ exclude)
    exclude /= np.linalg.norm(exclude, axis=1, keepdims=True)
    columns = np.array([[True] * 3, [True] * 3, [True] * 3, [True, True, False]])

    def bases(gradient, factor, previous, warm, exclude, columns):
        return make_basis(
            gradient, RANK, Frame(factor, False), method=method, signs="canonical", previous=previous,
            has_previous=warm, exclude=exclude, columns=columns, key=jax.random.key(0),
        )  # fmt: skip

    args = [jnp.asarray(x, x.dtype if x.dtype == bool else jnp.float32) for x in (
        gradients, factors, previous, warm, exclude, columns)]  # fmt: skip
    together, usable = jax.jit(bases)(*args)
    np.testing.assert_array_equal(usable, [True, True, False, True])
    np.testing.assert_array_equal(together[2], np.asarray(args[2])[2])
    for i in range(4):
        one, _ = bases(*(x[i] for x in args))
        # A stack is swept as often as its coldest member needs, so iterated bases are at least as good.
        gained, alone = (
            np.sum((np.asarray(u, float).T @ np.nan_to_num(gradients[i])) ** 2) for u in (together[i], one)
        )
        assert gained >= alone * (1 - 1e-4)
        if method != "subspace" and i in (0, 2):
            np.testing.assert_allclose(together[i], one, atol=1e-4)
        u = np.asarray(together[i], float)
        np.testing.assert_allclose(u.T @ u, np.diag(columns[i].astype(float)), atol=1e-5)
        if i != 2:
            assert np.linalg.norm(factors[i].T @ u) < 1e-5
            assert np.linalg.norm(exclude[i].T @ u) < 1e-5
