"""The fields of ``pretrain``, ``model`` and ``null_space``: the base model, and what of it is kept."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PretrainConfig:
    """A small T5 1.1, pretrained on plain text by span corruption, for machines that can download no model.

    Attributes:
      vocab_size: tokens of the tokenizer, which is trained on the same text.
      tokenizer: folder of a tokenizer to use instead.
      d_model: width of the model.
      d_kv: width of an attention head.
      d_ff: width inside a feed-forward layer.
      num_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      num_heads: attention heads of a layer.
      tie_word_embeddings: whether inputs and outputs share one table (T5 1.1 has two).
      steps: number of updates.
      batch_size: inputs of an update.
      learning_rate: highest learning rate of AdamW; it falls to a tenth along a cosine.
      warmup: steps in which the learning rate rises from 0.
      weight_decay: weight decay of kernels.
      seed: seed of the weights and of the order of inputs.
    """

    vocab_size: int = 2048
    tokenizer: str | None = None
    d_model: int = 96
    d_kv: int = 24
    d_ff: int = 192
    num_layers: int = 2
    num_decoder_layers: int = 2
    num_heads: int = 4
    tie_word_embeddings: bool = False
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 4e-3
    warmup: int = 60
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """The base model.

    Attributes:
      path: Hugging Face folder of the base model. Where it is missing, ``pretrain`` makes it if ``from_text`` is true.
      from_text: whether a missing base model is pretrained.
      dtype: dtype of parameters and computation.
    """

    path: str = "runs/demo/base"
    from_text: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class NullSpaceConfig:
    """The general-domain null space: give exactly one of ``energy``, ``rank`` and ``threshold``.

    Attributes:
      path: folder of the null space; ``calibrate`` makes it where it is missing.
      energy: protect the fewest directions that hold this share of an input's second moment.
      rank: protect this many directions; a number with a decimal point is a share of the input's dimension.
      threshold: protect the directions whose eigenvalue is at least this large.
      min_share: with ``energy``, protect at least this share of the directions, because a few outliers can hold nearly
        all of an input's energy.
      max_directions: protect at most so many directions of each input; ``null``: no such bound.
      unit_norm: whether every token counts alike, whatever the norm of its hidden states: for language models, where in
        some layers a few tokens have nearly all of the energy.
      memory_limit: bytes that second moments may take on a device; where they need more, there is a pass over the text
        for each group of layers that fits. ``null``: one pass.
      side: ``in``: protect directions of the kernels' inputs; ``out``: of their outputs; ``train.method osft`` protects
        both.
      batches: batches of general text that the null space is estimated from.
      batch_size: inputs in each of these batches.
    """

    path: str = "runs/demo/null_space"
    energy: float | None = 0.85
    rank: int | float | None = None
    threshold: float | None = None
    min_share: float | None = 0.35
    max_directions: int | None = None
    unit_norm: bool = False
    memory_limit: int | None = None
    side: Literal["in", "out"] = "in"
    batches: int = 64
    batch_size: int = 32
