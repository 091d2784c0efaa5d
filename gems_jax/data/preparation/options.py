"""Options of `prepare`: the steps between reading and writing, and all that a source is told."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from gems_jax.data.raw.options import TableFiles

T = TypeVar("T")


@dataclass(frozen=True)
class Preprocessing:
    """The steps between reading rows and writing them; ``None``: what the source does by default.

    Attributes:
      core: leave out users and items with fewer events, again and again until all that stay have as many; 0: none.
        Default: 3 for ``qilin``, 5 for ``amazon``.
      min_rows: leave out a user's rows of a task if the user has fewer of them. Default: 3 for ``qilin``.
      both_tasks: whether users without rows of both search and recommendation are left out. Default: true for
        ``qilin``.
      max_history: newest events that a history keeps; 0: all. Default: 20.
      min_history: leave out rows with shorter histories. Default: 1 for ``amazon``.
      multi_click: ``expand``: a row of several targets becomes one row for each; ``first``: it keeps the first.
      repeats: whether a user may interact with an item again. If not, the second time is a bad row, and no held-out
        item stands anywhere in training rows. If so, events are told apart by their times.
      history_tasks: for each task, the tasks whose events its histories keep; a task that is not named keeps all. The
        authors' release for Amazon has ``{rec: [rec]}``.
      on_leak: where the splits came with the data and leak: ``fail``, or ``remove`` what leaks and count it.
      cold_items: whether valid and test may have targets that training never shows, if the splits came with the data.
    """

    core: int | None = None
    min_rows: int | None = None
    both_tasks: bool | None = None
    max_history: int | None = None
    min_history: int | None = None
    multi_click: Literal["expand", "first"] = "expand"
    repeats: bool = False
    history_tasks: dict[str, list[str]] = field(default_factory=dict)
    on_leak: Literal["fail", "remove"] = "fail"
    cold_items: bool = False

    def __post_init__(self) -> None:
        for name in ("core", "min_rows", "max_history", "min_history"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"preprocessing.{name} must be a whole number from 0 on, got {value!r}")
        for name, known in (("multi_click", ("expand", "first")), ("on_leak", ("fail", "remove"))):
            if getattr(self, name) not in known:
                raise ValueError(f"preprocessing.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def with_defaults(self, **defaults: Any) -> Preprocessing:
        """These options, what is None replaced by the source's default and, without one, by 0 or False.

        Example:
          >>> options = Preprocessing(core=5).with_defaults(core=3, max_history=20)
          >>> options.core, options.max_history, options.min_rows, options.both_tasks
          (5, 20, 0, False)
        """
        none = {"core": 0, "min_rows": 0, "both_tasks": False, "max_history": 0, "min_history": 0} | defaults
        return dataclasses.replace(self, **{name: v for name, v in none.items() if getattr(self, name) is None})


@dataclass(frozen=True)
class PrepareOptions:
    """The arguments of `prepare` but the dataset's folder, see there for each.

    Attributes:
      folder: ``path`` as such.
    """

    name: str
    path: str | None
    seed: int
    num_negatives: int
    num_users: int
    max_bad_fraction: float
    preprocessing: Preprocessing
    files: TableFiles
    category: str | None

    @property
    def folder(self) -> Path:
        return Path(str(self.path))


def options_of(kind: type[T], value: T | Mapping[str, Any] | None, name: str) -> T:
    """An options dataclass from itself, a mapping or None; an unknown name is an error with the nearest known one.

    Example:
      >>> options_of(Preprocessing, {"coer": 3}, "preprocessing")
      Traceback (most recent call last):
      ...
      ValueError: preprocessing has no field 'coer'; did you mean 'core'?
    """
    if isinstance(value, kind):
        return value
    given = dict(value or {})  # type: ignore[arg-type]
    known = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{name} has no field {key!r}; {hint}")
    return kind(**given)
