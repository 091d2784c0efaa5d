"""The methods that a model can be tuned by: the table that ``train.method``, studies and the documents read.

`gems_jax.training.optimiser.methods` builds the optimiser of each, and takes methods of your own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal


@dataclass(frozen=True)
class OwnRate:
    """The learning rate of kernels that methods have where a configuration gives none, and why this one.

    Rates are for pretrained language models of some 100 million parameters. Item rows are new with every method, and
    have one rate.
    """

    value: float
    why: str


ADAMW = OwnRate(3e-4, "usual for AdamW on pretrained models: SmolLM2-135M learns with it as much as by GEMS at 3e-3")
ADAPTERS = OwnRate(
    1e-3,
    "usual for LoRA, whose adapters begin at zero: with it SmolLM2-135M learns a little less than by AdamW at 3e-4",
)
SUBSPACE = OwnRate(
    1e-3, "at rank 0.25 a step is half as long as AdamW's; its best rate in docs/study.md is 2.5 times that"
)
PROTECTED = OwnRate(3e-3, "the null space bears more: +0.1 nats on SmolLM2-135M, +1.1 on 8 M parameters")
PROJECTED = OwnRate(3e-3, "inside the null space as GEMS: +0.6 nats on 8 M parameters, in docs/study_parts.md")
OF_THE_AUTHORS = OwnRate(5e-4, "the authors' own, of their train.sh")


@dataclass(frozen=True)
class TuningMethod:
    """A method, as far as it is known before its optimiser is built.

    Attributes:
      label: for tables and pictures.
      about: what it is, in half a sentence.
      null_space: whether its optimiser takes a null space; ``option``: where ``gems.null_space`` is set; ``weights``:
        one that is made from the weights, on both sides of the kernels.
      stays_inside: whether its updates stay in the null space that it takes.
      own_rates: whether learning rates are part of its updates. Updates of other methods are linear in the rates,
        which the step multiplies in (`gems_jax.training.optimiser.rates.scaled`).
      adapters: whether low-rank adapters train in place of the kernels.
      whole_rank: whether ``gems.rank`` must be a number of columns.
      low_rank: whether it takes gradients that are projected already, see `gems_jax.projected_task_grads`.
      own_rate: learning rate of kernels where ``train.learning_rate`` is null.
    """

    label: str
    about: str
    null_space: Literal["never", "option", "always", "weights"] = "never"
    stays_inside: bool = True
    own_rates: bool = False
    adapters: bool = False
    whole_rank: bool = False
    low_rank: bool = False
    own_rate: OwnRate = ADAMW


# Fields of the section ``gems`` that make GaLore of GEMS: one subspace of the joint gradient, moments inside it.
GALORE: Mapping[str, Any] = MappingProxyType({"task_rank": 0, "null_space": False})

# `gems_jax.training.optimiser.methods.register_method` adds to it.
METHODS: dict[str, TuningMethod] = {
    "adamw": TuningMethod("joint AdamW", "AdamW on the mean loss of all tasks"),
    "lora": TuningMethod("LoRA", "AdamW on low-rank adapters of the kernels", adapters=True, own_rate=ADAPTERS),
    "galore": TuningMethod(
        "GaLore", "Adam inside one subspace of the joint gradient", low_rank=True, own_rate=SUBSPACE
    ),
    "pcgrad": TuningMethod("PCGrad", "AdamW on gradients whose conflicting parts are projected out"),
    "gems": TuningMethod(
        "GEMS",
        "shared and task subspaces inside the null space of general text",
        "option",
        low_rank=True,
        own_rate=PROTECTED,
    ),
    "cagrad": TuningMethod("CAGrad", "AdamW on the direction near the mean that helps the worst task most"),
    "nash-mtl": TuningMethod("Nash-MTL", "AdamW on the tasks' bargaining solution"),
    "uncertainty": TuningMethod("uncertainty weighting", "AdamW on losses weighted by learned variances"),
    "mgda": TuningMethod("MGDA", "AdamW on the shortest convex combination of the gradients"),
    "dwa": TuningMethod("DWA", "AdamW with more weight where the loss falls slowly"),
    "imtl-g": TuningMethod("IMTL-G", "AdamW on the combination with the same projection on every task's gradient"),
    "aligned-mtl": TuningMethod("Aligned-MTL", "AdamW on gradients made orthogonal and equally long"),
    "upgrad": TuningMethod("UPGrad", "AdamW on the mean of gradients projected onto the cone that hurts no task"),
    "adamw-constrained": TuningMethod(
        "joint AdamW inside the null space",
        "joint AdamW, its updates projected onto the null space",
        "always",
        own_rate=PROJECTED,
    ),
    "osft": TuningMethod(
        "OSFT", "joint AdamW, its updates kept off the weights' leading singular directions on both sides", "weights"
    ),
    "orbit": TuningMethod(
        "ORBIT", "joint AdamW, the weights averaged with the pretrained ones where they stray too far", own_rates=True
    ),
    "released": TuningMethod(
        "the released optimiser",
        "the optimiser that the authors of GEMS released",
        "option",
        stays_inside=False,
        own_rates=True,
        whole_rank=True,
        own_rate=OF_THE_AUTHORS,
    ),
}
