"""The fields of ``gems``, ``lora`` and ``orbit``: how each method makes updates of gradients."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GemsConfig:
    """Options of `gems_jax.gems`, by the same names.

    Attributes:
      rank: columns of the shared basis; a number with a decimal point is a share of the kernel's smaller side: ``1`` is
        one column, ``1.0`` the whole side.
      task_rank: the same for each task's own basis; ``null``: half of ``rank``; 0: no bases of their own.
      side: side of the kernel that bases span; ``auto``: the null space's, without one the smaller side.
      refresh_every: steps between new bases.
      decomposition: how bases are computed; ``auto``: ``subspace`` on TPU and for projected gradients, ``eigh``
        elsewhere. ``random``: drawn anew inside the null space, whatever the gradients are.
      signs: ``canonical``, or ``align``: rotate a new basis onto the old one within its span.
      moments: whether Adam's moments are kept (``keep``) or zeroed (``reset``) when bases are made anew.
      complementary: whether the tasks' bases are orthogonal to the shared one.
      stagger: whether a refresh is spread over the steps, a few kernels of each stack in every step.
      scale: factor on the low-rank updates.
      gate: how the tasks' own updates are weighted: ``heuristic`` (by their shares of loss, gradient norm and tokens),
        ``learned`` (by a small network) or ``equal``.
      null_space: whether updates stay inside the null space.
      constraint: ``update``: every update is inside the null space; ``gradient``: only gradients are projected, as in
        the authors' release, which guarantees nothing.
      recovery: ``fira``: updates also get what of the shared gradient lies outside the shared basis, inside the null
        space, at the scale of what lies in it (arXiv 2410.01623); ``none``: nothing of it.
    """

    rank: int | float = 0.25
    task_rank: int | float | None = None
    side: Literal["auto", "in", "out"] = "auto"
    refresh_every: int = 200
    decomposition: Literal["auto", "svd", "eigh", "subspace", "random"] = "auto"
    signs: Literal["canonical", "align"] = "canonical"
    moments: Literal["keep", "reset"] = "keep"
    complementary: bool = False
    stagger: bool = False
    scale: float = 1.0
    gate: Literal["heuristic", "learned", "equal"] = "heuristic"
    null_space: bool = True
    constraint: Literal["update", "gradient"] = "update"
    recovery: Literal["none", "fira"] = "none"


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685), for ``train.method: lora``; merged into the kernels when a model is used.

    Attributes:
      rank: rank of every adapter.
      alpha: the adapters' product is multiplied by ``alpha / rank``.
    """

    rank: int = 8
    alpha: float = 16.0


@dataclass(frozen=True)
class OrbitConfig:
    """How ``train.method: orbit`` holds weights to the pretrained ones (arXiv 2605.12419).

    Attributes:
      max_distance: Euclidean distance of the trained weights, item rows aside, from the pretrained ones, beyond which
        the two are averaged.
      share: share of the pretrained weights in that average.
    """

    max_distance: float = 10.0
    share: float = 0.5
