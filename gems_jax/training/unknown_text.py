"""How much of a run's titles and queries its tokenizer does not know."""

from collections.abc import Mapping
from typing import Any

from gems_jax.config.run import Config
from gems_jax.data.batching.prompts import parse_template
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.data.text.unknown_tokens import spread, unknown_lines, unknown_share, unknown_words


def unknown_text(
    config: Config, dataset: Dataset, tokenizer: Any, tables: Mapping[str, Table] | None = None
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Share of unknown tokens in the texts that the run reads, ``"titles"`` and ``"queries"``, and words with some.

    Args:
      config: section ``items``, which says what is read.
      dataset: with the catalogue.
      tokenizer: of the run.
      tables: whose queries are read, by task; ``None``: those of training.
    """
    texts = _texts(config, dataset, tables)
    shares = {kind: unknown_share(some, tokenizer) for kind, some in texts.items()}
    return shares, {kind: unknown_words(some, tokenizer) for kind, some in texts.items() if shares[kind]}


def unknown_notes(config: Config, dataset: Dataset, tokenizer: Any) -> list[str]:
    """A line for people, where there is much that the tokenizer does not know."""
    return [f"data: {line}" for line in unknown_lines(*unknown_text(config, dataset, tokenizer))]


def _texts(config: Config, dataset: Dataset, tables: Mapping[str, Table] | None) -> dict[str, list[str]]:
    items = config.items
    if tables is None:
        tables = {task: dataset.table("train", task) for task in dataset.tasks}
    fields = {task: parse_template(template) for task, template in items.prompts.items()}
    texts = {}
    named = any(("history_titles",) in pieces for pieces in fields.values())
    if items.init == "title" or items.identifiers is not None or named:
        texts["titles"] = dataset.titles()
    asked = [table.queries for task, table in tables.items() if ("query",) in fields.get(task, [])]
    if asked:
        texts["queries"] = [query for queries in asked for query in spread(queries)]
    return texts
