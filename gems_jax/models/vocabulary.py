"""The two ends of a language model: rows of tokens in, scores of tokens out."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx

from gems_jax.models.losses import chunked_token_losses
from gems_jax.models.mesh_rules import keep_rows
from gems_jax.models.params import model_from_params

Vocabulary = Literal["full", "base", "items"]


class VocabularyModel(nnx.Module):
    """A model with tables of tokens, and of items behind them.

    Token ids from ``config.vocab_size`` on are the added items, in rows of their own (``item_embedding``,
    ``item_head``), so that the pretrained rows can stay as they are while these train.

    Args:
      config: shape of the model.
      key: PRNG key, from which a subclass makes the tables: ``token_embedding``, ``lm_head`` unless
        ``config.tie_word_embeddings``, and ``item_embedding`` and ``item_head`` alike if there are items.
    """

    token_embedding: Any
    lm_head: Any
    item_embedding: Any
    item_head: Any

    def __init__(self, config: Any, key: jax.Array):
        self.config = config

    @classmethod
    def from_params(cls, config: Any, params: Mapping[str, Any]) -> Self:
        """A model with given weights.

        Args:
          config: shape of the model.
          params: leaf path, such as ``"token_embedding/embedding"``, to array.

        Raises:
          ValueError: if a leaf is missing, unknown or of another shape.
        """
        return model_from_params(cls, config, params)

    @property
    def output_size(self) -> int:
        """Parameters of the output layer, ``(V + N) d_model``."""
        return int((self.config.vocab_size + self.config.num_added_tokens) * self.config.d_model)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Rows of tokens and items ``[B, ..., d_model]`` in the compute dtype, on a mesh split by ``B``."""
        config = self.config
        # Each lookup answers 0 for the other table's ids: neither table is copied into one of both, and the
        # backward pass adds a row to one table only.
        rows = self.token_embedding.embedding[...].at[ids].get(mode="fill", fill_value=0)
        if config.num_added_tokens:
            added = config.num_added_tokens
            item = jnp.where(ids < config.vocab_size, added, ids - config.vocab_size)
            rows = rows + self.item_embedding.embedding[...].at[item].get(mode="fill", fill_value=0)
        return keep_rows(rows.astype(config.dtype))

    def logits(self, hidden: jax.Array, vocabulary: Vocabulary = "full") -> jax.Array:
        """Scores of the tokens of a vocabulary.

        Args:
          hidden: ``[..., d_model]`` after the final norm.
          vocabulary: ``"full"``: all V + N tokens; ``"base"``: the V pretrained ones; ``"items"``: the end token,
            in column 0, and the N added items in order.

        Returns:
          float32 ``[..., V + N]``, ``[..., V]`` or ``[..., 1 + N]``.

        Raises:
          ValueError: if ``vocabulary`` is none of these, or ``"items"`` and the model has no items or end token.
        """
        parts = self.logit_parts(hidden, vocabulary)
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    def logit_parts(self, hidden: jax.Array, vocabulary: Vocabulary = "full") -> list[jax.Array]:
        """The scores that `logits` joins, of each table's rows, without a copy of them all.

        Args:
          hidden: ``[..., d_model]`` after the final norm.
          vocabulary: see `logits`.

        Returns:
          float32 ``[..., rows]`` of each table of the vocabulary, in the order of `logits`.

        Raises:
          ValueError: as `logits`.
        """
        return [
            jnp.einsum("...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
            for table in self._tables(vocabulary)
        ]

    def _tables(self, vocabulary: Vocabulary) -> list[jax.Array]:
        """The output layer's rows for a vocabulary."""
        config = self.config
        if vocabulary not in ("full", "base", "items"):
            raise ValueError(f"vocabulary must be 'full', 'base' or 'items', got {vocabulary!r}")
        base = (self.token_embedding if config.tie_word_embeddings else self.lm_head).embedding[...]
        if vocabulary == "base" or (vocabulary == "full" and not config.num_added_tokens):
            return [base]
        if not config.num_added_tokens:
            raise ValueError("vocabulary='items' needs a model with item tokens: grow it (gems_jax.items.grow)")
        items = (self.item_embedding if config.tie_word_embeddings else self.item_head).embedding[...]
        if vocabulary == "full":
            return [base, items]
        if config.eos_token_id is None:
            raise ValueError("vocabulary='items' needs an end token: the config's eos_token_id is None, give one")
        return [base[config.eos_token_id][None], items]

    def token_losses(
        self,
        hidden: jax.Array,
        labels: jax.Array,
        vocabulary: Vocabulary = "full",
        chunk_size: int | None = None,
    ) -> jax.Array:
        """Cross entropy of each token, over a vocabulary of `logits`, without the logits of all tokens at once.

        Args:
          hidden: ``[..., d_model]`` after the final norm.
          labels: int ``[...]``, columns of the vocabulary's logits.
          vocabulary: ``"full"``, ``"base"`` or ``"items"``, see `logits`.
          chunk_size: tokens whose logits are held at once, see `gems_jax.models.losses.chunked_token_losses`.

        Returns:
          float32 ``[...]``, in nats.

        Raises:
          ValueError: as `logits`, or if the shapes do not fit.
        """
        return chunked_token_losses(hidden, lambda x: self.logits(x, vocabulary), labels, chunk_size)
