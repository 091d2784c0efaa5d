"""Splits a model into the parameters that train and those that stay, and joins both again."""

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from gems_jax.config.methods import METHODS
from gems_jax.config.run import Config
from gems_jax.models import lora
from gems_jax.training.optimiser.chain import is_trained
from gems_jax.types import PyTree


@dataclass(frozen=True)
class Adapted:
    """The graph of a model whose kernels stay and have adapters beside them.

    Attributes:
      base: graph of the model.
      alpha: scale of the adapters.
    """

    base: Any
    alpha: float


def split_model(model: Any, config: Config) -> tuple[Any, PyTree, PyTree]:
    """Graph, trained parameters and frozen ones; `join_model` is the way back.

    A method with adapters, such as ``lora``, freezes the kernels and trains
    ``{"adapters", "model"}``: low-rank adapters by the kernel's path, and the model's other trained leaves.
    """
    adapted = METHODS[config.train.method].adapters

    def trained(path: tuple[Any, ...], value: Any) -> bool:
        name = "/".join(map(str, path))
        if adapted and name.endswith("kernel"):
            return False
        return isinstance(value, nnx.Param) and is_trained(name, config.train)

    graphdef, params, *others = nnx.split(model, trained, ...)
    (frozen,) = others
    if not adapted:
        return graphdef, params, frozen
    adapters = lora.init(frozen, config.lora.rank, jax.random.key(config.train.seed))
    # Checkpoints name files by keys, in which a path's slashes do not belong.
    named = {path.replace("/", "."): adapter for path, adapter in adapters.items()}
    return Adapted(graphdef, config.lora.alpha), {"adapters": named, "model": params}, frozen


def join_model(graph: Any, params: PyTree, frozen: PyTree) -> Any:
    """The model of what `split_model` gave; adapters are merged into their kernels."""
    if not isinstance(graph, Adapted):
        return nnx.merge(graph, params, frozen)
    adapters = {name.replace(".", "/"): adapter for name, adapter in params["adapters"].items()}
    return nnx.merge(graph.base, params["model"], lora.apply(frozen, adapters, alpha=graph.alpha))
