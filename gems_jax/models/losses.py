"""Losses of predicted tokens."""

from collections.abc import Callable

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
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    tokens = labels.size
    if chunk_size is None:
        vocabulary = jax.eval_shape(logits, hidden.reshape(-1, hidden.shape[-1])).shape[-1]
        chunk_size = max(1, _MAX_LOGITS // vocabulary)
    if tokens <= chunk_size:
        return token_losses(logits(hidden), labels)
    chunks = -(-tokens // chunk_size)
    size = -(-tokens // chunks)
    added = chunks * size - tokens
    # Token j * chunks + i is the j-th of chunk i.
    parts = jnp.pad(hidden.reshape(tokens, -1), ((0, added), (0, 0))).reshape(size, chunks, -1).swapaxes(0, 1)
    part_labels = jnp.pad(labels.reshape(-1), (0, added)).reshape(size, chunks).T

    def body(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        return None, token_losses(logits(part[0]), part[1])

    _, losses = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), None, (parts, part_labels))
    return losses.T.reshape(-1)[:tokens].reshape(labels.shape)
