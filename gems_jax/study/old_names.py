"""Names of numbers in result files of earlier versions, read as those of today."""

import warnings
from typing import Any

# What studies compare: how much higher the loss on general text is over all tokens, items among them, than that of the
# base model without items. Earlier versions compared by the loss over the base model's own vocabulary, and called that
# forgetting.
FORGETTING = "forgetting"
_EARLIER = "forgetting_base_vocabulary"

RENAMED = {
    "rise": _EARLIER,
    "forgetting": _EARLIER,
    "rise_full": "forgetting_full",
    "general/rise": f"general/{_EARLIER}",
    "general/forgetting": f"general/{_EARLIER}",
    "general/rise_full": "general/forgetting_full",
    "rise_allowed": "forgetting_allowed",
}


def in_today_s_names(values: Any) -> Any:
    """JSON values with every old key replaced by its new one, which a warning tells.

    Beside forgetting over the base model's own vocabulary, earlier versions kept the losses that ``forgetting`` is the
    difference of. Results from before those were kept, too, have the one figure for both.

    Example:
      >>> import warnings
      >>> with warnings.catch_warnings(record=True) as told:
      ...     warnings.simplefilter("always")
      ...     in_today_s_names({"general": {"rise": 0.5}}), str(told[0].message)
      ({'general': {'forgetting_base_vocabulary': 0.5, 'forgetting': 0.5}},
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
        names: dict[str, str] = {
            name: new for name in values if (new := RENAMED.get(name)) is not None and new not in values
        }
        old |= set(names)
        renamed = {str(names.get(name, name)): _renamed(value, old) for name, value in values.items()}
        return renamed | _forgetting(renamed, "") | _forgetting(renamed, "general/")
    return [_renamed(value, old) for value in values] if isinstance(values, list) else values


def _forgetting(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Forgetting over all tokens, of a run's numbers or of means and spreads over runs of one base model."""
    if f"{prefix}{_EARLIER}" not in values or f"{prefix}{FORGETTING}" in values:
        return {}
    after, before = (values.get(f"{prefix}{name}") for name in ("loss_full", "base_loss"))
    if after is None or before is None:
        found = values[f"{prefix}{_EARLIER}"]
    elif isinstance(after, dict):
        found = after | {"mean": after["mean"] - before["mean"]}
    else:
        found = after - before
    return {f"{prefix}{FORGETTING}": found}
