"""Extra arguments of ``update`` whose names are misspelt.

Transforms pass on the extra arguments that are not theirs, so that a misspelt one is taken for another transform's, and
what it says is left out.
"""

import difflib
import re
from collections.abc import Iterable

OWN = ("task_losses", "task_counts", "shared_grads")

# Words that say what an argument is, and words that say whose: one of each is a name of ours.
_WHAT = {
    "task_losses": {"loss", "losses"},
    "task_counts": {"count", "counts"},
    "shared_grads": {"grad", "grads", "gradient", "gradients"},
}
_WHOSE = {
    "task_losses": {"task", "tasks"},
    "task_counts": {"task", "tasks", "token", "tokens", "label", "labels"},
    "shared_grads": {"shared"},
}
# Names that stand for `losses` and `counts` of the tasks by themselves; `loss`, `grad` and `count` may be anybody's.
_SHORT = {"losses": "task_losses", "counts": "task_counts"}
_ALIKE = 0.8  # difflib's ratio, from which on a name is a misspelt one


def meant(name: str) -> str | None:
    """The argument of ours that a name stands for, if it is another word for it, or the name misspelt.

    Example:
      >>> [meant(name) for name in ("losses", "token_counts", "shared_gradients", "task_losess")]
      ['task_losses', 'task_counts', 'shared_grads', 'task_losses']
      >>> [meant(name) for name in ("value", "grad", "value_fn", "loss", "valid_losses")]
      [None, None, None, None, None]
    """
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    words = set(plain.split("_"))
    for own in OWN:
        if words & _WHAT[own] and words & _WHOSE[own]:
            return own
    return _SHORT.get(plain) or next(iter(difflib.get_close_matches(plain, OWN, n=1, cutoff=_ALIKE)), None)


def check_extras(names: Iterable[str]) -> None:
    """Raises ``TypeError`` for a name that stands for one of `OWN`.

    Args:
      names: of the extra arguments that a transform does not know.

    Example:
      >>> check_extras(["value"])
      >>> check_extras(["losses"])
      Traceback (most recent call last):
      TypeError: update got 'losses', which nothing reads: say task_losses (another transform's argument: rename it)
    """
    for name in names:
        own = meant(name)
        if own is not None and own != name:
            raise TypeError(
                f"update got {name!r}, which nothing reads: say {own} (another transform's argument: rename it)"
            )
