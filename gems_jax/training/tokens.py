"""A table's inputs as the configuration words them."""

from collections.abc import Sequence
from typing import Any

from gems_jax.config.run import Config
from gems_jax.data.batching.chat import as_chat
from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.batching.prompts import encode_table
from gems_jax.data.batching.token_cache import encode_once
from gems_jax.data.dataset.tables import Table
from gems_jax.items.tokens import ItemIndex
from gems_jax.models.family import Layout


def prompt_templates(config: Config, tokenizer: Any, layout: Layout) -> dict[str, str]:
    """Each task's template as prompts are made of it, inside a chat where ``items.template`` says so.

    Args:
      config: section ``items``.
      tokenizer: of the model.
      layout: of the model.

    Raises:
      ValueError: the tokenizer has no chat template that can be used.
    """
    prompts = dict(config.items.prompts)
    if config.items.template == "plain":
        return prompts
    return {task: as_chat(template, tokenizer, layout) for task, template in prompts.items()}


def encode(
    config: Config,
    table: Table,
    tokenizer: Any,
    items: ItemIndex,
    layout: Layout,
    titles: Sequence[str],
) -> EncodedTable:
    """A table's inputs under the configured prompt, from files in ``data.tokens`` where that is set.

    Args:
      config: sections ``data`` and ``items``.
      table: of one task.
      tokenizer: with the items' tokens.
      items: item number -> tokens.
      layout: of the model.
      titles: item number -> title.

    Raises:
      ValueError: there is no prompt for the task, or it does not fit.
    """
    options = config.items
    if table.task not in options.prompts:
        raise ValueError(f"items.prompts has no template for task {table.task!r}; it has {', '.join(options.prompts)}")
    template = prompt_templates(config, tokenizer, layout)[table.task]
    if config.data.tokens is None:
        encoded = encode_table(table, tokenizer, items, template, options.max_length, layout, titles=titles)
    else:
        encoded = encode_once(table, tokenizer, items, template, options.max_length, config.data.tokens, layout, titles)
    lost = []
    if encoded.clipped_queries:
        lost.append(f"the query is cut in {encoded.clipped_queries:,} of {len(encoded):,} rows")
    if encoded.dropped_items:
        lost.append(f"{encoded.dropped_items:,} items of histories, the oldest, are dropped")
    if lost:
        print(f"data: {table.task}: {' and '.join(lost)} to fit items.max_length {options.max_length}")
    return encoded
