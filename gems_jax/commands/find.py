"""``gems-jax recommend`` and, where there is a query, ``gems-jax search``."""

import json
import sys
from typing import Any

from gems_jax.arguments import Command, Options
from gems_jax.commands.shared import quiet, tuned_run


def _add_options(options: Options) -> None:
    options.add("--user", str, "the user's id in the dataset", default=None)
    about = "instead, of someone whom the dataset does not know: ids of items, oldest first, with commas or a JSON list"
    options.add("--history", str, about, default=None)
    options.add("--k", int, "number of items", default=10)


def _add_search_options(options: Options) -> None:
    _add_options(options)
    options.word("query", "what the user searches for")


def _run(options: Any) -> int:
    quiet()
    from gems_jax.serving.answers import as_lines
    from gems_jax.serving.recommender import load_engine
    from gems_jax.serving.requests import Request
    from gems_jax.training.workdir.files import check_config

    query = options.get("query")
    if options.k < 1:
        raise ValueError(f"--k must be at least 1, got {options.k}")
    if options.user is None and options.history is None:
        command = "recommend" if query is None else "search"
        raise ValueError(f"{command} needs --user U, or --history A,B of someone whom the dataset does not know")
    history = None if options.history is None else _ids(options.history)
    request = Request("rec" if query is None else "src", options.user, history, query=query, k=options.k)
    engine = load_engine(*tuned_run(options, check_config), batch_size=1)
    (answer,) = engine.rank([request])
    for note in answer.notes:
        print(f"search: {note}", file=sys.stderr)
    print(as_lines(answer.items))
    return 0


def _ids(text: str) -> tuple[str, ...]:
    """Ids of items, as a JSON list or with commas between them; none in an empty text.

    Example:
      >>> _ids("i1, i2"), _ids('["a, b"]'), _ids("")
      (('i1', 'i2'), ('a, b',), ())
    """
    if text.strip().startswith("["):
        try:
            return tuple(json.loads(text))
        except ValueError as error:
            raise ValueError(f'--history {text} is no JSON list ({error}): write ids as A,B or ["A", "B"]') from None
    return tuple(filter(None, map(str.strip, text.split(","))))


RECOMMEND = Command(
    "list the items that a tuned model recommends to a user, or to a history", _run, _add_options, config="of a run"
)
SEARCH = Command(
    "list the items that a tuned model finds for a user's query",
    _run,
    _add_search_options,
    config="of a run",
    words={"query": "a query"},
)
