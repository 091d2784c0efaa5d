"""How much of its general knowledge a model is to keep: one word, and the fields that follow from it."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Keep = Literal["high", "medium", "low"]


@dataclasses.dataclass(frozen=True)
class Protection:
    """Fields that decide between learning and keeping.

    Attributes:
      learning_rate: ``train.learning_rate`` of GEMS.
      energy: ``null_space.energy``.
      min_share: ``null_space.min_share``.
      measured: what was measured with them.
    """

    learning_rate: float
    energy: float
    min_share: float
    measured: str


# docs/settings.md has the runs: one base model of 8 M parameters, ndcg@10 of recommendation and of search.
PROTECTIONS: Mapping[Keep, Protection] = MappingProxyType(
    {
        "high": Protection(2e-3, 0.85, 0.35, "+0.27 nats at .275 and .935"),
        "medium": Protection(3e-3, 0.85, 0.35, "+0.55 nats at .277 and .953"),
        "low": Protection(4e-3, 0.75, 0.2, "+2.27 nats at .283 and .963"),
    }
)


def reason(keep: Keep) -> str:
    """Why these fields, in a few words, with what the other choices gave.

    Example:
      >>> reason("high")
      '--keep high forgot +0.27 nats at .275 and .935 in docs/settings.md; medium +0.55 nats at .277 and .953'
    """
    other: Keep = "high" if keep == "medium" else "medium"
    mine, its = PROTECTIONS[keep].measured, PROTECTIONS[other].measured
    return f"--keep {keep} forgot {mine} in docs/settings.md; {other} {its}"
