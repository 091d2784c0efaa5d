"""Padding in the null space of kernels that are applied in loops, chunks, buffers and other orders, against numpy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gems_jax.linalg.matrix_dims import MatrixDims, resolve
from gems_jax.null_space.moment_pass import masks_of
from gems_jax.null_space.second_moment import SecondMoment, symmetric
from gems_jax.null_space.tracing.kernel_inputs import add_moments, kernel_inputs

B, S, D = 3, 8, 4
SPECS = {"w": resolve(MatrixDims(), (D, D))}
X = np.random.default_rng(0).normal(size=(B, S, D)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]])
W = np.random.default_rng(1).normal(size=(D, D)).astype(np.float32) / 4


def moment_of(model, x, mask, specs=SPECS, side="in", **batch):
    """The pass's second moment and number of vectors, and whether it is said that positions are not known."""
    apply = lambda params, batch: model(params["w"], **batch)  # noqa: E731
    batch = {"x": jnp.asarray(x), **batch}
    masks = masks_of({"attention_mask": mask})
    params = {"w": jnp.asarray(W)}
    found = kernel_inputs(apply, params, batch, specs, side, masks)
    start = {"w": SecondMoment.zeros(D)}
    add = jax.jit(lambda params, batch: add_moments(apply, params, batch, start, specs, side, masks))
    sums = add(params, batch)["w"]
    return symmetric(np.asarray(sums.total, float)), int(sums.count), bool(found.unaligned)


def rows_of(values, mask=MASK):
    """What is counted, by hand: the vectors of positions whose mask is not 0."""
    rows = np.asarray(values, float)[mask != 0]
    return rows.T @ rows, len(rows)


def over_time(w, x):
    return jax.lax.map(lambda step: step @ w, jnp.swapaxes(x, 0, 1))


def chunks(w, x):
    return jax.lax.map(lambda chunk: chunk @ w, x.reshape(B, 4, 2, D).swapaxes(0, 1))


def strided_chunks(w, x):
    return jax.lax.map(lambda chunk: chunk @ w, x.reshape(B, 4, 2, D).swapaxes(0, 2))


def nested(w, x):
    return jax.lax.map(lambda row: jax.lax.map(lambda chunk: chunk @ w, row.reshape(2, 4, D)), x)


def of_one_row(w, x):
    return jax.vmap(lambda row: jax.lax.scan(lambda h, step: (h, step @ w), 0.0, row)[1])(x)


def flattened(w, x):
    return jax.lax.map(lambda vector: vector @ w, x.reshape(-1, D))


def sequence_first_flattened(w, x):
    return jnp.tanh(x.swapaxes(0, 1)).reshape(-1, D) @ w


def reversed_in_time(w, x):
    return jnp.exp(jnp.flip(x, 1)) @ w


SAME = {
    "plain": (lambda w, x: x @ w, lambda x: x),
    "examples": (lambda w, x: jax.lax.map(lambda row: row @ w, x), lambda x: x),
    "two examples": (lambda w, x: jax.lax.map(lambda row: row @ w, x, batch_size=2), lambda x: x),
    "time": (over_time, lambda x: x),
    "chunks": (chunks, lambda x: x),
    "strided chunks": (strided_chunks, lambda x: x),
    "rows of chunks": (nested, lambda x: x),
    "scan of a row": (of_one_row, lambda x: x),
    "vectors": (flattened, lambda x: x),
    "sequence first": (sequence_first_flattened, np.tanh),
    "reversed": (reversed_in_time, np.exp),
    "reversed scan": (lambda w, x: jax.lax.scan(lambda h, v: (h, v @ w), 0.0, x.swapaxes(0, 1), reverse=True), None),
    "remat": (lambda w, x: jax.checkpoint(lambda v: over_time(w, v))(x * 2), lambda x: x * 2),
    "heads": (lambda w, x: jnp.concatenate(jnp.split(x, 2, 2), 2).reshape(B, S, 2, 2).reshape(B * S, D) @ w, None),
    "read back": (lambda w, x: jnp.tanh(over_time(jnp.eye(D), x)).swapaxes(0, 1) @ w, np.tanh),
}


@pytest.mark.parametrize("kind", SAME)
def test_padding_is_left_out_wherever_a_kernel_is_applied(kind):
    model, values = SAME[kind]
    total, count, unknown = moment_of(model, X, MASK)
    expected, number = rows_of(X if values is None else values(X.astype(float)))
    assert not unknown
    assert count == number
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)


def test_a_recurrent_kernel_counts_the_steps_that_are_no_padding():
    def model(w, x):
        return jax.lax.scan(lambda h, v: (jnp.tanh(v + h @ w), h), jnp.zeros((B, D)), x.swapaxes(0, 1))[0]

    states, h = [], np.zeros((B, D))
    for t in range(S):
        states.append(h)
        h = np.tanh(X[:, t] + h @ W)
    total, count, unknown = moment_of(model, X, MASK)
    expected, number = rows_of(np.stack(states, 1))
    assert not unknown
    assert count == number
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [3, 8])
def test_with_as_many_rows_as_positions_the_mask_is_not_transposed(size):
    x = np.random.default_rng(2).normal(size=(size, size, D)).astype(np.float32)
    mask = np.tril(np.ones((size, size), int))
    for model in (sequence_first_flattened, lambda w, x: jnp.tanh(x.swapaxes(0, 1)) @ w):
        total, count, unknown = moment_of(model, x, mask)
        expected, number = rows_of(np.tanh(x.astype(float)), mask)
        assert not unknown
        assert count == number
        np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)


