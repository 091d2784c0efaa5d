"""Words of a text in any script."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

# Scripts that set no spaces between words, and Hangul, whose words carry their endings; U+30FC lengthens kana.
_UNSPACED = "".join(
    rf"\p{{{script}}}"
    for script in ("Han", "Hiragana", "Katakana", "Bopomofo", "Hangul", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
)
_UNSPACED += "\u30fc"


def split_words(text: str) -> list[str]:
    """Runs of letters, marks and numbers, in Unicode's compatibility composition (NFKC).

    Example:
      >>> split_words("K\u00fcche & Bad, 2-teilig"), split_words("\u53f0\u706f LED")
      (['Küche', 'Bad', '2', 'teilig'], ['台灯', 'LED'])
    """
    # Before the split: a mark may stand behind its letter. After it NFKC cannot join words, as "TM" to the one before.
    return [unicodedata.normalize("NFKC", word) for word in _words().findall(unicodedata.normalize("NFC", text))]


def search_terms(text: str) -> list[str]:
    """The terms that lexical search compares: words without case; of scripts without spaces, characters and pairs.

    Pairs of neighbours stand for words that only a dictionary could tell apart, as in Lucene's CJK analysis; single
    characters find words of one.

    Example:
      >>> search_terms("Gr\u00fcner TEE"), search_terms("LED\u53f0\u706f")
      (['grüner', 'tee'], ['led', '台', '灯', '台灯'])
    """
    terms: list[str] = []
    for word in split_words(text.casefold()):
        for unspaced, spaced in _runs().findall(word):
            if spaced:
                terms.append(spaced)
                continue
            letters = _letters().findall(unspaced)
            terms += letters
            terms += [first + second for first, second in zip(letters, letters[1:], strict=False)]
    return terms


@functools.cache
def _words() -> Any:
    import regex

    return regex.compile(r"[\p{L}\p{M}\p{N}]+")


@functools.cache
def _runs() -> Any:
    import regex

    return regex.compile(rf"([{_UNSPACED}]+)|([^{_UNSPACED}]+)")


@functools.cache
def _letters() -> Any:
    import regex

    # A letter with the marks behind it.
    return regex.compile(r"\X")
