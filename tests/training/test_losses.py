"""Losses of tokens: against torch, in chunks as at once, and what stands in memory meanwhile."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gems_jax.models import T5, T5Config, chunked_token_losses, token_losses

TOKENS, WIDTH, V = (6, 35), 8, 50


def problem() -> tuple[jax.Array, jax.Array, np.ndarray]:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(*TOKENS, WIDTH)).astype(np.float32)
    table = rng.normal(size=(V, WIDTH)).astype(np.float32)
    return jnp.asarray(hidden), jnp.asarray(table), rng.integers(0, V, TOKENS)


def plain(hidden: jax.Array, table: jax.Array, labels: Any) -> jax.Array:
    return token_losses(hidden @ table.T, labels)


def chunked(hidden: jax.Array, table: jax.Array, labels: Any, chunk_size: int | None) -> jax.Array:
    return chunked_token_losses(hidden, lambda x: x @ table.T, labels, chunk_size)


def test_token_losses_equal_the_cross_entropy_of_torch() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 5, 30)).astype(np.float32) * 20, rng.integers(0, 30, (4, 5))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).flatten(0, 1), torch.tensor(labels).flatten(), reduction="none"
    )
    np.testing.assert_allclose(token_losses(jnp.asarray(logits), labels).ravel(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 64, 70, 209, 210, 1000, None])
def test_chunks_give_the_losses_and_gradients_of_all_tokens_at_once(chunk_size: int | None) -> None:
    hidden, table, labels = problem()
    weights = np.random.default_rng(1).normal(size=TOKENS).astype(np.float32)

    def total(losses: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (losses * weights).sum(), losses

    (_, expected), wanted = jax.value_and_grad(lambda h, t: total(plain(h, t, labels)), argnums=(0, 1), has_aux=True)(
        hidden, table
    )
    (_, losses), grads = jax.jit(
        jax.value_and_grad(lambda h, t: total(chunked(h, t, labels, chunk_size)), argnums=(0, 1), has_aux=True)
    )(hidden, table)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def largest_float32(jaxpr: Any) -> int:
    """Entries of the largest float32 value that a program makes, wherever."""
    sizes = [0]
    for eqn in jaxpr.eqns:
        sizes += [var.aval.size for var in eqn.outvars if getattr(var.aval, "dtype", None) == jnp.float32]
        for value in eqn.params.values():
            for part in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(part, "jaxpr", part)
                sizes += [largest_float32(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


def test_no_logits_of_all_tokens_stand_in_memory_not_even_in_the_backward_pass() -> None:
    hidden, table, labels = problem()

    def size(loss: Any) -> int:
        return largest_float32(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, table).jaxpr)

    all_logits = labels.size * V
    assert size(lambda h, t: plain(h, t, labels).sum()) == all_logits
    # The largest are the input itself, padded to whole chunks, and a chunk's logits.
    assert size(lambda h, t: chunked(h, t, labels, 16).sum()) == 14 * 15 * WIDTH
    assert size(lambda h, t: chunked(h, t, labels, 100).sum()) == 70 * V


def test_a_vocabulary_that_is_large_is_chunked_without_being_asked() -> None:
    hidden, labels = jax.ShapeDtypeStruct((64, 512, 4), "float32"), jax.ShapeDtypeStruct((64, 512), "int32")
    table = jax.ShapeDtypeStruct((32128, 4), "float32")
    program = jax.make_jaxpr(lambda h, t, y: chunked(h, t, y, None))(hidden, table, labels).jaxpr
    assert largest_float32(program) <= 2**24 < 64 * 512 * 32128


def test_a_chunk_takes_its_tokens_from_all_over_the_batch() -> None:
    labels = jnp.arange(12).reshape(6, 2)
    seen = []

    def logits(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda tokens: seen.append(np.asarray(tokens)), x[:, 0])
        return jnp.zeros((len(x), 12))

    hidden = jnp.arange(12.0).reshape(6, 2, 1)
    jax.block_until_ready(chunked_token_losses(hidden, logits, labels, 4))
    jax.effects_barrier()
    assert [chunk.tolist() for chunk in seen] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@pytest.mark.parametrize("vocabulary", ["full", "base", "items"])
def test_a_model_gives_the_losses_of_its_logits(vocabulary: Any) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    model = T5.create(T5Config(vocab_size=20, num_added_tokens=5, **sizes), jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (3, 4, 8))
    labels = jax.random.randint(jax.random.key(2), (3, 4), 0, 6)
    expected = token_losses(model.logits(hidden, vocabulary), labels)
    for chunk_size in (None, 5):
        np.testing.assert_allclose(model.token_losses(hidden, labels, vocabulary, chunk_size), expected, rtol=1e-5)


def test_losses_under_vmap_are_those_of_each_alone() -> None:
    hidden, table, labels = problem()
    both = jax.vmap(lambda h, y: chunked(h, table, y, 7))(hidden, labels)
    np.testing.assert_allclose(both, plain(hidden, table, labels), rtol=1e-5, atol=1e-5)


def test_wrong_shapes_and_sizes_are_named() -> None:
    hidden, table, labels = problem()
    with pytest.raises(ValueError, match=r"logits \(6, 35, 50\) need labels of shape \(6, 35\), got \(6, 4\)"):
        plain(hidden, table, labels[:, :4])
    with pytest.raises(ValueError, match=r"hidden \(6, 35, 8\) needs labels of shape \(6, 35\), got \(6, 4\)"):
        chunked(hidden, table, labels[:, :4], 5)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        chunked(hidden, table, labels, 0)