def test_single_positions_and_means_count_where_the_row_does():
    cases = {
        "last": (lambda w, x: x[:, -1] @ w, X[:, -1], MASK[:, -1]),
        "from the third": (lambda w, x: x[:, 2:] @ w, X[:, 2:], MASK[:, 2:]),
        "every other": (lambda w, x: x[:, ::2].reshape(-1, D) @ w, X[:, ::2], MASK[:, ::2]),
        "mean": (lambda w, x: x.mean(1) @ w, X.mean(1), np.array([1, 1, 0])),
    }
    for name, (model, values, counted) in cases.items():
        mask = MASK * np.array([[1], [1], [0]]) if name == "mean" else MASK
        total, count, unknown = moment_of(model, X, mask)
        expected, number = rows_of(values, counted)
        assert not unknown, name
        assert count == number, name
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-5)


def test_what_a_kernel_yields_is_masked_too():
    total, count, unknown = moment_of(over_time, X, MASK, side="out")
    expected, number = rows_of(X.astype(float) @ W)
    assert not unknown
    assert count == number
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


def dispatched(w, x):
    """Buffers of experts, two slots each, filled by products with a one-hot."""
    slots = jax.nn.one_hot(jnp.argsort(x[..., 0].reshape(-1))[:4].reshape(2, 2), B * S)
    return jnp.einsum("ecn,nd->ecd", slots, x.reshape(-1, D)) @ w


def dispatched_by_rank(w, x):
    """Buffers of every row and expert, filled by a product of two lists of ones."""
    expert, slot = jax.nn.one_hot(jnp.arange(S) % 2, 2), jax.nn.one_hot(jnp.argsort(x[..., 0], 1), 3)
    return jnp.einsum("bsec,bsd->ebcd", slot[:, :, None] * expert[..., None], x) @ w


def over_buffers(w, x):
    """The same, expert by expert."""
    order = jnp.argsort(x[..., 0].reshape(-1))[:4].reshape(2, 2)
    return jax.lax.map(lambda buffer: buffer @ w, x.reshape(-1, D)[order])


def looped(w, x):
    step = lambda t, sums: sums + jax.lax.dynamic_index_in_dim(x, t, 1, keepdims=False) @ w  # noqa: E731
    return jax.lax.fori_loop(0, S, step, jnp.zeros((B, D)))


def sorted_by_length(w, x):
    return jnp.sort(x, 1) @ w


def convolved(w, x):
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, jnp.ones((3, D, D)), (1,), "SAME", dimension_numbers=numbers) @ w


UNKNOWN = [dispatched, dispatched_by_rank, over_buffers, looped, sorted_by_length, convolved]


@pytest.mark.parametrize("model", UNKNOWN)
def test_where_padding_cannot_be_told_the_kernel_is_named(model):
    import gems_jax as gj

    batch = {"x": X, "attention_mask": MASK}
    params = {"experts": {"kernel": W}}
    with pytest.warns(UserWarning, match=r"padding (is|may be) counted for kernel 'experts/kernel'"):
        gj.estimate_null_space(
            lambda params, x: model(params["experts"]["kernel"], x), [batch], rank=1, params=params, progress=False
        )


@pytest.mark.parametrize("mask", [MASK.reshape(-1), MASK[:, None, None], MASK[0, 0]], ids=["flat", "scores", "one"])
def test_masks_of_another_shape_are_never_taken_in_silence(mask):
    assert moment_of(SAME["plain"][0], X, mask)[-1]


def test_masks_under_other_names_and_masks_that_are_added_are_refused_or_named():
    import gems_jax as gj

    def estimate(**batch):
        model = lambda params, x: x @ params["w"]  # noqa: E731
        return gj.estimate_null_space(model, [{"x": X, **batch}], rank=1, params={"w": W}, progress=False)

    with pytest.warns(UserWarning, match="'padding_mask' of the batch is not read under that name"):
        estimate(padding_mask=MASK)
    with pytest.raises(ValueError, match="attention_mask has entries below 0 or nan.*must be 0 where"):
        estimate(attention_mask=np.where(MASK, 0.0, -1e9))


def test_a_kernel_whose_input_is_no_text_has_no_padding():
    batch = {"attention_mask": MASK}
    model = lambda w, x: (jnp.ones((B, S, D)) @ w + x).sum()  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        total, count, unknown = moment_of(model, X, batch["attention_mask"])
    assert (count, unknown) == (B * S, False)
    np.testing.assert_allclose(total, np.full((D, D), B * S))


def test_a_shifted_input_of_a_decoder_keeps_its_positions():
    shift = lambda x: jnp.concatenate([jnp.zeros((B, 1, D)), x[:, :-1]], 1)  # noqa: E731
    total, count, unknown = moment_of(lambda w, x: shift(x) @ w, X, MASK)
    expected, number = rows_of(np.concatenate([np.zeros((B, 1, D)), X[:, :-1]], 1))
    assert (count, unknown) == (number, False)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)
