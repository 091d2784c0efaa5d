"""How much of people's text the tokenizer does not know: to a model all of that is one token."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gems_jax.data.raw.blank import is_blank
from gems_jax.data.text.plain_text import plain_ids

# Texts that are looked at, spread over all of them.
_LOOKED_AT = 4096
# Shares up to this are a few signs, such as emoji.
_FEW = 0.03
# Letters of a word that is an example.
_SHOWN = 30


def unknown_share(texts: Sequence[str], tokenizer: Any) -> float:
    """Share of the tokens of some texts that stand for what the tokenizer does not know; tokens of spaces do not count.

    Args:
      texts: titles or queries; at most 4,096 of them, spread over all, are looked at.
      tokenizer: a Hugging Face tokenizer.

    Raises:
      ValueError: a text is no Unicode text.

    Example:
      >>> from gems_jax.data.text.small_tokenizer import train_tokenizer
      >>> tokenizer = train_tokenizer(["a red kettle"] * 3, vocab_size=400)
      >>> unknown_share(["red kettle", "\u7ea2 \u58f6"], tokenizer)
      0.5
    """
    unknown = tokenizer.unk_token_id
    if unknown is None:  # there are tokens for all bytes
        return 0.0
    counts = Counter(token for ids in plain_ids(spread(texts), tokenizer) for token in ids)
    if not counts[unknown]:
        return 0.0
    spaces = sum(count for token, count in counts.items() if token != unknown and is_blank(tokenizer.decode([token])))
    return counts[unknown] / (counts.total() - spaces)


def spread(texts: Sequence[str], most: int = _LOOKED_AT) -> list[str]:
    """At most so many of some texts, at even distances.

    Example:
      >>> spread(["a", "b", "c", "d", "e"], most=3)
      ['a', 'c', 'e']
    """
    return list(texts[:: max(1, -(-len(texts) // most))])


def unknown_words(texts: Sequence[str], tokenizer: Any, most: int = 2) -> list[str]:
    """The first words of some texts of which a tokenizer does not know something.

    Args:
      texts: as of `unknown_share`; those that it looks at are looked at.
      tokenizer: a Hugging Face tokenizer.
      most: number of words.

    Example:
      >>> from gems_jax.data.text.small_tokenizer import train_tokenizer
      >>> tokenizer = train_tokenizer(["a red kettle"] * 3, vocab_size=400)
      >>> unknown_words(["red kettle", "red \u58f6", "\u58f6"], tokenizer) == ["\u58f6"]
      True
    """
    unknown, found = tokenizer.unk_token_id, dict[str, None]()
    if unknown is None:
        return []
    some = spread(texts)
    for text, ids in zip(some, plain_ids(some, tokenizer), strict=True):
        words = text.split() if unknown in ids else []
        found |= {word: None for word, of in zip(words, plain_ids(words, tokenizer), strict=True) if unknown in of}
        if len(found) >= most:
            break
    return list(found)[:most]


def unknown_lines(shares: Mapping[str, float], words: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """A line for people, with what to do; none where hardly anything is unknown.

    Args:
      shares: kind of text, such as ``"titles"``, to its `unknown_share`.
      words: kind of text to some `unknown_words`.

    Example:
      >>> unknown_lines({"titles": 0.5, "queries": 0.01}, {"titles": ["\u58f6"]})[0].partition(":")[0]
      "the tokenizer does not know 50 % of the tokens of titles (such as '\u58f6')"
    """
    many = []
    for kind, share in shares.items():
        such = ", ".join(repr(word[:_SHOWN]) for word in (words or {}).get(kind, ()))
        text = f"{100 * share:.0f} % of the tokens of {kind}" + (f" (such as {such})" if such else "")
        many += [text] if share > _FEW else []
    if not many:
        return []
    return [
        f"the tokenizer does not know {' and '.join(many)}: the model reads one and the same sign for all of these; "
        "take a base model whose tokenizer knows their language and script (model.path), or bring them into its own"
    ]
