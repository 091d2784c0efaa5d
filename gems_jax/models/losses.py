"""Losses of predicted tokens."""

import jax
import jax.numpy as jnp


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
