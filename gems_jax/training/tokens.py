"""A table's inputs as the configuration words them."""

from typing import Any

from gems_jax.data.encoded_store import encode_once
from gems_jax.data.encoded_table import EncodedTable, Family
from gems_jax.data.prompts import encode_table
from gems_jax.data.tables import Table
from gems_jax.items import ItemIndex
from gems_jax.training.config import Config


def encode(config: Config, table: Table, tokenizer: Any, items: ItemIndex, family: Family) -> EncodedTable:
    """A table's inputs under the configured prompt, from files in ``data.tokens`` where that is set.

    Args:
      config: sections ``data`` and ``items``.
      table: of one task.
      tokenizer: with the items' tokens.
      items: item number -> tokens.
      family: of the model.

    Raises:
      ValueError: there is no prompt for the task, or it does not fit.
    """
    options = config.items
    if table.task not in options.prompts:
        raise ValueError(f"items.prompts has no template for task {table.task!r}; it has {', '.join(options.prompts)}")
    template = options.prompts[table.task]
    if config.data.tokens is None:
        encoded = encode_table(table, tokenizer, items, template, options.max_length, family)
    else:
        encoded = encode_once(table, tokenizer, items, template, options.max_length, config.data.tokens, family)
    if encoded.dropped_items or encoded.clipped_queries:
        print(
            f"data: {table.task}: {encoded.dropped_items:,} oldest history items dropped and "
            f"{encoded.clipped_queries:,} queries clipped to fit items.max_length={options.max_length}"
        )
    return encoded
