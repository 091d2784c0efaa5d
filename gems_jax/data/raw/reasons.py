"""Why raw rows cannot be used, in the words of messages and cards, and what sets it right."""

from __future__ import annotations

NO_USER = "the user is missing"
NO_TARGET = "the target is missing"
NO_QUERY = "the query is empty"
NO_TIME = "the timestamp is missing"
ODD_TIME = "the timestamp is no time between 1970 and 2100"
DAY_OR_MONTH = "the timestamp is a date whose day and month cannot be told apart"
NO_ID = "it has no id"
NO_TITLE = "it has no title"
NO_UNICODE = "its title or text is no Unicode text"
NO_TEXT = "its id or title is neither text nor a number"
NOT_UTF8 = "it is not UTF-8"
WIDTH = "the number of columns is wrong"
MALFORMED, NO_OBJECT = "it is malformed JSON", "it is not an object"
SECOND_ITEM = "there is an item of this id already"
UNKNOWN_ITEM = "the item is not in the catalogue"
LEFT_OUT_ITEM = "the item was left out of the catalogue (counted among the items)"
IN_HISTORY = "the target stands in the row's own history"
REPEATED = "the user took the item before in this task"
DUPLICATE = "the same event stands there already"


def unreadable(role: str) -> str:
    """Why a cell of ids cannot be used."""
    return f"the {role} cannot be read as item ids"


_JSON = "a JSON file holds an object a line, or one array of objects"
_LISTS = (
    "lists are written as in JSON or Python, or as files.separators says; whole numbers from 2^53 on must be text or "
    "whole numbers in the file, as floating-point numbers they may be other ones"
)
_WORDS = "files.missing lists the words that stand for nothing"
# The advice for each reason: what to set or to look at.
HINTS = {
    NO_USER: _WORDS,
    NO_TARGET: _WORDS,
    NO_QUERY: "files.query_tasks names the tasks that need one; " + _WORDS,
    NO_TIME: _WORDS + "; without a column of times rows are taken in their order",
    ODD_TIME: "files.time_format says how times are written, such as '%d %B %Y %I:%M %p' in the signs of strptime",
    NOT_UTF8: "save the file as UTF-8, as by iconv -f latin1 -t utf-8",
    WIDTH: "each row has as many as the header; text that holds the delimiter stands in quotation marks",
    MALFORMED: _JSON,
    NO_OBJECT: _JSON,
    DAY_OR_MONTH: "files.time_format says which is which: '%d/%m/%Y %H:%M' or '%m/%d/%Y %H:%M', as they are written",
    NO_ID: "files.item_columns names the column of ids; " + _WORDS,
    NO_TITLE: "files.item_columns names the column of titles; " + _WORDS,
    SECOND_ITEM: "only exact copies of a line are left out without being counted here",
    UNKNOWN_ITEM: "files.items: null takes the items that occur; files.separators says where a cell has several ids",
    LEFT_OUT_ITEM: "its line of the catalogue cannot be used: repair it there, and these rows can be",
    IN_HISTORY: "data.preprocessing.repeats: true keeps them",
    REPEATED: (
        "data.preprocessing.repeats: true keeps them where rows have times; without times copies of a log count as "
        "such, too. Of a click and the purchase after it the second is left out: raise data.max_bad_fraction, unless "
        "taking a thing again is what is to be foretold"
    ),
}
HINTS |= {unreadable(role): _LISTS for role in ("target", "history", "negatives")}
