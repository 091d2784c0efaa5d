"""Losses of predicted tokens."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Most logits that are held at once unless a caller says otherwise: 64 MiB of float32.
_MAX_LOGITS = 2**24


def token_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of each token, ``logsumexp(z) - z[label]``.

    Args:
      logits: ``[..., V]``, any float dtype.
      labels: int ``[...]``, columns of ``logits``. Where a mask is applied afterwards, any label will do.

    Returns:
      float32 ``[...]``, in nats. Give it to ``gems_jax.token_mean`` with the mask of the tokens that count.

    Raises:
      ValueError: if the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> print(token_losses(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4))
      [1.3863 1.3863]
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} need labels of shape {logits.shape[:-1]}, got {labels.shape}")
    logits = logits.astype(jnp.float32)
    # Compared rather than looked up: the transpose of a lookup is a scatter, this fuses with the softmax.
    chosen = jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), logits, 0).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def chunked_token_losses(
    hidden: jax.Array,
    logits: Callable[[jax.Array], jax.Array],
    labels: jax.Array,
    chunk_size: int | None = None,
) -> jax.Array:
    """The `token_losses` of ``logits(hidden)`` where the logits of all tokens at once would need too much memory.

    The tokens go through the output layer in chunks of equal size; the backward pass computes each chunk's logits
    once more. A chunk takes its tokens from all over the batch, so that every device of a mesh that the batch is
    spread over has its part in each.

    Args:
      hidden: ``[..., d]``, what the output layer is given.
      logits: the output layer, ``[tokens, d] -> [tokens, V]``, any function of each token alone.
      labels: int ``[...]``, columns of the logits.
      chunk_size: tokens whose logits are held at once; ``None``: as many as make 64 MiB of float32.

    Returns:
      float32 ``[...]``, in nats.

    Raises:
      ValueError: if the shapes do not fit or ``chunk_size`` is less than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> table = jnp.eye(3)
      >>> hidden, labels = jnp.ones((2, 5, 3)), jnp.zeros((2, 5), int)
      >>> chunked_token_losses(hidden, lambda x: x @ table.T, labels, chunk_size=4).shape
      (2, 5)
    """
    if hidden.shape[:-1] != labels.shape:
        raise ValueError(f"hidden {hidden.shape} needs labels of shape {hidden.shape[:-1]}, got {labels.shape}")
    vocabulary = jax.eval_shape(logits, hidden.reshape(-1, hidden.shape[-1])).shape[-1]
    return _by_chunks(lambda x, y: token_losses(logits(x), y), (hidden, labels), vocabulary, chunk_size)


def token_divergences(logits: Sequence[jax.Array], base_logits: jax.Array) -> jax.Array:
    """How far each token's prediction is from another model's, ``KL(p || q)``, ``p`` the other's.

    ``sum_v p_v (log p_v - log q_v)`` over the other's tokens ``v``, ``p = softmax(base_logits)``, ``q`` the softmax
    over all of ``logits``: what tokens that the other has not take is counted.

    Args:
      logits: float ``[..., V]``, and ``[..., N]`` of tokens that the other model has not, table by table.
      base_logits: float ``[..., V]``.

    Returns:
      float32 ``[...]``, in nats.

    Example:
      >>> import jax.numpy as jnp
      >>> same = jnp.array([[0.0, 1.0, 2.0]])
      >>> print(token_divergences([same], same).round(4), token_divergences([same, same], same).round(4))
      [0.] [0.6931]
    """
    parts = [part.astype(jnp.float32) for part in logits]
    normaliser = jax.nn.logsumexp(jnp.stack([jax.nn.logsumexp(part, axis=-1) for part in parts]), axis=0)
    base = jax.nn.log_softmax(base_logits.astype(jnp.float32), axis=-1)
    apart = jnp.where(base > -jnp.inf, jnp.exp(base) * (base - parts[0] + normaliser[..., None]), 0)
    return jnp.sum(apart, axis=-1)


def chunked_token_divergences(
    hidden: jax.Array,
    logits: Callable[[jax.Array], Sequence[jax.Array]],
    base_hidden: jax.Array,
    base_logits: Callable[[jax.Array], jax.Array],
    chunk_size: int | None = None,
) -> jax.Array:
    """The `token_divergences` of ``logits(hidden)`` from ``base_logits(base_hidden)``, a chunk of tokens at a time.

    As in `chunked_token_losses` neither model's logits of all tokens are ever held.

    Args:
      hidden, base_hidden: ``[..., d]``, what either output layer is given.
      logits, base_logits: the output layers, functions of each token alone, see `token_divergences`.
      chunk_size: tokens whose logits are held at once; ``None``: as many as make 64 MiB of both models' float32.

    Returns:
      float32 ``[...]``, in nats.

    Example:
      >>> import jax.numpy as jnp
      >>> table, hidden = jnp.eye(3), jnp.ones((2, 5, 3))
      >>> score = lambda x: x @ table.T
      >>> chunked_token_divergences(hidden, lambda x: [score(x)], hidden, score, chunk_size=4).shape
      (2, 5)
    """
    shapes = jax.eval_shape(lambda x, y: (*logits(x), base_logits(y)), hidden, base_hidden)
    held = sum(shape.shape[-1] for shape in shapes)
    compare = lambda x, y: token_divergences(logits(x), base_logits(y))  # noqa: E731
    return _by_chunks(compare, (hidden, base_hidden), held, chunk_size)


def _by_chunks(
    function: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], width: int, chunk_size: int | None
) -> jax.Array:
    """``function`` of every token, whose logits are ``width`` wide, computed again in the backward pass.

    Args:
      function: ``[tokens, ...], [tokens, ...] -> [tokens]``.
      arrays: their leading axes ``[B, A]`` are the tokens' own.
      width, chunk_size: see `chunked_token_losses`.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    where = arrays[0].shape[:-1]
    tokens = math.prod(where)
    chunk_size = max(1, _MAX_LOGITS // width) if chunk_size is None else chunk_size
    if tokens <= chunk_size:
        return function(*arrays)
    chunks = -(-tokens // chunk_size)
    size = -(-tokens // chunks)
    added = chunks * size - tokens

    def cut(array: jax.Array) -> jax.Array:
        # Token j * chunks + i is the j-th of chunk i.
        rest = array.shape[len(where) :]
        flat = jnp.pad(array.reshape(tokens, *rest), ((0, added), *((0, 0),) * len(rest)))
        return flat.reshape(size, chunks, *rest).swapaxes(0, 1)

    def body(_: None, parts: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        return None, function(*parts)

    _, values = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), None, tuple(map(cut, arrays)))
    return values.T.reshape(-1)[:tokens].reshape(where)
