"""Search queries made from an item's place in the category tree, where nobody's own words are known."""

from __future__ import annotations

import html
from collections.abc import Sequence

from gems_jax.data.text.words import split_words

STOP_WORDS = frozenset(
    ["a", "amp", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"]
)


def category_query(levels: Sequence[str]) -> str:
    """The words of a category path without its root, in any script, each once, where it stands last.

    The rule of Van Gysel, de Rijke, Kanoulas (arXiv 1608.07253) and of HEM (Ai, Zhang, Bi, Chen, Croft, SIGIR 2017):
    stop words and words that come again go; a path of one level is no query. The root goes too: it is the same for
    all items.

    Example:
        >>> category_query(["Industrial & Scientific", "Fasteners", "Collated Fasteners", "Staples"])
        'collated fasteners staples'
        >>> category_query(["Haushalt", "K\u00fcchenger\u00e4te", "Wasserkocher"])
        'küchengeräte wasserkocher'

    Args:
        levels: names from the root down; HTML's escapes are undone.

    Returns:
        The query, empty where the path gives none.
    """
    named = [level for level in levels if level.strip()]
    if len(named) < 2:
        return ""
    text = html.unescape(html.unescape(" ".join(named[1:]))).lower()
    words: dict[str, None] = {}
    for word in reversed(split_words(text)):
        if word not in STOP_WORDS:
            words.setdefault(word)
    return " ".join(reversed(words))
