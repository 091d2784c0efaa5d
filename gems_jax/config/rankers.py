"""Which rankers a run is measured beside, and how those are trained that have to be."""

from dataclasses import dataclass
from typing import Literal

Baseline = Literal["popularity", "cooccurrence", "bm25", "sasrec", "tiger", "two-tower", "two-tower-trained"]


@dataclass(frozen=True)
class SasrecConfig:
    """SASRec (arXiv 1808.09781) with cross-entropy over the whole catalogue, for ``evaluate.baselines``.

    Attributes:
      width: width of the item embeddings and of the layers.
      layers: self-attention layers.
      heads: attention heads of a layer, which divide ``width``.
      dropout: dropout rate.
      max_length: newest items of a history that are read.
      batch_size: sequences of an update.
      learning_rate: learning rate of Adam.
      epochs: most passes over the training sequences.
      patience: end after this many epochs without a better ndcg@10 of validation rows.
      seed: seed of the weights, the order and the dropout.
    """

    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.4
    max_length: int = 50
    batch_size: int = 128
    learning_rate: float = 3e-3
    epochs: int = 50
    patience: int = 5
    seed: int = 0


@dataclass(frozen=True)
class TwoTowerConfig:
    """Projections of the base model's vectors of texts, for ``two-tower-trained`` of ``evaluate.baselines``.

    Attributes:
      temperature: cosines are divided by it before the softmax over the items of a batch.
      batch_size: pairs of a query and an item of an update.
      learning_rate: learning rate of Adam.
      epochs: most passes over the pairs of training.
      patience: end after this many epochs without a better ndcg@10 of validation rows.
      seed: seed of the order.
    """

    temperature: float = 0.05
    batch_size: int = 256
    learning_rate: float = 1e-3
    epochs: int = 30
    patience: int = 3
    seed: int = 0


@dataclass(frozen=True)
class TigerConfig:
    """TIGER (arXiv 2305.05065): a T5 from random weights, from identifiers to identifiers, for ``evaluate.baselines``.

    Attributes:
      width: width of the model, whose feed-forward layers are four times as wide.
      layers: layers of the encoder, and of the decoder.
      heads: attention heads of a layer, which divide ``width``.
      dropout: dropout rate.
      levels: codes of an identifier.
      codebook_size: codes of each level.
      max_length: newest items of a history that are read.
      batch_size: transitions of an update.
      learning_rate: largest learning rate of Adam.
      epochs: most passes over the transitions of training.
      patience: end after this many epochs without a better ndcg@10 of validation rows.
      valid_rows: validation rows that choose the epoch, drawn at random.
      beams: width of the beam search, at least 20.
      seed: seed of the identifiers, the weights, the order and the dropout.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    levels: int = 3
    codebook_size: int = 256
    max_length: int = 20
    batch_size: int = 128
    learning_rate: float = 2e-3
    epochs: int = 50
    patience: int = 8
    valid_rows: int = 1000
    beams: int = 20
    seed: int = 0
