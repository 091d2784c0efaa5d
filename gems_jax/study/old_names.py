"""Names of numbers in result files of earlier versions, read as those of today."""

import warnings
from typing import Any

# The rise of general text's loss has the field's name now.
RENAMED = {
    "rise": "forgetting",
    "rise_full": "forgetting_full",
    "general/rise": "general/forgetting",
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
      ({'general': {'forgetting': 0.5}}, 'results of an earlier version: rise is called forgetting now')
    """
    old: set[str] = set()
    renamed = _renamed(values, old)
    if old:
        pairs = ", ".join(f"{name} is called {RENAMED[name]} now" for name in sorted(old))
        warnings.warn(f"results of an earlier version: {pairs}", stacklevel=3)
    return renamed


def _renamed(values: Any, old: set[str]) -> Any:
    if isinstance(values, dict):
        old |= set(values) & set(RENAMED)
        return {RENAMED.get(name, name): _renamed(value, old) for name, value in values.items()}
    return [_renamed(value, old) for value in values] if isinstance(values, list) else values
