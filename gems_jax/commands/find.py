"""``gems-jax recommend`` and, where there is a query, ``gems-jax search``."""

import sys
from typing import Any

from gems_jax.arguments import Command, Options
from gems_jax.commands.shared import quiet, tuned_run


def _add_options(options: Options) -> None:
    options.add("--user", str, "the user's id in the dataset", required=True)
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
    request = Request("rec" if query is None else "src", options.user, query=query, k=options.k)
    engine = load_engine(*tuned_run(options, check_config), batch_size=1)
    (answer,) = engine.rank([request])
    for note in answer.notes:
        print(f"search: {note}", file=sys.stderr)
    print(as_lines(answer.items))
    return 0


RECOMMEND = Command("list the items that a tuned model recommends to a user", _run, _add_options, config="of a run")
SEARCH = Command(
    "list the items that a tuned model finds for a user's query",
    _run,
    _add_search_options,
    config="of a run",
    words={"query": "a query"},
)
