"""Which rankers a run is measured beside, and how those are trained that have to be."""

from dataclasses import dataclass
from typing import Literal

Baseline = Literal["popularity", "cooccurrence", "bm25", "sasrec", "two-tower", "two-tower-trained"]


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
