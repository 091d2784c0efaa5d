"""Types and bounds of a model's options, checked before anything is made of them."""

import json
import math
import numbers
import reprlib
from pathlib import Path
from typing import Any

# Far above every model there is (126 layers, 262,144 tokens), far below what would only fill the memory.
MAX_LAYERS = 10_000
MAX_WIDTH = 1 << 20
MAX_ROWS = 1 << 26
MAX_POSITIONS = (1 << 31) - 1
# The largest models published have some 2e12.
MAX_PARAMETERS = 10**13
# A config.json has a few thousand bytes, unless it names a class for each of many labels.
MAX_CONFIG_BYTES = 1 << 24
# Added to a mean of squares: an epsilon of 1 or more would stand for the activations themselves.
MAX_EPSILON = 1.0
# A value from a file may be of any size, a message may not.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 3, 8, 8
_SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 120, 60, 120


def shown(value: Any) -> str:
    """A value for a message, shortened where it is long."""
    return _SHORT.repr(value)


def read_object(path: Path) -> dict[str, Any]:
    """The values of a configuration file.

    Raises:
      ValueError: the file is damaged or too large.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, no configuration has {MAX_CONFIG_BYTES:,}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raises ``ValueError`` for anything but a whole number from ``low`` to ``high``.

    Example:
      >>> check_whole("config.num_layers", 0, 1, MAX_LAYERS)
      Traceback (most recent call last):
      ValueError: config.num_layers must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number, got {shown(value)}")
    if int(value) < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if int(value) > high:
        raise ValueError(f"{name} must be at most {high:,}, got {value}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises ``ValueError`` for anything but a finite number, at least ``low`` and below ``high``.

    Example:
      >>> check_number("config.norm_epsilon", -1e-6, 0.0, MAX_EPSILON)
      Traceback (most recent call last):
      ValueError: config.norm_epsilon must be in [0, 1), got -1e-06
    """
    if not is_number(value):
        raise ValueError(f"{name} must be a number, got {shown(value)}")
    if not low <= value < high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}), got {shown(value)}")


def check_truth(name: str, value: Any) -> None:
    """Raises ``ValueError`` for anything but ``True`` and ``False``."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number; truth values are none.

    Example:
      >>> is_number(1e-6), is_number("1e-6"), is_number(True), is_number(float("inf"))
      (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def check_added_tokens(owner: str, value: Any) -> None:
    """Raises ``ValueError`` if a number of item rows is none."""
    if isinstance(value, numbers.Integral) and int(value) < 0:
        raise ValueError(f"{owner}.num_added_tokens must not be negative, got {value}")
    check_whole(f"{owner}.num_added_tokens", value, 0, MAX_ROWS)


def check_token(name: str, value: Any, vocab_size: int) -> None:
    """Raises ``ValueError`` for anything but the id of a token of the pretrained vocabulary.

    Example:
      >>> check_token("config.eos_token_id", 9, vocab_size=9)
      Traceback (most recent call last):
      ValueError: config.eos_token_id=9 is outside of the vocabulary of 9
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number, got {shown(value)}")
    if not 0 <= int(value) < vocab_size:
        raise ValueError(f"{name}={value} is outside of the vocabulary of {vocab_size}")
