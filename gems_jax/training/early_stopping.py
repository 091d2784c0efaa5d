"""Which evaluation was the best, and whether it is time to end."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Best:
    """The best evaluation so far; part of every checkpoint.

    Attributes:
      value: of the metric; ``None``: no evaluation yet.
      step: of the best evaluation.
      worse: evaluations since then.
    """

    value: float | None = None
    step: int | None = None
    worse: int = 0

    def after(self, metric: str, value: float, step: int) -> "Best":
        """With one more evaluation; what is no number is never the best.

        Example:
          >>> best = Best().after("eval/rec/ndcg@10", 0.2, 10).after("eval/rec/ndcg@10", 0.1, 20)
          >>> best.step, best.worse
          (10, 1)
          >>> Best(2.0, 10, 0).after("eval/general/loss", 1.5, 20).step
          20
        """
        sign = -1.0 if is_loss(metric) else 1.0
        better = math.isfinite(value) and (self.value is None or sign * value > sign * self.value)
        return Best(value, step, 0) if better else replace(self, worse=self.worse + 1)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Best":
        """The inverse of `to_json`."""
        return cls(**values)


def is_loss(metric: str) -> bool:
    """Whether smaller values of a metric are better."""
    return metric.endswith("loss")


def metric_names(tasks: Iterable[str]) -> list[str]:
    """What an evaluation during training gives."""
    return [f"eval/{task}/{name}" for task in tasks for name in ("hit@10", "ndcg@10")] + ["eval/general/loss"]


def check_metric(metric: str | None, patience: int, eval_every: int, tasks: Iterable[str]) -> None:
    """Checks that a run with this metric can be.

    Raises:
      ValueError: there is no such metric (with the nearest one), or no evaluation to give it.
    """
    if metric is None:
        if patience:
            raise ValueError(f"train.patience={patience} needs train.metric, such as eval/general/loss")
        return
    if not eval_every:
        raise ValueError(f"train.metric {metric} needs evaluations: set train.eval_every")
    names = metric_names(tasks)
    if metric not in names:
        near = difflib.get_close_matches(metric, names, 1, cutoff=0.0)[0]
        raise ValueError(f"train.metric {metric!r} is no metric of this run; did you mean {near!r}?")
