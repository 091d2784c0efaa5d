"""Bases against float64 singular vectors: orthonormal, inside the null space, as good as any."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import orthonormal

from gems_jax.linalg.orthonormal import (
    inverse_cholesky,
    orthonormal_columns,
    orthonormal_inside,
    times,
    transposed_times,
)
from gems_jax.linalg.projection import Projector
from gems_jax.linalg.subspace import COLD_SWEEPS, align, canonical_signs, leading_vectors, make_basis

FEW = settings(max_examples=12, derandomize=True)
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


# What TPUs run, which have no triangular factorisations worth compiling, runs everywhere.
PLATFORMS = {"subspace, of TPUs": "tpu"}
METHODS = ["svd", "eigh", "subspace", *PLATFORMS]


def of_platform(name, function):
    """The function, traced as it is where this platform is the default one."""

    def traced(*args):
        with mock.patch.object(jax, "default_backend", return_value=PLATFORMS.get(name, "cpu")):
            return function(*args)

    return traced


@functools.cache
def compiled(method, signs, complement, transposed):
    p = Q if transposed else P

    def basis(gradient, factor, previous, has_previous):
        return make_basis(
            gradient, RANK, Projector(factor, complement), method=method.split(",")[0], signs=signs, previous=previous,
            has_previous=has_previous, key=jax.random.key(0),
        )  # fmt: skip

    return p, of_platform(method, jax.jit(basis))


@pytest.mark.parametrize("transposed", [False, True], ids=["tall", "wide"])
@pytest.mark.parametrize("complement", [False, True], ids=["K", "Q"])
@pytest.mark.parametrize("method", METHODS)
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
    assert np.sum((u.T @ gradient) ** 2) >= best * (0.97 if method.startswith("subspace") else 1 - 1e-4)
    # Canonical signs: the largest entry of a column is positive.
    assert np.all(u[np.argmax(np.abs(u), axis=0), np.arange(RANK)] > 0)


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["svd", "both"])
def test_a_decomposition_that_does_not_converge_is_replaced_by_the_other_or_leaves_the_former_basis(failing):
    gradient, previous = matrix(SPECTRA["apart"], 0), orthonormal(P, RANK, 1)

    def nan(function):
        return lambda *args, **kwargs: tuple(jnp.full_like(part, jnp.nan) for part in function(*args, **kwargs))

    broken = {"svd": nan(jnp.linalg.svd)} | ({"eigh": nan(jnp.linalg.eigh)} if failing == "both" else {})
    with mock.patch.multiple(jnp.linalg, **broken):
        basis, usable = make_basis(
            jnp.asarray(gradient, jnp.float32), RANK, Projector(None, False), method="svd", signs="canonical",
            previous=jnp.asarray(previous, jnp.float32), has_previous=jnp.array(True), key=jax.random.key(0),
        )  # fmt: skip
    assert usable == (failing == "svd")
    if failing == "both":
        np.testing.assert_array_equal(basis, previous.astype(np.float32))
    else:
        expected = np.linalg.svd(gradient)[0][:, :RANK]
        np.testing.assert_allclose(basis @ basis.T, expected @ expected.T, atol=2e-5)


def anywhere(x):
    return x


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(10, 7), (7, 10), (8, 8)], ids=str)
def test_all_methods_span_the_float64_singular_vectors(shape):
    a = matrix(np.geomspace(8, 0.1, 8), 3, shape)
    expected = np.linalg.svd(a)[0][:, :RANK]
    start = jax.random.normal(jax.random.key(1), (shape[0], RANK))
    for method in ("svd", "eigh", "subspace"):
        single = jnp.asarray(a, jnp.float32)
        if method == "subspace":
            u = np.asarray(orthonormal_inside(start, anywhere, start, single, COLD_SWEEPS), float)
        else:
            u = np.asarray(leading_vectors(single, RANK, method), float)
        np.testing.assert_allclose(u @ u.T, expected @ expected.T, atol=2e-3 if method == "subspace" else 2e-5)


def test_power_iteration_follows_a_drifting_gradient_from_the_former_basis():
    rng = np.random.default_rng(0)
    noise = lambda: rng.normal(size=(32, 24)) * 0.02  # noqa: E731
    base = matrix(np.geomspace(4, 0.05, 24), 1, (32, 24))
    step = jax.jit(lambda a, u: orthonormal_inside(u, anywhere, u, a, 1))
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


@pytest.mark.slow
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


@functools.cache
def orthonormalised(method):
    """One pass, and as many as it takes."""
    both = lambda block, fill: (*orthonormal_columns(block), orthonormal_inside(block, anywhere, fill))  # noqa: E731
    return of_platform(method, jax.jit(both))


@pytest.mark.parametrize("method", ["subspace", *PLATFORMS])
@FEW
@given(
    seed=st.integers(0, 1000),
    smallest=st.sampled_from([1.0, 0.3, 1e-2, 1e-3, 1e-5, 0.0]),
    stretch=st.sampled_from([1.0, 1e8]),
)
def test_orthonormal_columns_keep_leading_spans_and_directions(method, seed, smallest, stretch):
    """Also of blocks that Cholesky cannot take, and where columns differ in length by many orders."""
    block = matrix(np.geomspace(1, smallest, 4) if smallest else [1, 1, 1, 0], seed, (9, 4))
    block /= np.linalg.norm(block, axis=0)
    distances = np.abs(np.diag(np.linalg.qr(block)[1]))
    lengths = np.geomspace(1, stretch, 4)
    fill = jax.random.normal(jax.random.key(seed), block.shape)
    once, distance, q = orthonormalised(method)(jnp.asarray(block * lengths, jnp.float32), fill)
    once, q = np.asarray(once, float), np.asarray(q, float)
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=2e-6)
    if distances.min() > 0.05:
        # What rounding leaves of one pass by a Gram matrix grows with the square of the block's condition number.
        np.testing.assert_allclose(once.T @ once, np.eye(4), atol=100 * 2**-23 * np.linalg.cond(block) ** 2)
        assert distance == pytest.approx(distances.min(), rel=1e-2)
    else:
        assert not distance > 0.06
    if distances.min() > 5e-4:
        expected = np.linalg.qr(block)[0]
        np.testing.assert_allclose(q, expected * np.sign(np.sum(q * expected, axis=0)), atol=3e-3)
        assert np.all(np.sum(q * block, axis=0) > 0)


@pytest.mark.parametrize("method", ["subspace", *PLATFORMS])
@pytest.mark.parametrize("kind", ["all equal", "zeros", "two of three", "as many as there are dimensions"])
def test_columns_that_depend_on_others_are_completed(method, kind):
    """Exactly dependent ones, also where the columns must span all there is."""
    d, r = (6, 6) if kind.startswith("as many") else (9, 6)
    block = np.random.default_rng(0).normal(size=(d, 1)) * np.ones((1, r))
    block = {"zeros": 0 * block, "two of three": orthonormal(d, r, 1)[:, [0, 1, 1, 2, 3, 3]]}.get(kind, block)
    fill = jax.random.normal(jax.random.key(3), block.shape)
    q = np.asarray(orthonormalised(method)(jnp.asarray(block, jnp.float32), fill)[2], float)
    np.testing.assert_allclose(q.T @ q, np.eye(r), atol=2e-6)
    if kind != "zeros":
        np.testing.assert_allclose(q[:, 0], block[:, 0] / np.linalg.norm(block[:, 0]), atol=1e-6)


def test_products_in_parts_on_tpus_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    a, x, y = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 1536, 3), (2, 1536, 4), (3, 2)))
    both = lambda a, x, y: (transposed_times(a, x), times(a, y))  # noqa: E731
    program = jax.make_jaxpr(of_platform("subspace, of TPUs", both))(a, x, y)
    assert str(program).count("scan[") == 2
    inner, outer = jax.core.eval_jaxpr(program.jaxpr, program.consts, a, x, y)
    np.testing.assert_allclose(inner, a.swapaxes(1, 2).astype(float) @ x, atol=1e-4)
    np.testing.assert_allclose(outer, a.astype(float) @ y, atol=1e-4)
    assert str(jax.make_jaxpr(both)(a, x, y)).count("scan[") == 0


def test_the_inverse_of_a_cholesky_factor_is_that_of_float64():
    x = np.random.default_rng(0).normal(size=(2, 40, 24))
    gram = np.einsum("bij,bik->bjk", x, x) / np.linalg.norm(x, axis=1)[:, :, None] / np.linalg.norm(x, axis=1)[:, None]
    inverse, pivots = jax.jit(inverse_cholesky)(jnp.asarray(gram, jnp.float32))
    lower = np.linalg.cholesky(gram)
    np.testing.assert_allclose(inverse, np.linalg.inv(lower), atol=2e-5)
    np.testing.assert_allclose(pivots, np.diagonal(lower, axis1=1, axis2=2) ** 2, rtol=1e-4)


@functools.cache
def from_a_random_block(method, protected):
    def basis(gradient, factor):
        projector = Projector(factor if protected else None, False)
        none = jnp.zeros((*gradient.shape[:-1], 32))
        return make_basis(
            gradient, 32, projector, method="subspace", signs="canonical", previous=none,
            has_previous=jnp.zeros(len(gradient), bool), key=jax.random.key(0),
        )[0]  # fmt: skip

    return jax.jit(of_platform(method, basis))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["subspace", *PLATFORMS])
@pytest.mark.parametrize("protected", [False, True], ids=["anywhere", "in a null space"])
@pytest.mark.parametrize("decay", [0.05, 0.4, 1.0, 3.0, 8.0])
def test_power_iteration_from_a_random_block_survives_any_spectrum(decay, protected, method):
    """Gradients of trained models have spectra that fall by many orders: a sweep leaves columns of next to nothing,
    all of them nearly the same."""
    spectrum, shape = np.exp(-decay * np.arange(64)), (96, 64)
    gradients = np.stack([matrix(spectrum, seed, shape) for seed in range(6)])
    factor = np.stack([orthonormal(96, 20, [seed, 5]) for seed in range(6)])
    found = from_a_random_block(method, protected)(
        jnp.asarray(gradients, jnp.float32), jnp.asarray(factor, jnp.float32)
    )
    bases = np.asarray(found, np.float64)
    if protected:
        gradients = gradients - factor @ (factor.swapaxes(1, 2) @ gradients)
        assert np.abs(factor.swapaxes(1, 2) @ bases).max() < 1e-6
    np.testing.assert_allclose(bases.swapaxes(1, 2) @ bases, np.broadcast_to(np.eye(32), (6, 32, 32)), atol=3e-6)
    best = np.sum(np.linalg.svd(gradients, compute_uv=False)[:, :32] ** 2, axis=1)
    assert np.min(np.sum((bases.swapaxes(1, 2) @ gradients) ** 2, axis=(1, 2)) / best) > 0.995


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
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
            gradient, RANK, Projector(factor, False), method=method.split(",")[0], signs="canonical", previous=previous,
            has_previous=warm, exclude=exclude, columns=columns, key=jax.random.key(0),
        )  # fmt: skip

    args = [jnp.asarray(x, x.dtype if x.dtype == bool else jnp.float32) for x in (
        gradients, factors, previous, warm, exclude, columns)]  # fmt: skip
    bases = of_platform(method, bases)
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
        if not method.startswith("subspace") and i in (0, 2):
            np.testing.assert_allclose(together[i], one, atol=1e-4)
        u = np.asarray(together[i], float)
        np.testing.assert_allclose(u.T @ u, np.diag(columns[i].astype(float)), atol=1e-5)
        if i != 2:
            assert np.linalg.norm(factors[i].T @ u) < 1e-5
            assert np.linalg.norm(exclude[i].T @ u) < 1e-5
