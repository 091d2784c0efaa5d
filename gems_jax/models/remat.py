"""Which values of a layer the backward pass computes again instead of keeping them."""

from collections.abc import Callable
from typing import Any

import jax

# None: everything is computed again.
_POLICIES: dict[str, Callable[..., bool] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMAT = ("none", *_POLICIES)


def check_remat(policy: str, owner: str = "remat") -> None:
    """Raises ValueError if ``policy`` is not one of ``REMAT``; ``owner`` is the setting's name in the message."""
    if policy not in REMAT:
        raise ValueError(f"{owner} must be one of {', '.join(map(repr, REMAT))}, got {policy!r}")


def checkpointed(body: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """A scan's body, one layer, that keeps for the backward pass what a policy says.

    Args:
      body: the body.
      policy: ``"none"``: all inner values are kept; ``"full"``: none, the layer is computed again from its input;
        ``"dots"``: the products with kernels, the dearest to compute again.

    Returns:
      A function of the same values.

    Raises:
      ValueError: if the policy is none of these.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> body = checkpointed(lambda x, w: (jnp.sin(x * w), None), "full")
      >>> print(jax.grad(lambda x: jax.lax.scan(body, x, jnp.ones(3))[0])(0.0))
      1.0
    """
    check_remat(policy)
    if policy == "none":
        return body
    # Inside of a scan nothing can be merged across the recomputation, the barrier against it only costs.
    return jax.checkpoint(body, prevent_cse=False, policy=_POLICIES[policy])
