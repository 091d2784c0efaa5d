"""Arguments that are whole numbers: Python's own or numpy's."""

import numbers
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, Python's or numpy's; ``True`` and ``2.0`` are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole(name: str, value: Any) -> int:
    """An argument as Python's own int.

    Raises:
      TypeError: no whole number.

    Example:
      >>> import numpy as np
      >>> whole("rank", np.int64(4))
      4
    """
    if not is_whole(value):
        raise TypeError(f"{name}={value!r}: give a whole number of columns; fractions are for gems_jax.gems")
    return int(value)
