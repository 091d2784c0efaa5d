"""A request to rank items: whose, what for, and which of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gems_jax.data.raw.blank import is_blank
from gems_jax.data.text.plain_text import is_unicode

# A search is as wide as its results are many: more would take the memory of all other requests.
MOST_RESULTS = 1000


class RequestError(ValueError):
    """A request that cannot be answered.

    Args:
      field: of the request, that is wrong.
      why: what is wrong with it, and what to do.

    Attributes:
      field: as given.
      why: as given.
    """

    def __init__(self, field: str, why: str):
        super().__init__(f"{field}: {why}")
        self.field, self.why = field, why


@dataclass(frozen=True)
class Request:
    """Which items to rank for whom.

    Args:
      task: of the run, such as ``"rec"`` or ``"src"``.
      user: whose history the dataset knows.
      history: item ids, oldest first, of someone whom the dataset does not know; instead of ``user``.
      query: what is searched for, in tasks with queries.
      k: number of items, at most 1,000.
      allow: item ids to choose from; ``None``: the catalogue.
      deny: item ids to leave out.

    Raises:
      RequestError: a value is of another type or out of its range, the query is empty, or there are two histories.

    Example:
      >>> Request("rec", user="ann", history=("B01",))
      Traceback (most recent call last):
      ...
      gems_jax.serving.requests.RequestError: history: give either user or history, not both
    """

    task: str
    user: str | None = None
    history: tuple[str, ...] | None = None
    query: str | None = None
    k: int = 10
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("task", "user", "query"):
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name != "task")):
                raise RequestError(name, f"expected text, got {value!r}")
            if value is not None and not is_unicode(value):
                raise RequestError(name, f"{value!r} is no Unicode text: write it in UTF-8")
        for name in ("history", "allow", "deny"):
            value = getattr(self, name)
            if value is None:
                continue
            value = value if isinstance(value, str | Mapping) else list(value) if isinstance(value, Iterable) else value
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise RequestError(name, f"expected a list of item ids, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        if isinstance(self.k, bool) or not isinstance(self.k, int) or not 1 <= self.k <= MOST_RESULTS:
            raise RequestError("k", f"expected a whole number from 1 to {MOST_RESULTS:,}, got {self.k!r}")
        if self.query is not None and is_blank(self.query):
            raise RequestError("query", "the query is empty: write what to search for, or ask for a recommendation")
        if self.user is not None and self.history is not None:
            raise RequestError("history", "give either user or history, not both")

    @classmethod
    def of(cls, values: Mapping[str, Any], task: str | None = None) -> "Request":
        """A request as JSON has it.

        Args:
          values: of its fields; ``None`` stands for one that is not given, and a whole number may stand for an id.
          task: where the values name none; else ``"src"`` with a query, ``"rec"`` without.

        Raises:
          RequestError: a field is unknown, or as above.

        Example:
          >>> Request.of({"user": "ann", "query": "kettle", "k": None}).task
          'src'
        """
        names = cls.__dataclass_fields__  # by name
        given: dict[str, Any] = {}
        for name, value in values.items():
            if name not in names:
                raise RequestError(str(name), f"a request has no such field; it has {', '.join(names)}")
            if value is not None:
                given[name] = value if isinstance(value, str) else _with_text(name, value)
        given.setdefault("task", task or ("src" if "query" in given else "rec"))
        return cls(**given)


def _with_text(field: str, value: Any) -> Any:
    """Ids that are written as whole numbers as text; all else as it is."""
    if field == "k":
        return value
    if isinstance(value, list | tuple):
        return [_with_text(field, one) for one in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
