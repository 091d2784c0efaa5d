"""What people type is letters: no name of a special or added token becomes the token, and what is no text is told."""

from pathlib import Path

import numpy as np
import pytest
from shared import SHARED, needs_shared
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from gems_jax.data.batching.prompts import encode_table
from gems_jax.data.dataset.tables import Row, Table
from gems_jax.data.text.plain_text import check_unicode, plain_ids
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.items.tokens import add_item_tokens
from gems_jax.models.hf.tokenizer import load_tokenizer

LINES = ["a red kettle, a <pot> / [lamp] s_11 </x> item; the user's extra id of 0 unk pad"] * 4
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
ORDINARY = ("red kettle", "a lamp's  pot", " Kettle ", "", "r\u00e9d")


def wrapped(backend):
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **SPECIAL)


def trained(kind):
    """A tokenizer of each kind of model, with </s> in its vocabulary, and ten items."""
    names = list(SPECIAL.values())
    if kind == "ours":
        tokenizer = train_tokenizer(LINES, 400)
    elif kind == "unigram":
        # As SentencePiece's: control pieces are pieces of the model, and a normaliser makes them of wide letters.
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, show_progress=False, special_tokens=names, unk_token="<unk>")
        backend.train_from_iterator(LINES, trainer)
        tokenizer = wrapped(backend)
    elif kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, show_progress=False, initial_alphabet=alphabet, special_tokens=names
        )
        backend.train_from_iterator(LINES, trainer)
        tokenizer = wrapped(backend)
    elif kind == "whole words first":
        # Llama 3's way: a word of the vocabulary is taken without merges.
        vocabulary = {piece: number for number, piece in enumerate([*names, *"</>s adekltr", "ed"])}
        backend = Tokenizer(models.BPE(vocabulary, [("e", "d")], unk_token="<unk>", ignore_merges=True))
        tokenizer = wrapped(backend)
    else:
        backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate([*names, "red", "kettle"])}, "<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = wrapped(backend)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    add_item_tokens(tokenizer, [str(n) for n in range(12)])
    return tokenizer


def spellings(tokenizer):
    """Every way in which the names of the tokens stand in a text."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values()]
    wide = [name.translate({code: code + 0xFEE0 for code in range(33, 127)}) for name in names]
    return [text for name in [*names, *wide] for text in (name, f"red {name} kettle", f"red{name}{name}")]


@pytest.mark.parametrize("kind", ["ours", "unigram", "bytes", "whole words first", "words"])
def test_no_name_of_a_token_is_the_token(kind):
    tokenizer = trained(kind)
    forbidden = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    for text, ids in zip(spellings(tokenizer), plain_ids(spellings(tokenizer), tokenizer), strict=True):
        assert not forbidden & set(ids), (text, tokenizer.convert_ids_to_tokens(ids))
    # The tokenizer itself takes the names for the tokens.
    assert tokenizer.convert_tokens_to_ids("<item_11>") in tokenizer("red <item_11>")["input_ids"]
    assert plain_ids([], tokenizer) == []
    # It is as it was.
    assert tokenizer.convert_tokens_to_ids("</s>") in tokenizer("red </s>", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["ours", "unigram", "bytes", "whole words first", "words"])
def test_other_texts_have_the_tokens_they_always_had(kind):
    tokenizer = trained(kind)
    expected = tokenizer(list(ORDINARY), add_special_tokens=False)["input_ids"]
    assert plain_ids(ORDINARY, tokenizer) == expected


def test_bytes_spell_a_name_letter_by_letter():
    tokenizer = trained("bytes")
    for text in spellings(tokenizer):
        assert tokenizer.decode(plain_ids([text], tokenizer)[0]) == text


def test_a_tokenizer_in_python_is_asked_the_same_way():
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens(["<item_1>"])
    for text in ("kettle </s>", "<item_1>", "<extra_id_0>"):
        assert plain_ids([text], tokenizer) == [[byte + 3 for byte in text.encode()]]


@needs_shared
@pytest.mark.parametrize("name", ["t5_small", "llama2", "qwen3"])
def test_real_tokenizers_give_plain_texts_the_same_tokens_and_names_none(name):
    tokenizer = load_tokenizer(Path(SHARED / "data" / "tokenizers" / name))
    add_item_tokens(tokenizer, ["7"])
    texts = ["red lamp", "K\u00fcche \u7ea2\u8272\u53f0\u706f", "a  b   c", " lead "]
    assert plain_ids(texts, tokenizer) == tokenizer(texts, add_special_tokens=False)["input_ids"]
    forbidden = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    for ids in plain_ids(spellings(tokenizer), tokenizer):
        assert not forbidden & set(ids)


def test_a_query_cannot_end_the_input_or_name_an_item_and_a_template_can():
    tokenizer = trained("bytes")
    items = tokenizer.convert_tokens_to_ids([f"<item_{n}>" for n in range(12)])
    table = Table.from_rows("src", [Row("ann", [3], 1, "red </s> <item_11> <think>"), Row("bob", [3], 1, "red")])
    found = encode_table(table, tokenizer, items, "<think> {history} {query}", max_length=80)
    think, end = tokenizer.convert_tokens_to_ids(["<think>", "</s>"])
    for row in (0, 1):
        tokens = found.tokens_of(row).tolist()
        assert [token for token in tokens if token in items] == [items[3]]
        assert tokens.count(think) == 1
        assert np.flatnonzero(np.asarray(tokens) == end).tolist() == [len(tokens) - 1]


@pytest.mark.parametrize("text", ["caf\udce9", "\ud800", "ok \udfff ok"])
def test_what_is_no_text_is_told_by_its_name(text):
    tokenizer = trained("ours")
    items = tokenizer.convert_tokens_to_ids([f"<item_{n}>" for n in range(12)])
    table = Table.from_rows("src", [Row("ann", [0], 1, "tea"), Row("ann", [0], 1, text)])
    with pytest.raises(ValueError, match="the query '.*' is no Unicode text: .* is a lone surrogate") as error:
        encode_table(table, tokenizer, items, "{history} {query}", max_length=64)
    str(error.value).encode()  # can be printed anywhere
    with pytest.raises(ValueError, match="is no Unicode text"):
        plain_ids([text], tokenizer)
    check_unicode("caf\u00e9 \U0001f600")
