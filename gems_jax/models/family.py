"""What a kind of model tells of itself, so that its weights can be read and written."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

# Tables of the pretrained vocabulary and those of the items that may be added behind it.
ITEM_TABLES = {
    "token_embedding/embedding": "item_embedding/embedding",
    "lm_head/embedding": "item_head/embedding",
}


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where a leaf stands in a Hugging Face file: one tensor, or one for each of ``layers`` layers.

    Args:
      name: of the tensor; with layers a format with ``{}`` for the layer's number.
      layers: length of the leaf's first axis, each entry a tensor of its own; ``None``: one tensor.
      transposed: whether the file holds ``[out, in]`` where the leaf is ``[in, out]``.

    Example:
      >>> Weight("block.{}.weight", layers=2).names()
      ['block.0.weight', 'block.1.weight']
    """

    name: str
    layers: int | None = None
    transposed: bool = False

    def names(self) -> list[str]:
        """The tensors, first layer first."""
        return [self.name] if self.layers is None else [self.name.format(layer) for layer in range(self.layers)]


class Family(NamedTuple):
    """A kind of model.

    Args:
      config: class of its configs, a frozen dataclass.
      model: class of its models, with ``create(config, key)`` and ``from_params(config, params)``.
      read_config: config of the values of a ``config.json``; the second argument is the name of the place they
        are from. Raises ValueError for an option that the model does not implement.
      config_values: the values of ``config.json`` for a config.
      weights: leaf path to tensors; the item tables are left out, their rows stand behind the pretrained ones.
      ignored: patterns of the whole names of tensors that a file may hold and the model does not use.
      honoured: keys of ``config.json`` that are read, or refused where they ask for what is not implemented.
      no_effect: keys of this family that do not change what the model computes, beside those of
        `gems_jax.models.config_options.NO_EFFECT`.
      untied: the config of the same model with an output layer of its own; whether outputs are scaled stays.
      copies: tensors that a file may hold as copies of others, by the names of both.
    """

    config: type
    model: type
    read_config: Callable[[Mapping[str, Any], Path | str], Any]
    config_values: Callable[[Any], dict[str, Any]]
    weights: Callable[[Any], dict[str, Weight]]
    honoured: frozenset[str]
    no_effect: frozenset[str]
    untied: Callable[[Any], Any]
    ignored: tuple[str, ...] = ()
    copies: Mapping[str, str] = MappingProxyType({})
