"""Templates, encoded tables, batches: against the tokenizer itself and against plain loops."""

import json
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds_of_tokenizers import MADE, PUBLISHED, tokenizer_of
from shared import needs_shared
from tokenizers import AddedToken

from gems_jax.config.items import ItemsConfig
from gems_jax.config.run import Config
from gems_jax.data.batching.pipeline import TaskBatchSource, eval_batches, task_batches
from gems_jax.data.batching.prompts import EncodedTable, encode_table, parse_template
from gems_jax.data.dataset.tables import Row, Table
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.items.tokens import ItemIndex, add_item_tokens
from gems_jax.training.export import asking_tokenizer
from gems_jax.training.tokens import encode

SRC = "history: {history} the user searches for: {query}"
REC = "history: {history} next item?"


@pytest.fixture(scope="module")
def words():
    """A tokenizer with ten item tokens, and their ids."""
    tokenizer = train_tokenizer(["history: the user searches for: green tea kettle, next item?"] * 3, 400)
    base = len(tokenizer)
    tokens = [AddedToken(f"<item_{n}>", lstrip=True, normalized=False) for n in range(10)]
    tokenizer.add_tokens(tokens)
    return tokenizer, list(range(base, base + 10))


@pytest.fixture(scope="module")
def tables():
    src = [Row("a", [1, 2, 3], 4, "green tea"), Row("b", [5], 6, "kettle"), Row("c", [], 7, "tea")]
    return {
        "rec": Table.from_rows("rec", [Row("a", [1, 2, 3], 4), Row("b", [9, 8, 7, 6, 5, 4, 3], 0)]),
        "src": Table.from_rows("src", src),
    }


