"""The best items for one user, to look at: what to recommend next, or what a query finds."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from gems_jax.data.batching.prompts import encode_table
from gems_jax.data.dataset.tables import Dataset, Row, Table
from gems_jax.data.dataset.user_history import history_of, longest_input
from gems_jax.data.raw.blank import is_blank
from gems_jax.data.text.plain_text import plain_ids
from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.rank_items import rank_items


class RankedItem(NamedTuple):
    """An item of a user's ranking.

    Args:
      item_id, title: of the catalogue.
      score: mean log-probability of its tokens and the end token.
      known: whether it is in the user's history.
    """

    item_id: str
    title: str
    score: float
    known: bool


def top_items(
    model: Any,
    tokenizer: Any,
    dataset: Dataset,
    items: ItemIndex,
    template: str,
    max_length: int,
    *,
    user: str,
    query: str | None = None,
    k: int = 10,
    beams: int = 20,
    vocabulary: Literal["full", "items"] = "full",
    say: Callable[[str], None] = print,
) -> list[RankedItem]:
    """Ranks the whole catalogue for a user, after the newest events that the dataset knows of them.

    Without a query all items the user has ever interacted with are left out; with one they are marked, since people
    search for what they know. The prompt holds as many of the newest events as any row of the dataset tells of.

    Args:
      model: a `T5` or a `Decoder`, tuned.
      tokenizer: with the item tokens.
      dataset: what it was tuned on.
      items: tokens of the dataset's items.
      template: the prompt of recommendation or, with a query, of search; ``items.prompts`` of the configuration.
      max_length: of the prompt in tokens.
      user: as the dataset names them.
      query: what they search for; ``None``: a recommendation.
      k: number of items.
      beams: width of the search; wider where the history asks for it.
      vocabulary: as in `rank_items`: what training normalised over.
      say: takes a line where the end of the query does not fit into ``max_length``, and is not searched for, and where
        the tokenizer knows nothing of it.

    Returns:
      At most k items, best first.

    Raises:
      ValueError: if the user is not in the dataset, the query is empty, or an argument is wrong (see `rank_items`
        and `encode_table`).
    """
    if query is not None:
        check_query(query)
        if not _is_read(query, tokenizer):
            say(f"the model's tokenizer knows none of the characters of {query!r}: all such queries are one to it")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    events = history_of(dataset, user)
    history = events[-longest_input(dataset) :]
    # A row needs a target, which the input does not depend on.
    row = Row(user, history, target=0, query=query or "")
    table = Table.from_rows("rec" if query is None else "src", [row])
    encoded = encode_table(table, tokenizer, items, template, max_length, model.layout, titles=dataset.titles())
    if encoded.clipped_queries:
        say(f"the query is too long for items.max_length {max_length}: its end is cut off and not searched for")
    known = set(events)
    wanted = min(k + (len(known) if query is None else 0), items.num_items)
    ids, scores = rank_items(
        model,
        {"input_ids": jnp.asarray(encoded.tokens, jnp.int32)[None]},
        items,
        k=wanted,
        beams=max(beams, wanted),
        vocabulary=vocabulary,
    )
    ranked = [
        RankedItem(dataset.items[item].item_id, dataset.items[item].title, float(score), item in known)
        for item, score in zip(ids[0].tolist(), np.asarray(scores[0]), strict=True)
        if item >= 0 and (query is not None or item not in known)
    ]
    return ranked[:k]


def check_query(query: str) -> None:
    """Raises ``ValueError`` where there is nothing to search for.

    Example:
      >>> check_query("kettle")
    """
    if is_blank(query):
        raise ValueError("the query is empty: write what to search for, or ask for a recommendation")


def _is_read(text: str, tokenizer: Any) -> bool:
    """Whether a tokenizer knows anything of a text."""
    known = [token for token in plain_ids([text], tokenizer)[0] if token != tokenizer.unk_token_id]
    return not is_blank(tokenizer.decode(known))


def check_task(dataset: Dataset, task: str) -> None:
    """Raises ``ValueError`` unless a run of this dataset was tuned for a task.

    Example:
      >>> table = Table.from_rows("rec", [Row("ann", [3], 1)])
      >>> check_task(Dataset("shop", [], {("train", "rec"): table}), "rec")
    """
    if task not in dataset.tasks:
        what = {"rec": "recommending", "src": "searching"}.get(task, "it")
        raise ValueError(
            f"this run was never tuned for task {task!r}: dataset {dataset.name!r} has training rows of "
            f"{', '.join(map(repr, dataset.tasks)) or 'no task'} alone, so the model knows nothing of {what}"
        )


def as_lines(ranked: Sequence[RankedItem]) -> str:
    """A line an item, for a terminal.

    Example:
      >>> print(as_lines([RankedItem("B01", "Red shoe", -1.25, False), RankedItem("B02", "Sock", -2.0, True)]))
       1. Red shoe  (B01, -1.250)
       2. Sock  (B02, -2.000, in the history)
    """
    return "\n".join(
        f"{rank:2d}. {item.title}  ({item.item_id}, {item.score:.3f}{', in the history' if item.known else ''})"
        for rank, item in enumerate(ranked, 1)
    )
