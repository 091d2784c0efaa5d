"""What an evaluation says of items that share identifiers."""

from collections.abc import Mapping
from typing import Any

from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.groups import groups_of


def shared_identifiers(items: ItemIndex) -> dict[str, int]:
    """How many of the items that are ranked share an identifier, and how many identifiers these have.

    Example:
      >>> import numpy as np
      >>> shared_identifiers(ItemIndex(np.array([[5], [5], [6], [5], [7], [7]]), shared=True))
      {'items': 5, 'identifiers': 2}
    """
    sizes = groups_of(items).ranked
    return {"items": int(sizes[sizes > 1].sum()), "identifiers": int((sizes > 1).sum())}


def shared_lines(results: Mapping[str, Any]) -> list[str]:
    """The same in a line for people; none where each item has an identifier of its own.

    Args:
      results: the content of ``eval.json``.

    Example:
      >>> shared_lines({"shared": {"items": 5, "identifiers": 2}})
      ['5 items share 2 identifiers: metrics of this run are means over all orders of those that tie']
    """
    shared = results.get("shared")
    if not shared or not shared["items"]:
        return []
    count = shared["identifiers"]
    return [
        f"{shared['items']:,} items share {count:,} identifier{'s' * (count != 1)}: metrics of this run are means over "
        "all orders of those that tie"
    ]
