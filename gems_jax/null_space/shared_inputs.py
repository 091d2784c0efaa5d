"""Which kernels of a mapping were given one and the same moment."""

import weakref
from collections.abc import Callable
from typing import Any

from gems_jax.null_space.second_moment import SecondMoment


class SharedInputs:
    """Which kernels were given one and the same moment: the first of them names it.

    A mapping that makes its values when they are asked for (a file's arrays) lets go of each, and the next may take its
    address, so that addresses alone say nothing. Arrays are watched, not kept: there may be more than fit into memory.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Callable[[], Any], str]] = {}

    def of(self, path: str, moment: Any) -> str:
        """The name of a kernel's input."""
        array = moment.total if isinstance(moment, SecondMoment) else moment
        former, name = self._known.get(id(array), (lambda: None, path))
        if former() is array:
            return name
        try:
            self._known[id(array)] = (weakref.ref(array), path)
        except TypeError:  # a list: kept
            self._known[id(array)] = (lambda: array, path)
        return path
