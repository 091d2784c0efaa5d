"""Arguments of another type than expected: one error that names the argument, what was expected and what came.

Numbers may be arrays, traced ones too: hyperparameters that change from step to step come so.
"""

import numbers
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.whole_number import is_whole

_SHORT = reprlib.Repr()  # of a large tree or text its beginning
_SHORT.maxstring, _SHORT.maxother = 40, 60


def refuse(name: str, value: Any, expected: str) -> None:
    """Raises the ``TypeError`` of an argument that is not what was expected.

    Example:
      >>> refuse("inner", "adam", "an optax transform")
      Traceback (most recent call last):
      TypeError: inner is 'adam' (str); expected an optax transform
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        came = f"an array {list(value.shape)} of {value.dtype}"
    else:
        came = f"{getattr(value, '__name__', None) or _SHORT.repr(value)} ({type(value).__name__})"
    raise TypeError(f"{name} is {came}; expected {expected}")


def check_number(name: str, value: Any, schedule: bool = False) -> None:
    """Refuses what is no real number and no array of one; with ``schedule`` a function of the step is right, too."""
    array = isinstance(value, jax.Array | np.ndarray) and value.ndim == 0
    real = jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating) if array else False
    plain = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (plain or real or (schedule and callable(value))):
        refuse(name, value, "a number, or a schedule: a function of the step" if schedule else "a number")


def check_whole(name: str, value: Any, least: int | None = None, what: str = "a whole number") -> None:
    """Refuses what is no whole number.

    Raises:
      ValueError: it is one below the least.
    """
    if not is_whole(value):
        refuse(name, value, what)
    if least is not None and value < least:
        raise ValueError(f"{name} is {what}, at least {least}, got {value}")


def check_flag(name: str, value: Any) -> None:
    """Refuses what is neither true nor false: a text such as ``"no"`` would count as true."""
    if not isinstance(value, bool | np.bool_):
        refuse(name, value, "True or False")


def check_function(name: str, value: Any, expected: str) -> None:
    """Refuses what cannot be called."""
    if not callable(value):
        refuse(name, value, expected)


def check_matrix_rule(value: Any) -> None:
    """Refuses an argument ``matrix_dims`` that is no rule, where there may be none."""
    if value is not None:
        check_function("matrix_dims", value, "a function (path, leaf) -> MatrixDims | None")


def check_transform(name: str, value: Any) -> None:
    """Refuses what is no optax transform, as the function that makes one."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        refuse(name, value, "an optax transform, such as optax.scale_by_adam()")
