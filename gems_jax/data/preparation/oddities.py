"""Remarks on columns that are odd as a whole though each cell is fine: one value, equal times, dates as numbers."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gems_jax.data.dataset.tables import Item
from gems_jax.data.preparation.copies import same_moment
from gems_jax.data.raw.examples import Examples
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.times import looks_like_days, of_dates, of_days

# A value dominates a column of which it holds this share, and this many times what others usually have.
SHARE, TIMES = 0.1, 5
LEAST = 10
# Times of some rows before and of others after these are two ways of writing: 1973 and 1990 in seconds.
_EARLY, _LATE = 1e8, 6.3e8


def remark_values(examples: Examples, items: Sequence[Item], quarantine: Quarantine) -> None:
    """Counts values that stand in so many rows that they hardly mean what their column is for."""
    names = examples.names
    searches = examples.query[examples.query >= 0]
    for what, values, of in (
        ("user_id", examples.user, names.users.names),
        ("query", searches, names.queries.names),
        ("target", examples.targets.values, names.items.names),
    ):
        _remark_value(what, np.bincount(values, minlength=1), of, "rows", quarantine)
    titles = Counter(item.title for item in items)
    _remark_value("title", np.asarray([*titles.values()], np.int64), [*titles], "items", quarantine)


def _remark_value(what: str, counts: np.ndarray, names: Sequence[str], unit: str, quarantine: Quarantine) -> None:
    total = int(counts.sum())
    if not total:
        return
    most = int(counts.argmax())
    others = np.delete(counts, most)
    usual = float(np.median(others[others > 0])) if others.any() else 0.0
    count = int(counts[most])
    if count >= max(LEAST, SHARE * total, TIMES * usual):
        text = f"the {what} {names[most][:60]!r} stands in {{n}} of {total:,} {unit}"
        quarantine.remark(text + "; if it stands for nothing, list it in files.missing", count, "")


def remark_equal_times(examples: Examples, quarantine: Quarantine) -> None:
    """Counts rows whose order within their user is unknown, where there are many.

    Args:
      examples: rows with times, whose histories are still to be made.
      quarantine: gets the count.
    """
    tied = same_moment(examples)
    if tied.sum() < max(2, SHARE * len(examples)):
        return
    constant = examples.time.min() == examples.time.max()
    first = int(np.flatnonzero(tied)[0])
    quarantine.remark(
        "{n} rows share their timestamp with another row of the same user: which came first is unknown, so neither is "
        "in the other's history"
        + ("; the timestamp is the same in all rows, and all histories are empty" if constant else "")
        + ". Give finer times or, where rows are in the order of time, none (files.columns: {timestamp: ''})",
        int(tied.sum()),
        f"user {examples.names.users.names[examples.user[first]]!r} at {when(examples.time[first])}",
    )


def settle_times(examples: Examples, quarantine: Quarantine) -> Examples:
    """Times of files in which all of them are dates written as one number, or days of a spreadsheet, as seconds.

    As seconds such numbers would be of the year 1970.

    Args:
      examples: rows, their numbers read as seconds.
      quarantine: gets a count.
    """
    time = examples.time.copy()
    for file in np.unique(examples.file):
        rows = np.flatnonzero((examples.file == file) & ~np.isnan(time))
        numbers = time[rows]
        name = examples.names.files.names[file]
        if not len(rows) or numbers.min() >= _EARLY:
            continue
        dates = of_dates(numbers)
        if dates is None and looks_like_days(numbers):
            dates = of_days(numbers)
        early = numbers < _EARLY
        if dates is None and numbers.max() >= _LATE and (dates := of_dates(numbers[early])) is not None:
            # Beside dates written in other forms.
            rows, numbers = rows[early], numbers[early]
        if dates is not None:
            example = f"{numbers[0]:.15g} as {when(dates[0])}"
            text = f"{{n}} timestamps of {name} were read as dates; files.time_format: s says that they are seconds"
            quarantine.remark(text, len(rows), example)
            time[rows] = dates
        elif numbers.max() >= _LATE:
            text = f"{{n}} timestamps of {name} lie in 1970 to 1973, others after 1990: they may be of another kind"
            quarantine.remark(text, int(early.sum()), f"{numbers[early][0]:.15g}")
    return examples.replace(time=time)


def when(seconds: float) -> str:
    """A time as people write it.

    Example:
      >>> when(1700000000.0)
      '2023-11-14T22:13:20'
    """
    return datetime.datetime.fromtimestamp(float(seconds), datetime.UTC).replace(tzinfo=None).isoformat()
