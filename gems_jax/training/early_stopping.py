"""Which evaluation was the best, and whether it is time to end."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gems_jax.config.metric_names import is_loss


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
