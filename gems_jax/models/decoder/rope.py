"""Rotary positions (arXiv 2104.09864) and the ways in which released models stretch them to longer texts."""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.models.config_checks import check_truth, is_number, shown


class Scaling(Protocol):
    """How the angles of rotary positions are changed for texts longer than those of the pretraining."""

    def __call__(self, inverse: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """Changed inverse frequencies, and a factor on the rotated queries and keys."""


def _check_positive(scaling: object, *names: str) -> None:
    for name in names:
        value = getattr(scaling, name)
        if not is_number(value) or value <= 0:
            raise ValueError(f"{type(scaling).__name__}.{name} must be a number above 0, got {shown(value)}")


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by ``factor`` (arXiv 2306.15595).

    Example:
      >>> LinearScaling(4.0)(np.array([1.0, 0.1]), 100.0)[0].tolist()
      [0.25, 0.025]
    """

    factor: float

    def __post_init__(self) -> None:
        _check_positive(self, "factor")

    def __call__(self, inverse: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """See `Scaling`."""
        return inverse / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Slow frequencies divided by ``factor``, fast ones kept, those between blended (Llama 3.1).

    With ``n`` turns within the original length, the share of the kept frequency is
    ``clip((n - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)``.

    Example:
      >>> scaling = Llama3Scaling(8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64)
      >>> scaling(np.array([1.0, 0.01]), 10000.0)[0].tolist()
      [1.0, 0.00125]
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        _check_positive(self, "factor", "low_freq_factor", "high_freq_factor", "original_max_positions")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"Llama3Scaling.high_freq_factor={self.high_freq_factor} must exceed "
                f"low_freq_factor={self.low_freq_factor}"
            )

    def __call__(self, inverse: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """See `Scaling`."""
        turns = self.original_max_positions * inverse / (2 * math.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return kept * inverse + (1 - kept) * inverse / self.factor, 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): blended by turns as in `Llama3Scaling`, along the dimensions, and sharper scores.

    Args:
      factor: how many times longer texts become.
      original_max_positions: length of the pretraining.
      attention_factor: on rotated queries and keys; ``None``: ``0.1 ln(factor) + 1``, or the quotient of two such
        terms with ``mscale`` and ``mscale_all_dim`` before the logarithm where both are given.
      beta_fast, beta_slow: turns within the original length from which a frequency is kept, and up to which it is
        divided.
      mscale, mscale_all_dim: see ``attention_factor``.
      truncate: whether the ends of the blend are rounded to whole dimensions.

    Example:
      >>> inverse, factor = YarnScaling(4.0, original_max_positions=64)(np.array([1.0, 0.01]), 10000.0)
      >>> inverse.tolist(), round(factor, 4)
      ([1.0, 0.0025], 1.1386)
    """

    factor: float
    original_max_positions: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        given = [n for n in ("attention_factor", "mscale", "mscale_all_dim") if getattr(self, n) is not None]
        _check_positive(self, "factor", "original_max_positions", "beta_fast", "beta_slow", *given)
        check_truth("YarnScaling.truncate", self.truncate)

    def __call__(self, inverse: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
        """See `Scaling`."""
        dim = 2 * len(inverse)

        def dimension(turns: float) -> float:
            return dim * math.log(self.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        divided = np.clip((np.arange(len(inverse)) - low) / ((high - low) or 0.001), 0, 1)
        return (1 - divided) * inverse + divided * inverse / self.factor, self._attention_factor()

    def _attention_factor(self) -> float:
        def sharper(scale: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return sharper(self.mscale) / sharper(self.mscale_all_dim)
        return sharper(1.0)


def rotation(
    positions: jax.Array, head_dim: int, theta: float, scaling: Scaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the angles ``position * theta ** (-2 i / head_dim)``.

    Args:
      positions: int ``[..., S]``.
      head_dim: width of an attention head, even.
      theta: base of the wavelengths.
      scaling: how the frequencies are stretched; ``None``: not at all.

    Returns:
      Two float32 ``[..., S, head_dim / 2]``, for `rotate`.

    Example:
      >>> cos, sin = rotation(jnp.array([0, 1]), 4, 10000.0)
      >>> print(sin.round(4))
      [[0.     0.    ]
       [0.8415 0.01  ]]
    """
    inverse = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    inverse, factor = (inverse, 1.0) if scaling is None else scaling(inverse, theta)
    angles = positions[..., None].astype(jnp.float32) * inverse.astype(np.float32)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates dimension ``i`` of each head against dimension ``i + head_dim / 2``, computed in float32.

    Args:
      x: ``[..., S, heads, head_dim]``.
      cos, sin: ``[..., S, head_dim / 2]`` from `rotation`.

    Returns:
      As ``x``.

    Example:
      >>> print(rotate(jnp.array([[[1.0, 0.0]]]), jnp.array([[0.6]]), jnp.array([[0.8]])))
      [[[0.6 0.8]]]
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
