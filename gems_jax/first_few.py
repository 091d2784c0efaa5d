"""Lists in messages: the first few of many, and how many more there are."""

from collections.abc import Iterable


def first_few(texts: Iterable[str], most: int = 5, between: str = ", ") -> str:
    """The first of many texts, and how many are left out.

    Example:
      >>> first_few(["a", "b", "c", "d"], 2)
      'a, b and 2 more'
      >>> first_few(["a is 1", "b is 2", "c is 3"], 2, between="; ")
      'a is 1; b is 2; and 1 more'
    """
    texts = list(texts)
    shown, more = between.join(texts[:most]), len(texts) - most
    return shown if more <= 0 else f"{shown}{between.strip(', ')} and {more:,} more"
