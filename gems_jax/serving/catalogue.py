"""Requests in item numbers: what they name is looked up, and what they name wrongly is said."""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gems_jax.data.batching.prompts import parse_template
from gems_jax.data.dataset.tables import Dataset, Item
from gems_jax.data.dataset.user_history import UserHistories, longest_input
from gems_jax.first_few import first_few
from gems_jax.serving.requests import Request, RequestError

# Users whose histories are kept as rankings need them: many ask more than once.
_REMEMBERED = 8192
_NOTHING = np.zeros(0, np.int32)


class Ranking(NamedTuple):
    """A request in item numbers.

    Args:
      task: of the run.
      query: empty in tasks without.
      k: number of items.
      shown: the newest items of the history, as many as any row of the dataset tells of.
      known: all items of the history.
      listed: int32, sorted, items to choose from, or to leave out.
      keeps: whether ``listed`` are those to choose from.
    """

    task: str
    query: str
    k: int
    shown: tuple[int, ...]
    known: frozenset[int]
    listed: np.ndarray
    keeps: bool


class _History(NamedTuple):
    """A history as rankings need it: `Ranking.shown`, `Ranking.known`, and of these the items that are ranked."""

    shown: tuple[int, ...]
    known: frozenset[int]
    ranked: np.ndarray


def check_task(dataset: Dataset, task: str) -> None:
    """Raises `RequestError` unless a run of this dataset was tuned for a task.

    Example:
      >>> from gems_jax.data.dataset.tables import Row, Table
      >>> table = Table.from_rows("rec", [Row("ann", [3], 1)])
      >>> check_task(Dataset("shop", [], {("train", "rec"): table}), "rec")
    """
    if task not in dataset.tasks:
        what = {"rec": "recommending", "src": "searching"}.get(task, "it")
        raise RequestError(
            "task",
            f"this run was never tuned for task {task!r}: dataset {dataset.name!r} has training rows of "
            f"{', '.join(map(repr, dataset.tasks)) or 'no task'} alone, so the model knows nothing of {what}",
        )


class Catalogue:
    """The items and users that requests name.

    Args:
      dataset: that the run was tuned on.
      templates: task to the template of its prompts.
      removed: numbers of items that may stand in histories and are ranked no more.
      edited: how the catalogue was edited since training, in a few words.

    Attributes:
      longest: most events that a user of the dataset can have.
      ranked: number of items that are ranked.
      removed, edited: as given.
    """

    def __init__(self, dataset: Dataset, templates: Mapping[str, str], removed: Collection[int] = (), edited: str = ""):
        self.dataset, self.removed, self.edited = dataset, frozenset(removed), edited
        self.ranked = len(dataset.items) - len(self.removed)
        self._numbers = {item.item_id: number for number, item in enumerate(dataset.items)}
        self._users = UserHistories(dataset)
        self._shown = longest_input(dataset)
        self._has_query = {task: ("query",) in parse_template(template) for task, template in templates.items()}
        self._asked = frozenset(self.tasks)
        self.longest = self._users.longest
        self._of_user = functools.lru_cache(_REMEMBERED)(
            functools.partial(_history_of, self._users, self._shown, self.removed)
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that may be asked for."""
        return tuple(task for task in self.dataset.tasks if task in self._has_query)

    def takes_query(self, task: str) -> bool:
        """Whether prompts of a task have a query; of the others all that a user knows is left out of the answer."""
        return self._has_query[task]

    def look_up(self, request: Request) -> Ranking:
        """The request in item numbers.

        In tasks without queries the items of the history are left out. With a query they may be found, since people
        search for what they know.

        Raises:
          RequestError: no such task, user or item, a removed item to choose from, or a query where the task has none,
            or none where it needs one.
        """
        if request.task not in self._asked:
            check_task(self.dataset, request.task)
            raise RequestError("task", f"this run has no prompt for task {request.task!r} (items.prompts)")
        takes_query = self._has_query[request.task]
        if takes_query and request.query is None:
            raise RequestError("query", f"task {request.task!r} needs a query: write what to search for")
        if not takes_query and request.query is not None:
            raise RequestError("query", f"task {request.task!r} has no query: leave it out, or ask for another task")
        history = self._history(request, takes_query)
        keeps = request.allow is not None
        if keeps or request.deny:
            left_out = set(self._numbers_of("deny", request.deny or ())) | (set() if takes_query else history.known)
            chosen = set(self._allowed(request.allow or ())) - left_out if keeps else left_out - self.removed
            listed = np.asarray(sorted(chosen), np.int32)
        else:
            listed = _NOTHING if takes_query else history.ranked
        return Ranking(request.task, request.query or "", request.k, history.shown, history.known, listed, keeps)

    def history_of(self, user: str) -> list[int]:
        """Item numbers of all that the dataset knows of a user, oldest first.

        Raises:
          RequestError: there is no such user.
        """
        return _events_of(self._users, user)

    def users_like(self, part: str) -> Iterator[str]:
        """Users of whose name a text is a part."""
        return self._users.like(part)

    def items_like(self, part: str) -> Iterator[Item]:
        """Items of whose title or id a text is a part, whatever its case; none that was removed."""
        sought = part.casefold()
        offered = (item for number, item in enumerate(self.dataset.items) if number not in self.removed)
        return (item for item in offered if sought in item.title.casefold() or part == item.item_id)

    def number_of(self, item_id: str) -> int | None:
        """The number of an item, ``None`` where there is no such item."""
        return self._numbers.get(item_id)

    def _history(self, request: Request, takes_query: bool) -> _History:
        if request.user is not None:
            return self._of_user(request.user)
        if request.history is None and not takes_query:
            raise RequestError("user", "give a user of the dataset, or the history of someone else")
        return _history(self._numbers_of("history", request.history or ()), self._shown, self.removed)

    def _allowed(self, item_ids: Sequence[str]) -> list[int]:
        numbers = self._numbers_of("allow", item_ids)
        gone = [item_id for item_id, number in zip(item_ids, numbers, strict=True) if number in self.removed]
        if gone:
            raise RequestError("allow", f"item {gone[0]!r} was removed from the catalogue: leave it out")
        return numbers

    def _numbers_of(self, field: str, item_ids: Sequence[str]) -> list[int]:
        unknown = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in self._numbers]
        if unknown:
            raise RequestError(
                field,
                f"the catalogue has no item {first_few(map(repr, unknown))}; it has "
                f"{len(self._numbers):,}, such as {self.dataset.items[0].item_id!r}",
            )
        return [self._numbers[item_id] for item_id in item_ids]


def _history(events: Sequence[int], shown: int, removed: frozenset[int]) -> _History:
    known = frozenset(events)
    return _History(tuple(events[-shown:]), known, np.asarray(sorted(known - removed), np.int32))


def _events_of(users: UserHistories, user: str) -> list[int]:
    try:
        return users.of(user)
    except ValueError as error:
        raise RequestError("user", str(error)) from None


def _history_of(users: UserHistories, shown: int, removed: frozenset[int], user: str) -> _History:
    return _history(_events_of(users, user), shown, removed)
