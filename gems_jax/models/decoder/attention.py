"""Causal attention of decoders, through the device's fused kernel where there is one."""

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "xla", "cudnn")
# Head widths of the flash kernels of all GPUs that have them: multiples of the first, up to the second.
_HEAD_STEP, _HEAD_MAX = 8, 128


def flash_serves(dtype: jnp.dtype, head_dim: int, even: bool) -> bool:
    """Whether cuDNN's flash attention takes these operands on the default device.

    Args:
      dtype: of queries, keys and values.
      head_dim: width of a head.
      even: whether the length is even or no mask is given: the kernel's backward pass asks for either.

    Example:
      >>> flash_serves(jnp.dtype("float32"), 64, True)
      False
    """
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    fits = dtype == jnp.bfloat16 and head_dim % _HEAD_STEP == 0 and head_dim <= _HEAD_MAX
    return fits and even and float(device.compute_capability) >= 8


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array | None = None,
    window: int | jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """``softmax(q k^T / sqrt(head_dim)) v`` over the keys up to each query; heads share keys in groups.

    Without padding, and with one window for all layers, no mask is built: that is the fused kernel's fastest case.

    Args:
      q: ``[B, S, heads, head_dim]``.
      k, v: ``[B, S, kv_heads, head_dim]``, ``heads`` a multiple of ``kv_heads``.
      key_mask: bool ``[B, S]``, false for padding; ``None``: no padding.
      window: how many keys a query sees, itself included; an array where it differs from layer to layer;
        ``None``: all before it.
      implementation: ``"xla"``, ``"cudnn"``, or ``"auto"``: cuDNN's flash attention where `flash_serves` says so.

    Returns:
      ``[B, S, heads, head_dim]``. Queries without any key get finite values.

    Example:
      >>> x = jnp.ones((1, 3, 2, 8))
      >>> causal_attention(x, x[:, :, :1], x[:, :, :1]).shape
      (1, 3, 2, 8)
    """
    batch, length = q.shape[:2]
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if isinstance(window, jax.Array):
        near = (jnp.arange(length) > jnp.arange(length)[:, None] - window)[None, None]
        mask, window = (near if mask is None else mask & near), None
    if implementation == "auto":
        even = mask is None or length % 2 == 0
        implementation = "cudnn" if flash_serves(q.dtype, q.shape[-1], even) else "xla"
    if mask is not None and implementation == "cudnn":
        # For all heads: under a vmap over tasks the kernel's batching rule asks for a bias of full size.
        mask = jnp.broadcast_to(mask, (batch, q.shape[2], length, length))
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn" if implementation == "cudnn" else "xla",
    )


def cached_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_positions: jax.Array,
    k_positions: jax.Array,
    window: int | jax.Array | None = None,
) -> jax.Array:
    """Attention of new tokens to a cache: `causal_attention`, by position in the text instead of index.

    Args:
      q: ``[B, n, heads, head_dim]``.
      k, v: ``[B, M, kv_heads, head_dim]``.
      q_positions: int ``[B, n]``.
      k_positions: int ``[B, M]``, -1 where there is no token.
      window: see `causal_attention`.

    Returns:
      ``[B, n, heads, head_dim]``.

    Example:
      >>> x = jnp.ones((1, 1, 1, 8))
      >>> cached_attention(x, x, x, jnp.array([[4]]), jnp.array([[4]])).shape
      (1, 1, 1, 8)
    """
    q_positions, k_positions = q_positions[:, :, None], k_positions[:, None, :]
    mask = (k_positions >= 0) & (k_positions <= q_positions)
    if window is not None:
        mask &= k_positions > q_positions - window
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")
