"""Histories that are told by titles: the tokens of the whole text, the oldest left out, names in titles as letters."""

import types

import numpy as np
import pytest
from kinds_of_tokenizers import MADE, PUBLISHED, tokenizer_of
from shared import needs_shared

from gems_jax.data.batching.prompts import encode_table
from gems_jax.data.batching.token_cache import encode_once
from gems_jax.data.dataset.tables import Row, Table
from gems_jax.items.tokens import add_item_tokens
from gems_jax.training.export import asking_tokenizer

TITLES = [
    "Green tea",
    "Kettle,  1.5 l ",
    "",
    "\u00c4rger & Co's tea; strong",
    "user's kettle",
    "tea 5",
    "red",
    "x" * 90,
]
CHAT = "<|im_start|>user\nBought: {history_titles}\n({history})\nSearch: {query}<|im_end|>\n<|im_start|>assistant\n"
TEMPLATES = ["{history_titles} {query}", "search: {query} history: {history_titles} found:", CHAT]


@pytest.fixture(scope="module", params=[*MADE, *(pytest.param(name, marks=needs_shared) for name in PUBLISHED)])
def tokenizer(request):
    tokenizer = tokenizer_of(request.param)
    add_item_tokens(tokenizer, [str(number) for number in range(len(TITLES))])
    return tokenizer


def items_of(tokenizer):
    return tokenizer.convert_tokens_to_ids([f"<item_{number}>" for number in range(len(TITLES))])


def text_of(template, history, query):
    titles = "; ".join(" ".join(TITLES[item].split()) for item in history if TITLES[item])
    tokens = " ".join(f"<item_{item}>" for item in history)
    return template.format(history=tokens, history_titles=titles, query=query.strip())


@pytest.mark.parametrize("layout", ["encoder_decoder", "decoder"])
def test_prompts_with_titles_have_the_tokens_of_the_text_with_the_newest_that_fit(tokenizer, layout):
    asked = asking_tokenizer(tokenizer, types.SimpleNamespace(pad_token_id=0), layout)
    rows = [
        Row("a", history, 1, "green tea ") for history in ([], [3], [0, 1, 2, 3, 4, 5], [5, 4, 3] * 4, [7] * 3, [0, 7])
    ]
    answer = 2 if layout == "decoder" else 0
    for template in TEMPLATES:
        bare = len(asked(text_of(template, [], "green tea"))["input_ids"])
        for length in (bare + answer + 24, 700):
            dropped = 0
            found = encode_table(
                Table.from_rows("src", rows), tokenizer, items_of(tokenizer), template, length, layout, titles=TITLES
            )
            for number, row in enumerate(rows):
                texts = [text_of(template, row.history[first:], row.query) for first in range(len(row.history) + 1)]
                fits = [len(asked(text)["input_ids"]) + answer <= length for text in texts]
                dropped += fits.index(True)
                assert found.tokens_of(number).tolist() == asked(texts[fits.index(True)])["input_ids"]
            assert (found.dropped_items, found.clipped_queries) == (dropped, 0)
            assert (dropped > 0) == (length < 700)


def test_a_query_too_long_beside_no_title_at_all_is_cut_at_its_end(tokenizer):
    query = "green tea kettle " * 30
    table = Table.from_rows("src", [Row("a", [1], 2, query)])
    found = encode_table(table, tokenizer, items_of(tokenizer), CHAT, 90, titles=TITLES)
    assert (found.dropped_items, found.clipped_queries) == (1, 1)
    asked = asking_tokenizer(tokenizer, types.SimpleNamespace(pad_token_id=0), "encoder_decoder")
    tokens = found.tokens_of(0).tolist()
    assert len(tokens) <= 90
    texts = [text_of(CHAT, [], query[:letters]) for letters in range(len(query))]
    assert tokens in [asked(text)["input_ids"] for text in texts]


def test_a_title_or_query_that_names_a_token_is_letters(tokenizer):
    titles = [f"tea {tokenizer.eos_token} kettle", "green <item_3> tea", *TITLES[2:]]
    rows = [Row("a", [0, 1], 2, "tea"), Row("b", [4], 2, "tea <item_5>"), Row("c", [4], 2, "tea")]
    for template in (CHAT, "{query} {history_titles}"):
        found = encode_table(
            Table.from_rows("src", rows), tokenizer, items_of(tokenizer), template, 300, "decoder", titles=titles
        )
        template_ends = tokenizer(template, add_special_tokens=False)["input_ids"].count(tokenizer.eos_token_id)
        for row, events in enumerate(([0, 1], [4], [4])):
            tokens = found.tokens_of(row).tolist()
            wanted = [items_of(tokenizer)[item] for item in events] if "{history}" in template else []
            assert [token for token in tokens if token in items_of(tokenizer)] == wanted
            assert tokens.count(tokenizer.eos_token_id) == template_ends


def test_titles_that_are_not_there_or_not_text_are_told_and_kept_tokens_belong_to_them(tmp_path):
    tokenizer = tokenizer_of("own")
    add_item_tokens(tokenizer, [str(number) for number in range(len(TITLES))])
    table = Table.from_rows("rec", [Row("a", [0, 1], 2)])
    arguments = (table, tokenizer, items_of(tokenizer), "{history_titles} next")
    with pytest.raises(ValueError, match="give a title for each of the items"):
        encode_table(*arguments, 40)
    with pytest.raises(ValueError, match="the title '.*' is no Unicode text"):
        encode_table(*arguments, 40, titles=["\ud800", *TITLES[1:]])
    with pytest.raises(ValueError, match="alone fills max_length 2"):
        encode_table(*arguments, 2, titles=TITLES)
    first = encode_once(*arguments, 40, tmp_path, titles=TITLES)
    other = encode_once(*arguments, 40, tmp_path, titles=["red", *TITLES[1:]])
    assert first.folder != other.folder
    assert not np.array_equal(first.tokens, other.tokens)
