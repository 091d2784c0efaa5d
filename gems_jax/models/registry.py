"""The families of models by what their ``config.json`` calls them. A new one is a folder here, and named in a line."""

from gems_jax.models.decoder.hf import FAMILY as DECODER
from gems_jax.models.family import Family
from gems_jax.models.t5.hf import FAMILY as T5

# model_type -> family.
FAMILIES: dict[str, Family] = {kind: family for family in (T5, DECODER) for kind in family.model_types}


def register_family(family: Family) -> None:
    """Adds a family, whose models `gems_jax.models.load`, ``save`` and ``from_config`` then know.

    Raises:
      ValueError: one of its model types is that of another family.

    Example:
      >>> register_family(T5)
      Traceback (most recent call last):
      ...
      ValueError: there is a family with model_type 't5' (T5) already; choose another name
    """
    for kind in family.model_types:
        if kind in FAMILIES:
            name = FAMILIES[kind].model.__name__
            raise ValueError(f"there is a family with model_type {kind!r} ({name}) already; choose another name")
    FAMILIES.update(dict.fromkeys(family.model_types, family))
