"""How much of a run's titles and queries its tokenizer does not know."""

from collections.abc import Mapping
from typing import Any

from gems_jax.config.run import Config
from gems_jax.data.batching.prompts import parse_template
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.data.text.unknown_tokens import spread, unknown_share


def unknown_text(
    config: Config, dataset: Dataset, tokenizer: Any, tables: Mapping[str, Table] | None = None
) -> dict[str, float]:
    """Share of unknown tokens in the texts that the run reads, ``"titles"`` and ``"queries"``.

    Args:
      config: section ``items``, which says what is read.
      dataset: with the catalogue.
      tokenizer: of the run.
      tables: whose queries are read, by task; ``None``: those of training.
    """
    items = config.items
    if tables is None:
        tables = {task: dataset.table("train", task) for task in dataset.tasks}
    fields = {task: parse_template(template) for task, template in items.prompts.items()}
    shares = {}
    named = any(("history_titles",) in pieces for pieces in fields.values())
    if items.init == "title" or items.identifiers is not None or named:
        shares["titles"] = unknown_share(dataset.titles(), tokenizer)
    asked = [table.queries for task, table in tables.items() if ("query",) in fields.get(task, [])]
    if asked:
        shares["queries"] = unknown_share([query for queries in asked for query in spread(queries)], tokenizer)
    return shares
