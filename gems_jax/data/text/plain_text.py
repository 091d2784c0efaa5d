"""Text that people wrote as tokens: who types the name of a token, such as ``</s>``, gets its letters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any


def plain_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokens of texts in which no special and no added token is recognised.

    Without one in it a text has the tokens that the tokenizer gives it otherwise.

    Args:
      texts: words of queries, titles.
      tokenizer: a Hugging Face tokenizer.

    Raises:
      ValueError: a text is no Unicode text: it holds lone surrogates.

    Example:
      >>> from gems_jax.data.text.small_tokenizer import train_tokenizer
      >>> tokenizer = train_tokenizer(["a kettle < a pot / a cup > s"] * 3, vocab_size=400)
      >>> tokenizer.eos_token_id in plain_ids(["kettle </s>"], tokenizer)[0]
      False
    """
    return plain_reader(tokenizer)(texts) if texts else []


def plain_reader(tokenizer: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """`plain_ids` of one tokenizer, for many calls: what it takes to make is done once.

    Args:
      tokenizer: a Hugging Face tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    plain = None if backend is None else _without_added(backend)

    def read(texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            check_unicode(text)
        if plain is None:
            encoding = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
            return [list(ids) for ids in encoding["input_ids"]]
        return [list(encoding.ids) for encoding in plain.encode_batch(list(texts), add_special_tokens=False)]

    return read


def is_unicode(text: str) -> bool:
    """Whether a text is free of lone surrogates: bytes in another encoding than expected, or half of a character.

    Example:
      >>> is_unicode("caf\u00e9"), is_unicode("caf" + chr(0xDCE9))
      (True, False)
    """
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def check_unicode(text: str, what: str = "the text") -> None:
    """Raises ValueError, naming the text, if it is not `is_unicode`: no tokenizer can read it."""
    if not is_unicode(text):
        wrong = next(letter for letter in text if "\ud800" <= letter <= "\udfff")
        raise ValueError(
            f"{what} {text!r} is no Unicode text: {wrong!r} is a lone surrogate, as is left of bytes in another "
            "encoding than UTF-8 or of half a character; write it in UTF-8"
        )


def _without_added(backend: Any) -> Any:
    """The same normalisation, splitting and model without added tokens.

    Models that take whole pieces of their vocabulary (unigram, word level, and byte pairs that skip merges) would find
    the tokens' names there: these pieces get names that no text has.
    """
    from tokenizers import Tokenizer

    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    plain = Tokenizer(backend.model)
    model = type(backend.model).__name__
    if model != "BPE" or getattr(backend.model, "ignore_merges", False):
        plain = Tokenizer.from_str(_renamed(plain.to_str(), set(added)))
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    return plain


def _renamed(description: str, hidden: set[str]) -> str:
    """A tokenizer's description whose vocabulary has other names for some pieces, with the same ids."""
    parsed = json.loads(description)
    model = parsed["model"]
    # A space and a NUL: neither is left of a text that has been split.
    names = {name: f" \x00{number}" for number, name in enumerate(sorted(hidden))}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    return json.dumps(parsed)
