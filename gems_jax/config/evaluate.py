"""The fields of ``evaluate``: rankings, forgetting, and what both are shown beside."""

from dataclasses import dataclass, field
from typing import Literal

from gems_jax.config.rankers import Baseline, SasrecConfig, TigerConfig, TwoTowerConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """Measuring a tuned model.

    Attributes:
      split: rows to measure: ``test`` or ``valid``.
      candidates: what each row's target is ranked among: ``sampled``: the row's negatives (``data.num_negatives``);
        ``all``: the whole catalogue; ``both``, apart; ``auto``: ``both`` for catalogues of fewer than 100,000 items,
        else ``sampled``.
      checkpoint: ``last``, or ``best`` by ``train.metric``; ``gems-jax export`` takes it, too.
      beams: width of the beam search, at least 20.
      batch_size: rows that are ranked at once.
      baselines: rankers that the run is measured beside, some of: ``popularity``, ``cooccurrence``, ``bm25``,
        ``sasrec`` and ``tiger``, which are trained for it, ``two-tower``, the base model's vectors of queries and
        items, and ``two-tower-trained``.
      sasrec: how SASRec is trained.
      tiger: how TIGER is trained.
      two_tower: how the two towers are trained.
      rows: rows of each task; ``null``: all.
      samples: bootstrap resamples of the confidence intervals.
      continuations: inputs of general text that the model goes on with before and after tuning; 0: none.
      facts: whether the model ends some 300 sentences, such as "The capital of Italy is", as before tuning where it was
        sure of the answer.
      compare: other runs that the report shows beside this one, each name with its work directory.
    """

    split: Literal["test", "valid"] = "test"
    candidates: Literal["auto", "sampled", "all", "both"] = "auto"
    checkpoint: Literal["last", "best"] = "last"
    beams: int = 20
    batch_size: int = 128
    baselines: tuple[Baseline, ...] = ("popularity", "cooccurrence", "bm25")
    sasrec: SasrecConfig = SasrecConfig()
    tiger: TigerConfig = TigerConfig()
    two_tower: TwoTowerConfig = TwoTowerConfig()
    rows: int | None = None
    samples: int = 1000
    continuations: int = 8
    facts: bool = True
    compare: dict[str, str] = field(default_factory=dict)
