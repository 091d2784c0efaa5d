"""Items as tokens of a language model: their names in the tokenizer, their rows in the embedding."""

from gems_jax.items.embedding_rows import grow
from gems_jax.items.lower_logits import lower_item_logits
from gems_jax.items.tokens import (
    ItemIndex,
    add_identifier_tokens,
    add_item_tokens,
    index_identifiers,
    item_token,
    load_item_identifiers,
)
from gems_jax.models.hf.tokenizer import max_unused_rows

__all__ = [
    "ItemIndex",
    "add_identifier_tokens",
    "add_item_tokens",
    "grow",
    "index_identifiers",
    "item_token",
    "load_item_identifiers",
    "lower_item_logits",
    "max_unused_rows",
]