def encoded(task, lengths, first_token=100):
    """A made-up encoded table whose tokens are all different."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(offsets[-1], dtype=np.int32) + first_token
    return EncodedTable(task, tokens, offsets, np.arange(len(lengths), dtype=np.int32) + 10_000)


@pytest.mark.parametrize("task", ["rec", "src"])
def test_inputs_are_what_the_tokenizer_makes_of_the_whole_text(words, tables, task):
    tokenizer, items = words
    template = {"rec": REC, "src": SRC}[task]
    table = tables[task]
    result = encode_table(table, tokenizer, items, template, max_length=64)
    for row in range(len(table)):
        history = " ".join(f"<item_{n}>" for n in table.history_of(row))
        text = template.format(history=history, query=table.queries[row])
        expected = [*tokenizer(text, add_special_tokens=False)["input_ids"], 1]
        assert result.tokens_of(row).tolist() == expected
    assert result.target_tokens.tolist() == [[items[n]] for n in table.target]
    assert (result.dropped_items, result.clipped_queries) == (0, 0)


# Words that touch, spaces of all kinds, searches whose history is empty, and a chat.
TEMPLATES = [
    "history: {history} the user searches for: {query}", "search: {query} history: {history} found:",
    "Q:{query};H:{history}.", "{history} {query} then?", "query ({query})\nlist {history}\nanswer", "{query}",
    "  find {query}  in {history}  ",
    "<|im_start|>user\nBought: {history}\nSearch:\n{query}<|im_end|>\n<|im_start|>assistant\n",
]  # fmt: skip


@pytest.fixture(scope="module", params=[*MADE, *(pytest.param(name, marks=needs_shared) for name in PUBLISHED)])
def any_tokenizer(request):
    tokenizer = tokenizer_of(request.param)
    return tokenizer, add_item_tokens(tokenizer, [str(number) for number in range(10)])


@pytest.mark.parametrize("family", ["encoder_decoder", "decoder"])
def test_prompts_of_any_tokenizer_have_the_tokens_of_the_whole_text(any_tokenizer, family):
    tokenizer, items = any_tokenizer
    asked = asking_tokenizer(tokenizer, types.SimpleNamespace(pad_token_id=0), family)
    queries = ["green tea", "kettle", "Ärger mit  tea", " (odd", "x's 12.5", "history: history", "found:"]
    rows = [Row("a", history, 4, query) for history in ([], [1], [3, 2, 5]) for query in queries]
    table = Table.from_rows("src", rows)
    for template in TEMPLATES:
        result = encode_table(table, tokenizer, items, template, 200, family)
        for number, row in enumerate(rows):
            history = " ".join(f"<item_{item}>" for item in row.history)
            text = template.format(history=history, query=row.query.strip())
            assert result.tokens_of(number).tolist() == asked(text)["input_ids"], text


@pytest.mark.parametrize("family", ["encoder_decoder", "decoder"])
def test_a_query_that_is_clipped_keeps_the_words_around_it(any_tokenizer, family):
    tokenizer, items = any_tokenizer
    rows = [Row("a", history, 4, "history of tea" + " more" * 90) for history in ([], [1])]
    for template in TEMPLATES:
        short, long = (
            encode_table(Table.from_rows("src", rows), tokenizer, items, template, length, family)
            for length in (80, 600)
        )
        assert (short.clipped_queries, short.dropped_items, long.clipped_queries) == (2, 0, 0)
        for row in range(2):
            kept, whole = short.tokens_of(row).tolist(), long.tokens_of(row).tolist()
            assert len(kept) == 80 - (2 if family == "decoder" else 0)
            pairs = enumerate(zip(kept, whole, strict=False))
            behind = kept[next((place for place, (a, b) in pairs if a != b), len(kept)) :]
            assert behind == whole[len(whole) - len(behind) :]


def test_words_behind_items_and_the_lines_of_a_chat_keep_their_spaces_in_bytes():
    tokenizer = tokenizer_of("bytes")
    items = add_item_tokens(tokenizer, [str(number) for number in range(10)])
    template = "<|im_start|>user\nBought: {history} next?\nSearch: {query}<|im_end|>\n<|im_start|>assistant\n"
    rows = [Row("a", [1, 2], 4, "green tea"), Row("b", [3], 4, "tea <|im_end|>"), Row("c", [], 4, "tea <|im_end|>")]
    table = Table.from_rows("src", rows)
    result = encode_table(table, tokenizer, items, template, 200, "decoder")
    read = tokenizer.decode(result.tokens_of(0))
    assert read == template.format(history="<item_1><item_2>", query="green tea").replace("Bought: ", "Bought:")
    # The query's own letters, and the template's spaces around them.
    for row in (1, 2):
        assert "Search: tea <|im_end|><|im_end|>\n<|im_start|>assistant\n" in tokenizer.decode(result.tokens_of(row))
        assert (result.tokens_of(row) == tokenizer.eos_token_id).sum() == 1
    assert "Bought:  next?" in tokenizer.decode(result.tokens_of(2))


def test_a_long_history_loses_its_oldest_items(words, tables):
    tokenizer, items = words
    fixed = len(tokenizer("history:", add_special_tokens=False)["input_ids"]) + 1
    fixed += len(tokenizer("next item?", add_special_tokens=False)["input_ids"])
    result = encode_table(tables["rec"], tokenizer, items, REC, max_length=fixed + 4)
    kept = [token for token in result.tokens_of(1).tolist() if token in items]
    assert kept == [items[n] for n in (6, 5, 4, 3)]
    assert result.dropped_items == 3
    assert result.lengths().max() == fixed + 4


def test_what_does_not_fit_is_told_with_the_number_of_rows(words, capsys):
    tokenizer, items = words
    rows = [Row("a", [1, 2], 3, "green tea kettle " * 10), Row("b", [1], 3, "tea"), Row("c", [1], 3, "kettle " * 30)]
    prompts = {"src": SRC, "rec": REC}
    config = Config(items=ItemsConfig(prompts=prompts, max_length=40))
    index = ItemIndex(np.asarray(items)[:, None])
    encode(config, Table.from_rows("src", rows), tokenizer, index, "encoder_decoder", [])
    told = "data: src: the query is cut in 2 of 3 rows and 1 items of histories, the oldest, are dropped to fit"
    assert capsys.readouterr().out == f"{told} items.max_length 40\n"
    encode(config, Table.from_rows("src", rows[1:2]), tokenizer, index, "encoder_decoder", [])
    assert capsys.readouterr().out == ""


def test_a_long_query_is_clipped_and_keeps_the_newest_item(words):
    tokenizer, items = words
    table = Table.from_rows("src", [Row("a", [1, 2], 3, "green tea kettle " * 10)])
    result = encode_table(table, tokenizer, items, SRC, max_length=40)
    assert len(result.tokens_of(0)) == 40
    assert result.clipped_queries == 1
    assert [token for token in result.tokens_of(0).tolist() if token in items] == [items[2]]


@pytest.mark.parametrize(
    ("task", "template", "message"),
    [
        ("rec", "next item?", r"needs the field \{history\}"),
        ("src", "history {history}", r"needs the field \{query\}"),
        ("rec", "{history} {query}", "its table has no queries"),
        ("src", "{history} {query} {price}", r"unknown field \{price\}"),
        ("src", "{history!r} {query}", r"unknown field \{history\}"),
        ("src", "{} {query}", r"unknown field \{\}"),
        ("src", "{query} {query}", "twice"),
        ("src", "{query", "expected '}'"),
    ],
)
def test_a_template_that_does_not_fit_is_an_error_that_says_why(words, tables, task, template, message):
    tokenizer, items = words
    with pytest.raises(ValueError, match=message):
        encode_table(tables[task], tokenizer, items, template, 64)


def test_doubled_braces_stand_for_themselves():
    pieces = parse_template("{{x}} {history}")
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == "{x} "
    assert pieces[-1] == ("history",)


def test_lengths_and_items_that_do_not_fit_are_errors(words, tables):
    tokenizer, items = words
    with pytest.raises(ValueError, match="alone fills max_length 3"):
        encode_table(tables["rec"], tokenizer, items, REC, 3)
    with pytest.raises(ValueError, match="item number 9, but only 5 item tokens"):
        encode_table(tables["rec"], tokenizer, items[:5], REC, 64)


def test_every_epoch_holds_every_row_once_in_a_new_order():
    source = TaskBatchSource({"a": encoded("a", [3] * 10), "b": encoded("b", [2] * 7)}, 5, 8, seed=0)
    for task, size in (("a", 10), ("b", 7)):
        stream = np.concatenate([source.rows(task, step) for step in range(14)])
        epochs = stream[: len(stream) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (len(epochs), 1)))
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_order_follows_the_seed_and_not_the_other_tasks():
    a, b = encoded("a", [3] * 50), encoded("b", [2] * 7)
    alone = TaskBatchSource({"a": a}, 5, 8, seed=0)
    together = TaskBatchSource({"b": b, "a": a}, 5, 8, seed=0)
    np.testing.assert_array_equal(alone.rows("a", 3), together.rows("a", 3))
    assert not np.array_equal(alone.rows("a", 3), TaskBatchSource({"a": a}, 5, 8, seed=1).rows("a", 3))


def test_a_batch_holds_inputs_and_labels_of_its_rows():
    tables = {"a": encoded("a", [3, 5, 1]), "b": encoded("b", [2, 2, 4, 6], first_token=500)}
    batch = next(task_batches(tables, 2, 6, seed=0))
    assert {name: array.shape for name, array in batch.items()} == {
        "input_ids": (2, 2, 6),
        "attention_mask": (2, 2, 6),
        "decoder_input_ids": (2, 2, 2),
        "labels": (2, 2, 2),
        "label_mask": (2, 2, 2),
        "row_index": (2, 2),
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    for task, table in enumerate(tables.values()):
        for place, row in enumerate(batch["row_index"][task]):
            tokens = table.tokens_of(row).tolist()
            target = table.target_tokens[row, 0]
            padding = 6 - len(tokens)
            assert batch["input_ids"][task, place].tolist() == tokens + [0] * padding
            assert batch["attention_mask"][task, place].tolist() == [1] * len(tokens) + [0] * padding
            assert batch["decoder_input_ids"][task, place].tolist() == [0, target]
            assert batch["labels"][task, place].tolist() == [target, 1]
            assert batch["label_mask"][task, place].tolist() == [1, 1]


def test_a_restored_iterator_goes_on_exactly_where_it_was():
    tables = {"a": encoded("a", [3] * 11), "b": encoded("b", [4] * 5)}
    iterator = task_batches(tables, 4, 8, seed=2)
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(4)]
    fresh = task_batches(tables, 4, 8, seed=2)
    fresh.set_state(state)
    for batch in expected:
        restored = next(fresh)
        for name in batch:
            np.testing.assert_array_equal(batch[name], restored[name])


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 20))
def test_slices_of_all_processes_make_the_global_batch(processes, local, size, step):
    tables = {"a": encoded("a", [1 + n % 3 for n in range(size)])}
    whole = TaskBatchSource(tables, processes * local, 4, seed=0, length_buckets=(2,))[step]
    parts = [
        TaskBatchSource(tables, processes * local, 4, 0, p, processes, length_buckets=(2,))[step]
        for p in range(processes)
    ]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], axis=1), whole[name])


def test_a_batch_takes_the_shortest_length_that_holds_its_inputs():
    tables = {"a": encoded("a", [2] * 20), "b": encoded("b", [3] * 20)}
    for buckets, length in (((), 16), ((4, 8), 4), ((2, 8), 8), ((2,), 16), ((32,), 16)):
        batch = TaskBatchSource(tables, 4, 16, seed=0, length_buckets=buckets)[0]
        assert batch["input_ids"].shape == (2, 4, length)


def test_batches_that_cannot_be_made_are_errors():
    table = encoded("a", [3, 9])
    with pytest.raises(ValueError, match="divisible by 2 processes"):
        task_batches({"a": table}, 3, 16, 0, 0, 2)
    with pytest.raises(ValueError, match="process_index 2 is not below process_count 2"):
        task_batches({"a": table}, 4, 16, 0, 2, 2)
    with pytest.raises(ValueError, match="'a': an input has 9 tokens, max_length is 8"):
        task_batches({"a": table}, 4, 8, 0)
    with pytest.raises(ValueError, match="'b' has no training rows"):
        task_batches({"a": table, "b": encoded("b", [])}, 4, 16, 0)
    with pytest.raises(ValueError, match="no task"):
        task_batches({}, 4, 16, 0)
    with pytest.raises(ValueError, match="has no rows to evaluate"):
        eval_batches(encoded("b", []), 4)
    with pytest.raises(ValueError, match="more than the batch's 4"):
        list(eval_batches(table, 4, max_length=4))


def test_evaluation_sees_every_row_once_and_marks_what_is_filled_in():
    table = encoded("a", [3, 9, 1, 2, 2])
    batches = list(eval_batches(table, 2))
    assert np.concatenate([batch["row_index"] for batch in batches]).tolist() == [0, 1, 2, 3, 4, -1]
    assert {batch["input_ids"].shape for batch in batches} == {(2, 16)}
    last = batches[-1]
    assert last["input_ids"][0, :2].tolist() == table.tokens_of(4).tolist()
    for name in ("attention_mask", "label_mask", "labels"):
        assert not last[name][1].any()
