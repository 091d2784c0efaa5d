"""Options of raw files: how they are read, and where a table of one's own lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gems_jax.data.raw.blank import MISSING_WORDS

# Roles whose cells may hold several values.
LIST_ROLES = ("target", "history", "history_task", "negatives")
TIME_UNITS = ("s", "ms", "us", "ns", "days")


@dataclass(frozen=True)
class Reading:
    """How files of rows are read.

    Attributes:
      delimiter: character between the columns of a text table; ``null``: the one of tab, comma, semicolon and bar that
        gives the header the columns needed.
      quoting: ``rfc4180``: a column that begins with a quotation mark ends with one, and has delimiters, line breaks
        and doubled quotation marks inside; ``none``: quotation marks are characters like others. ``null``: ``none`` for
        ``.tsv`` without quotation marks in the header, else ``rfc4180``, with a check that no column holds other rows.
      max_row_bytes: longer rows are bad rows.
      max_expansion: refuse a compressed file (parquet included) that unpacks to more than this many times its size and
        to more than 64 MiB.
    """

    delimiter: str | None = None
    quoting: Literal["none", "rfc4180"] | None = None
    max_row_bytes: int = 64 * 2**20
    max_expansion: int = 200

    def __post_init__(self) -> None:
        if self.quoting not in (None, "none", "rfc4180"):
            raise ValueError(f"files.quoting must be none or rfc4180, got {self.quoting!r}")
        if self.delimiter is not None and (len(self.delimiter_character) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"files.delimiter must be one character (or tab), got {self.delimiter!r}")
        if self.delimiter is not None and not self.delimiter_character.isascii():
            raise ValueError(f"files.delimiter must be an ASCII character, got {self.delimiter!r}")
        for name in ("max_row_bytes", "max_expansion"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"files.{name} must be a whole number from 1 on, got {value!r}")

    @property
    def delimiter_character(self) -> str:
        """The delimiter, where a shell or YAML left a tab as a word or with its backslash; empty where none is given.

        Example:
          >>> Reading(delimiter="tab").delimiter_character == Reading(delimiter="\\\\t").delimiter_character == "\\t"
          True
        """
        return {"tab": "\t", "\\t": "\t", None: ""}.get(self.delimiter, self.delimiter or "")


@dataclass(frozen=True)
class TableFiles(Reading):
    """Where a table of interactions lies, what its columns are called and how it is read (see `Reading`).

    Attributes:
      interactions: a file, a folder of files or a pattern under the data's folder, or elsewhere where it is absolute or
        begins with ``file://``: CSV, JSON lines, JSON arrays or parquet (text also as ``.gz``, ``.bz2``, ``.zst``,
        ``.lz4``); or one for each of ``train``, ``valid`` and ``test``.
      items: the catalogue; ``null``: the items are those that occur, and their ids are their titles.
      columns: role to column of the interactions, where a column is not named as its role. Roles: ``user_id``,
        ``target`` (both needed), ``task``, ``history``, ``history_task``, ``query``, ``negatives``, ``timestamp``,
        ``split``.
      item_columns: role to column of the catalogue, where a column is not named as its role. Roles: ``item_id``,
        ``title``, ``text``.
      tasks: the file's names of tasks to the ones to use, say ``{search: src}``.
      query_tasks: tasks that need a query.
      missing: words that mean an empty cell where they stand alone in one, in every format and column. By default those
        that many programs write, see `gems_jax.data.raw.blank.MISSING_WORDS`.
      separators: role (``target``, ``history``, ``history_task``, ``negatives``) to the text between the ids of a cell;
        an empty text: such a cell is always one id. For a role that is not named, the catalogue tells what an id is;
        without a catalogue, a target is one id, and a list is divided at spaces, commas, semicolons and bars.
      time_format: how times are written, where they do not show it: ``s``, ``ms``, ``us``, ``ns`` since 1970, ``days``
        as spreadsheets count them, or a form of ``strptime`` such as ``%d/%m/%Y %H:%M``.
    """

    interactions: str | dict[str, str] = "interactions.csv"
    items: str | None = "items.csv"
    columns: dict[str, str] = field(default_factory=dict)
    item_columns: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    query_tasks: tuple[str, ...] = ("src",)
    missing: tuple[str, ...] = MISSING_WORDS
    separators: dict[str, str] = field(default_factory=dict)
    time_format: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.missing, tuple | list) or not all(isinstance(word, str) for word in self.missing):
            raise ValueError(f"files.missing must be a list of words, got {self.missing!r}")
        if not isinstance(self.separators, Mapping):
            raise ValueError(f"files.separators must be a mapping of roles to texts, got {self.separators!r}")
        for role, text in self.separators.items():
            if role not in LIST_ROLES:
                raise ValueError(f"files.separators names {role!r}; roles of lists are {', '.join(LIST_ROLES)}")
            if not isinstance(text, str):
                raise ValueError(f"files.separators.{role} must be text, got {text!r}; '' for one id a cell")
        form = self.time_format
        if form is not None and form not in TIME_UNITS and "%" not in form:
            known = ", ".join(TIME_UNITS)
            raise ValueError(f"files.time_format must be one of {known} or a form like '%d/%m/%Y', got {form!r}")
