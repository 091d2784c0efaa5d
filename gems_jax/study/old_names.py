"""Names of numbers in result files of earlier versions, read as those of today."""

import warnings
from typing import Any

# What studies compare: how much the loss on general text rises over the base model's own vocabulary. Earlier versions
# measured no other forgetting, and called it so.
FORGETTING = "forgetting_base_vocabulary"

RENAMED = {
    "rise": FORGETTING,
    "forgetting": FORGETTING,
    "rise_full": "forgetting_full",
    "general/rise": f"general/{FORGETTING}",
    "general/forgetting": f"general/{FORGETTING}",
    "general/rise_full": "general/forgetting_full",
    "rise_allowed": "forgetting_allowed",
}


def in_today_s_names(values: Any) -> Any:
    """JSON values with every old key replaced by its new one, which a warning tells.

    Example:
      >>> import warnings
      >>> with warnings.catch_warnings(record=True) as told:
      ...     warnings.simplefilter("always")
      ...     in_today_s_names({"general": {"rise": 0.5}}), str(told[0].message)
      ({'general': {'forgetting_base_vocabulary': 0.5}},
       'results of an earlier version: rise is called forgetting_base_vocabulary now')
      >>> today = {"general": {"forgetting": 0.7, "forgetting_base_vocabulary": 0.5}}  # over all tokens, and not
      >>> in_today_s_names(today) == today
      True
    """
    old: set[str] = set()
    renamed = _renamed(values, old)
    if old:
        pairs = ", ".join(f"{name} is called {RENAMED[name]} now" for name in sorted(old))
        warnings.warn(f"results of an earlier version: {pairs}", stacklevel=3)
    return renamed


def _renamed(values: Any, old: set[str]) -> Any:
    if isinstance(values, dict):
        # With today's name beside it, an old one means something else.
        names = {name: new for name in values if (new := RENAMED.get(name)) is not None and new not in values}
        old |= set(names)
        return {names.get(name, name): _renamed(value, old) for name, value in values.items()}
    return [_renamed(value, old) for value in values] if isinstance(values, list) else values
