"""Times of raw tables as seconds: numbers of several units, dates of several forms, one column at a time."""

from __future__ import annotations

import datetime
import email.utils
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gems_jax.data.raw.blank import MISSING_WORDS, without_words
from gems_jax.data.raw.columns import as_text

# 2100-01-01 in seconds: a later time is absurd.
LATEST = 4_102_444_800.0
# From where on a number is milli-, micro- or nanoseconds (of 1973), and how many of them a second has.
_UNITS = ((1e11, 1e3), (1e14, 1e6), (1e17, 1e9))
# How many of the units of ``files.time_format`` a second has.
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
# Spreadsheets count days from here, the day before 1899-12-31, because they take 1900 for a leap year.
_FIRST_DAY = datetime.datetime(1899, 12, 30, tzinfo=datetime.UTC)
# Dates written as one number of 8 to 14 digits. As seconds or milliseconds all but the shortest are years that no log
# has, 1976 to 1980 or from 2033 on.
_DIGITS = {10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_DAY = "%Y%m%d"
# Day and month by numbers in an order that only a reader of that country knows.
_NUMERIC = re.compile(r"(\d{1,2})([/\-])(\d{1,2})\2(\d{2}|\d{4})\b(.*)", re.DOTALL)
_FORMS = (
    "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y",
    "%d/%b/%Y:%H:%M:%S %z", "%Y-%m-%d %H:%M:%S %z", "%Y-%m-%d %I:%M:%S %p", "%Y-%m-%d %I:%M %p",
    "%b %d, %Y %I:%M:%S %p", "%b %d, %Y %I:%M %p", "%B %d, %Y", "%b %d, %Y", "%d %B %Y", "%d %b %Y", "%d-%b-%Y",
    "%d-%b-%Y %H:%M:%S",
)  # fmt: skip
# Dates of e-mails, of HTTP and of C: what the parser of e-mails also takes, such as PM or CET, it reads without them.
_ZONE = r"(?:[+-]\d{4}|UTC?|GMT|[ECMP][SD]T)"
_MAIL = re.compile(
    r"(?:[a-z]{3,9},?\s+)?\d{1,2}[ -][a-z]{3}[ -](?:\d{4}|\d{2})\s+\d{1,2}:\d{2}(?::\d{2})?"
    rf"(?:\s+{_ZONE}(?:\s+\([\w ]+\))?)?"
    rf"|[a-z]{{3}}\s+[a-z]{{3}}\s+\d{{1,2}}\s+\d{{1,2}}:\d{{2}}:\d{{2}}(?:\s+{_ZONE})?\s+\d{{4}}",
    re.IGNORECASE,
)
# As JavaScript prints them.
_SCRIPT = re.compile(r"([a-z]{3} [a-z]{3} \d{1,2} \d{4} \d{2}:\d{2}:\d{2} GMT[+-]\d{4})(?: \(.*\))?", re.IGNORECASE)
_CLOCK = re.compile(r"\d:\d\d|\dT\d{4}")
_ZONED = re.compile(rf"[\d:][Zz]$|\d\s*[+-]\d\d:?\d\d(?::?\d\d)?$|\s{_ZONE}\b|GMT[+-]")
# A decimal comma behind more digits than stand between thousands.
_COMMA = re.compile(r"(\d{4,}),(\d+)")


class ParsedTimes(NamedTuple):
    """The times of a column's cells, and which of them are none or cannot be told.

    Attributes:
      seconds: float64 ``[R]``, nan for empty and bad cells.
      bad: bool ``[R]``, cells that are no time between 1970 and 2100.
      unclear: bool ``[R]``, of these the dates whose day and month cannot be told apart.
      zoneless: bool ``[R]``, times without a zone beside others that have one.
    """

    seconds: np.ndarray
    bad: np.ndarray
    unclear: np.ndarray
    zoneless: np.ndarray


def as_times(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Seconds, float64 ``[R]``, nan for empty cells, and bool ``[R]``: cells that are no time from 1970 to 2100.

    Numbers are seconds, or milli-, micro- or nanoseconds where they are too large for that; text may be a date.

    Example:
      >>> as_times([1700000000, "1700000000000", "2023-11-14T22:13:20", None, "yesterday"])[0].tolist()
      [1700000000.0, 1700000000.0, 1700000000.0, nan, nan]
    """
    times = read_times(column)
    return times.seconds, times.bad


def read_times(column: Any, form: str | None = None, missing: tuple[str, ...] = MISSING_WORDS) -> ParsedTimes:
    """A column of times.

    Args:
      column: pyarrow array or list of Python values.
      form: a unit (``s``, ``ms``, ``us``, ``ns``), ``days`` of a spreadsheet, or a form of ``strptime``; None: by the
        looks.
      missing: words for nothing.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(column, list) and (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        column = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64())
        seconds = pc.divide(pc.cast(column, pa.float64()), 1e6).to_numpy(zero_copy_only=False)
        return _checked(seconds, np.isnan(seconds), np.zeros(len(seconds), bool))
    text, bad = as_text(column)
    text = without_words(text, missing)[0]
    empty = np.asarray(text.is_null()) & ~bad
    try:
        numbers = pc.cast(text, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except pa.ArrowInvalid:
        distinct = text.dictionary_encode()
        reader = _reader(form)
        values = np.asarray([*map(reader, distinct.dictionary.to_pylist()), math.nan], np.float64)
        index = pc.fill_null(distinct.indices, len(values) - 1).to_numpy(zero_copy_only=False)
        zones = [*map(_has_zone, distinct.dictionary.to_pylist()), None]
        some_have = True in zones
        zoneless = np.asarray([some_have and zone is False for zone in zones], bool)
        return _checked(values[index], empty, bad)._replace(zoneless=zoneless[index])
    return _checked(_of_numbers(numbers, form), empty, bad)


def _checked(seconds: np.ndarray, empty: np.ndarray, bad: np.ndarray) -> ParsedTimes:
    # -inf stands for a date that can be read in two ways.
    absurd = ~((seconds >= 0) & (seconds <= LATEST)) & ~empty
    unclear = np.isneginf(seconds) & ~bad
    return ParsedTimes(np.where(absurd | empty, np.nan, seconds), bad | absurd, unclear, np.zeros(len(seconds), bool))


def _has_zone(text: str) -> bool | None:
    """Whether a date with a time of day says its zone; None for other texts."""
    if not _CLOCK.search(text):
        return None
    return _ZONED.search(text) is not None


def _of_numbers(numbers: np.ndarray, form: str | None) -> np.ndarray:
    """Seconds of numbers, nan where they are none."""
    if form in _PER_SECOND:
        return numbers / _PER_SECOND[form]
    if form == "days":
        return of_days(numbers)
    if form is not None:
        return np.asarray([_stripped(_digits(number), form) for number in numbers.tolist()], np.float64)
    seconds = numbers.copy()
    for least, unit in _UNITS:
        seconds = np.where(np.abs(numbers) >= least, numbers / unit, seconds)
    for length, written in _DIGITS.items():
        dates = np.flatnonzero((numbers >= 10.0 ** (length - 1) * 1.97) & (numbers < 10.0 ** (length - 1) * 2.1))
        for index in dates.tolist():
            date = _stripped(_digits(numbers[index]), written)
            if not math.isnan(date):
                seconds[index] = date
    return seconds


def of_days(numbers: np.ndarray) -> np.ndarray:
    """Seconds of a spreadsheet's days.

    Example:
      >>> of_days(np.array([45244.5])).tolist()  # noon of 2023-11-14
      [1699963200.0]
    """
    return numbers * 86_400.0 + _FIRST_DAY.timestamp()


def of_dates(numbers: np.ndarray) -> np.ndarray | None:
    """Seconds of dates written as numbers of eight digits, None where one number is no such date.

    Example:
      >>> of_dates(np.array([20231114.0, 20231115.0])).tolist(), of_dates(np.array([20231114.0, 20231199.0]))
      ([1699920000.0, 1700006400.0], None)
    """
    if not len(numbers) or numbers.min() < 1970_01_01 or numbers.max() > 2100_01_01:
        return None
    distinct, inverse = np.unique(numbers, return_inverse=True)
    # A century has fewer days than that: these are no dates, and need not be tried.
    if len(distinct) > 50_000:
        return None
    dates = np.asarray([_stripped(_digits(number), _DAY) for number in distinct.tolist()])
    return None if np.isnan(dates).any() else dates[inverse]


def looks_like_days(numbers: np.ndarray) -> bool:
    """Whether all numbers are days of a spreadsheet between 1990 and 2100."""
    return bool(len(numbers)) and float(numbers.min()) >= 32_874 and float(numbers.max()) <= 73_051


def _digits(number: float) -> str:
    return str(int(number)) if math.isfinite(number) and number == int(number) else ""


def _reader(form: str | None) -> Callable[[str], float]:
    """Reads one text: seconds, inf where it is no time, -inf where it is one of two."""

    def number_or_date(text: str) -> float:
        try:
            number = float(_COMMA.sub(r"\1.\2", text) if _COMMA.fullmatch(text) else text)
        except ValueError:
            return _date(text) if form is None else _stripped(text, form, math.inf)
        seconds = float(_of_numbers(np.asarray([number]), form)[0])
        return math.inf if math.isnan(seconds) else seconds

    return number_or_date


def _date(text: str) -> float:
    if _NUMERIC.match(text):
        return -math.inf
    try:
        return _seconds(datetime.datetime.fromisoformat(text))
    except ValueError:
        pass
    # BigQuery writes "... UTC", Go and Ruby "... +0000 UTC".
    plain = re.sub(r"\s+(UTC|GMT|Z)$", "", text)
    if plain != text and "," not in plain:
        return _date(plain)
    for form in _FORMS:
        seconds = _stripped(text, form)
        if not math.isnan(seconds):
            return seconds
    if match := _SCRIPT.fullmatch(text):
        return _stripped(match[1], "%a %b %d %Y %H:%M:%S GMT%z", math.inf)
    if not _MAIL.fullmatch(text):
        return math.inf
    try:
        return _seconds(email.utils.parsedate_to_datetime(text))
    except (ValueError, TypeError, IndexError):
        return math.inf


def _stripped(text: str, form: str, otherwise: float = math.nan) -> float:
    try:
        return _seconds(datetime.datetime.strptime(text, form))
    except ValueError:
        return otherwise


def _seconds(moment: datetime.datetime) -> float:
    try:
        return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()
    except OverflowError:
        return math.inf
