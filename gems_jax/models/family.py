"""A family of models: the methods that other rooms ask of its models, and how its folder is read."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import jax

# Tables of the pretrained vocabulary and those of the items that may be added behind it.
ITEM_TABLES = {
    "token_embedding/embedding": "item_embedding/embedding",
    "lm_head/embedding": "item_head/embedding",
}


def output_table(config: Any) -> str:
    """The path of the items' rows in the output layer: those of the embedding where both are one table."""
    return "item_embedding/embedding" if config.tie_word_embeddings else "item_head/embedding"


# How a row lies in a batch, see `gems_jax.data.batching.layouts`: the prompt is encoded and the answer decoded, or the
# answer follows the prompt.
Layout = Literal["encoder_decoder", "decoder"]


class Beams(Protocol):
    """Several beams an input, each with what the model keeps of the tokens so far."""

    def take(self, parents: jax.Array) -> Self:
        """The beams int ``[B, n]`` of each row, in their order; a beam may be taken more than once."""
        ...

    def step(self, model: Any, ids: jax.Array) -> tuple[jax.Array, Self]:
        """Reads tokens int ``[B, n, T]``: final states ``[B, n, T, d_model]``, and the beams with these tokens."""
        ...


class LanguageModel(Protocol):
    """The methods that training, ranking and evaluation ask of a model, a Flax NNX module.

    `gems_jax.models.vocabulary.VocabularyModel` has the tables and answers for them; a family adds the rest.

    Attributes:
      layout: of its batches.
      config: a frozen dataclass with ``model_type``, ``vocab_size``, ``num_added_tokens``, ``d_model``, ``dtype``,
        ``param_dtype``, ``tie_word_embeddings``, ``pad_token_id`` and ``eos_token_id``; ``dropout_rate`` where the
        model has dropout, ``decoder_start_token_id`` where its layout is ``"encoder_decoder"``.
    """

    layout: ClassVar[Layout]
    config: Any

    @classmethod
    def create(cls, config: Any, key: jax.Array) -> Self:
        """A model with random weights."""
        ...

    @classmethod
    def from_params(cls, config: Any, params: Mapping[str, Any]) -> Self:
        """A model with given weights, by leaf path."""
        ...

    def __call__(self, input_ids: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Logits float32 ``[B, A, V + N]``; takes a batch's arrays by name, but for labels and their mask."""
        ...

    def batch_hidden(self, batch: Mapping[str, jax.Array], dropout_key: jax.Array | None = None) -> jax.Array:
        """Final states of a batch of the model's layout, ``[B, A, d_model]``, one for each of the labels ``[B, A]``."""
        ...

    def text_hidden(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Final states of texts int ``[B, S]``, padded on the right: ``[B, S, d_model]``, of no meaning at padding."""
        ...

    def logit_parts(self, hidden: jax.Array, vocabulary: Any = "full") -> list[jax.Array]:
        """Scores by table, see `gems_jax.models.vocabulary.VocabularyModel.logit_parts`."""
        ...

    def token_losses(
        self, hidden: jax.Array, labels: jax.Array, vocabulary: Any = "full", chunk_size: int | None = None
    ) -> jax.Array:
        """Cross entropies, see `gems_jax.models.vocabulary.VocabularyModel.token_losses`."""
        ...

    def start_beams(self, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, Beams]:
        """Reads inputs, int ``[B, S]``: logits of the first token, float32 ``[B, V + N]``, and one beam a row."""
        ...

    def flops(self, input_tokens: float, answer_tokens: float, input_length: float) -> float:
        """Operations of the forward and backward pass of a batch, counted as by PaLM (arXiv 2204.02311, appendix B).

        ``6 P`` for each token that goes through ``P`` parameters of kernels, and ``12 d S`` a layer for the products of
        attention over ``S`` tokens. Recomputation and the optimiser do not count: it is the model's work.

        Args:
          input_tokens: of the batch.
          answer_tokens: label tokens, which alone go through the output layer (and a T5's decoder).
          input_length: mean tokens of an input.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where a leaf stands in a Hugging Face file: one tensor, or one for each of ``layers`` layers.

    Args:
      name: of the tensor; with layers a format with ``{}`` for the layer's number.
      layers: length of the leaf's first axis, each entry a tensor of its own; ``None``: one tensor.
      transposed: whether the file holds ``[out, in]`` where the leaf is ``[in, out]``.

    Example:
      >>> Weight("block.{}.weight", layers=2).names()
      ['block.0.weight', 'block.1.weight']
    """

    name: str
    layers: int | None = None
    transposed: bool = False

    def names(self) -> list[str]:
        """The tensors, first layer first."""
        return [self.name] if self.layers is None else [self.name.format(layer) for layer in range(self.layers)]


class Family(NamedTuple):
    """A family of models: its classes, and its Hugging Face folders.

    Args:
      model_types: names of its members in ``config.json``.
      config: class of its configs, a frozen dataclass.
      model: class of its models.
      read_config: config of the values of a ``config.json``; the second argument is the name of their source in
        messages. Raises ValueError for an option that the model does not implement.
      config_values: the values of ``config.json`` for a config.
      weights: leaf path to tensors; the item tables are left out, their rows stand behind the pretrained ones.
      ignored: patterns of the whole names of tensors that a file may hold and the model does not use.
      honoured: keys of ``config.json`` that are read, or refused where they ask for what is not implemented.
      no_effect: keys of this family that do not change what the model computes, beside those of
        `gems_jax.models.config_options.NO_EFFECT`.
      untied: the config of the same model with an output layer of its own; whether outputs are scaled stays. ``None``:
        the embedding is always the output layer.
      copies: tensors that a file may hold as copies of others, by the names of both.
    """

    model_types: tuple[str, ...]
    config: type
    model: type[LanguageModel]
    read_config: Callable[[Mapping[str, Any], Path | str], Any]
    config_values: Callable[[Any], dict[str, Any]]
    weights: Callable[[Any], dict[str, Weight]]
    honoured: frozenset[str]
    no_effect: frozenset[str]
    untied: Callable[[Any], Any] | None = None
    ignored: tuple[str, ...] = ()
    copies: Mapping[str, str] = MappingProxyType({})
