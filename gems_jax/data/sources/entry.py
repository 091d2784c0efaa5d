"""Describes a source of data to `prepare`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gems_jax.data.dataset.tables import Dataset
from gems_jax.data.preparation.options import PrepareOptions
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.source import Source


@dataclass(frozen=True)
class SourceEntry:
    """How a source is read, and which options have an effect on it. Exactly one of ``read`` and ``load`` is given.

    Args:
      read: rows and catalogue from the options; takes bad rows to the quarantine and may keep the rows of each file
        in the cache. `prepare` then makes splits, histories and negatives of them.
      load: the whole dataset from the options, for small sources that make their own splits.
      raw_files: the files that are read. Edited ones are prepared again. None: the source is made from the seed.
      defaults: fields of `Preprocessing` that are set where the user names none.
      files: default of the option of that name. None: the option has no effect.
      takes: which of ``category`` and ``num_users`` have an effect.

    Raises:
      ValueError: both or none of ``read`` and ``load``, or ``takes`` names another option.
    """

    read: Callable[[PrepareOptions, Quarantine, ReadCache], Source] | None = None
    load: Callable[[PrepareOptions], Dataset] | None = None
    raw_files: Callable[[PrepareOptions], Iterable[Path]] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    files: TableFiles | None = None
    takes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.read is None) == (self.load is None):
            raise ValueError("a source needs exactly one of read (rows and catalogue) and load (the whole dataset)")
        other = sorted(set(self.takes) - {"category", "num_users"})
        if other:
            raise ValueError(f"takes is of category and num_users, got {', '.join(map(repr, other))}")

    @property
    def takes_preprocessing(self) -> bool:
        """Whether rows are what `prepare` goes on with."""
        return self.read is not None
