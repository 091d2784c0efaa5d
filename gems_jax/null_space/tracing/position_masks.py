"""Which vectors of a kernel's input count, from the masks of a batch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.null_space.tracing.kernel_products import Use
from gems_jax.null_space.tracing.kernel_tags import Scope
from gems_jax.null_space.tracing.token_axes import TokenAxes, trace_token_axes
from gems_jax.null_space.tracing.traced_value import (
    DECODER_TOKENS,
    LOST,
    NONE,
    ROWS,
    TOKENS,
    Axis,
    Digit,
    TracedValue,
    entry,
    plain,
)


class Masks(NamedTuple):
    """Which positions count, ``[B, S]``: those of the batch, and those of the decoder of a model that has two sides."""

    tokens: jax.Array | None = None
    decoder: jax.Array | None = None


class Unknown(Exception):
    """It is not known which entry of a mask belongs to a vector."""


def token_axes_of(jaxpr: Any, num_params: int, is_decoder: Sequence[bool], masks: Masks) -> TokenAxes:
    """The axes of a forward pass's values that run along the masks.

    Args:
      jaxpr: of the pass; its inputs are the parameters' leaves, then the batch's.
      num_params: how many are parameters.
      is_decoder: of the batch's leaves, whether they belong to the decoder's side.
      masks: of the batch.
    """
    args = [plain(var.aval.shape) for var in jaxpr.invars[:num_params]]
    for var, decoder in zip(jaxpr.invars[num_params:], is_decoder, strict=True):
        mask = masks.decoder if decoder else masks.tokens
        shape = None if mask is None else mask.shape
        args.append(entry(var.aval.shape, shape, DECODER_TOKENS if decoder else TOKENS))
    return trace_token_axes(jaxpr, args)


def position_mask(use: Use, token_axes: TokenAxes, masks: Masks, steps: Mapping[Scope, Any]) -> jax.Array | None:
    """The mask of a use's positions, one entry for each vector; ``None``: all count.

    A position that was summed away counts where any of its entries does.

    Args:
      use: an input of a kernel.
      token_axes: which axes of values run along the masks, see `token_axes_of`.
      masks: of the batch.
      steps: numbers of the steps of the loops around the use.

    Raises:
      Unknown: it is not known which entry of the mask belongs to a vector.
    """
    mask, positions = (masks.decoder, DECODER_TOKENS) if use.is_decoder else (masks.tokens, TOKENS)
    value = token_axes.values[use.scope, use.var]
    if mask is None or not value.is_data:
        return None
    digits = [d for a, axis in enumerate(value.axes) if a not in (*use.axes, *use.lead) for d in axis]
    if mask.ndim != 2 or any(digit.axis == LOST for digit in digits):
        raise Unknown
    loops = token_axes.loops.items()
    around = [(loop, steps.get(scope, 0)) for scope, loop in loops if use.scope[: len(scope)] == scope]
    rows = _index(ROWS, mask.shape[0], digits, value, around)
    columns = _index(positions, mask.shape[1], digits, value, around)
    if rows is None and columns is None:
        raise Unknown
    if rows is None:
        counts = jnp.any(mask != 0, axis=0)[columns]
    elif columns is None:
        counts = jnp.any(mask != 0, axis=1)[rows]
    else:
        counts = mask[rows, columns]
    return jnp.broadcast_to(counts, tuple(digit.size for digit in digits)).reshape(-1)


def _index(
    axis: int, size: int, digits: Sequence[Digit], value: TracedValue, around: Sequence[tuple[Axis, Any]]
) -> Any:
    """Positions along a mask's axis, one for each combination of digits; ``None``: summed away.

    The value's own digits come first, then those of the loops' steps, then entries that were taken.
    """
    if size == 1:
        return 0
    by_digit: dict[tuple[int, int], Any] = {}
    for a, digit in enumerate(digits):
        if digit.axis == axis:
            if (digit.unit, digit.span) in by_digit:
                raise Unknown
            numbers = digit.offset + digit.stride * jnp.arange(digit.size)
            by_digit[digit.unit, digit.span] = numbers.reshape(-1, *(1 for _ in digits[a + 1 :]))
    for loop, step in reversed(around):
        if _is_whole(by_digit, size):
            break
        left = math.prod(digit.size for digit in loop)
        for digit in loop:
            if digit.axis == LOST:
                raise Unknown
            left //= digit.size
            if digit.axis == axis:
                by_digit.setdefault((digit.unit, digit.span), digit.offset + digit.stride * (step // left % digit.size))
    if not _is_whole(by_digit, size):
        for taken in value.fixed:
            if taken.axis in (axis, LOST):
                if taken.at is None or (taken.unit, taken.span) in by_digit:
                    raise Unknown
                by_digit[taken.unit, taken.span] = taken.at
    if not by_digit and not any(digit.axis == NONE for digit in digits):
        return None
    if not _is_whole(by_digit, size):
        raise Unknown
    return sum(by_digit.values())


def _is_whole(by_digit: Mapping[tuple[int, int], Any], size: int) -> bool:
    unit = 1
    for at, span in sorted(by_digit):
        if at != unit:
            return False
        unit *= span
    return unit == size
