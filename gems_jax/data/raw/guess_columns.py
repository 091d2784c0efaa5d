"""Which column of a table is which, by what people call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_table import read_batches

_ITEM = (
    "itemid", "item", "productid", "product", "parentasin", "asin", "sku", "articleid", "article", "movieid", "songid",
    "trackid", "videoid", "bookid", "noteid", "docid", "offerid", "goodsid", "productsku", "itemsku", "productcode",
)  # fmt: skip
# Role to names, the likeliest first; letters and digits alone, in lower case.
INTERACTIONS: Mapping[str, tuple[str, ...]] = {
    "user_id": (
        "userid", "user", "uid", "customerid", "customer", "visitorid", "visitor", "memberid", "accountid",
        "reviewerid", "sessionid", "session", "email",
        "useremail", "customeremail",
    ),
    "target": ("target", "targetitem", "targetid", *_ITEM, "clicked", "purchased"),
    "timestamp": (
        "timestamp", "time", "ts", "datetime", "date", "at", "when", "createdat", "eventtime", "eventtimestamp",
        "eventdate", "eventts", "eventat", "timestampms", "timestamputc", "timems", "timeutc", "unixtime",
        "unixtimestamp", "unixreviewtime", "epoch", "clickedat", "clicktime", "viewedat", "purchasedat", "purchasedate",
        "purchasetime", "orderedat", "orderdate", "ordertime", "orderts", "occurredat", "happenedat", "loggedat",
        "logtime", "requesttimestamp", "servertime", "visittime", "sessiontime", "transactiondate", "transactiontime",
        "tdat", "datetimeutc", "createdon", "timeofevent", "zeit", "datum",
    ),
    "query": ("query", "searchquery", "searchterm", "searchtext", "search", "keywords", "keyword", "typed", "q",
        "searchphrase", "searchwords", "searchstring", "searchedfor", "querytext", "userquery", "phrase"),
    "task": ("task",),
    "history": ("history", "historyitemid"),
    "split": ("split",),
}  # fmt: skip
CATALOGUE: Mapping[str, tuple[str, ...]] = {
    "item_id": (*_ITEM, "id"),
    "title": ("title", "itemtitle", "producttitle", "name", "itemname", "productname"),
    "text": ("text", "description", "desc", "body", "abstract"),
}


def column_names(path: Path) -> tuple[str, ...]:
    """Names of a table's columns: those of its first rows, where a row may have others.

    Raises:
      ValueError: it holds no table that can be read, or no row.
    """
    for batch in read_batches(path, {}, (), Quarantine(max_bad_fraction=1.0)):
        return batch.names
    raise ValueError(f"{path} holds no row")


def guess_columns(names: Sequence[str], known: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Role to column, for the roles that a column is called after; none has two roles.

    Args:
      names: of the columns.
      known: role to what it may be called, `INTERACTIONS` or `CATALOGUE`.

    Example:
      >>> guess_columns(["Visitor ID", "sku", "event", "at"], INTERACTIONS)
      {'user_id': 'Visitor ID', 'target': 'sku', 'timestamp': 'at'}
    """
    plain = {name: "".join(filter(str.isalnum, name)).lower() for name in names}
    found: dict[str, str] = {}
    for role, called in known.items():
        fitting = [name for word in called for name in names if plain[name] == word and name not in found.values()]
        if fitting:
            found[role] = fitting[0]
    return found
