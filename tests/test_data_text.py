"""General text: the tokenizer, the corpora, span corruption."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gems_jax.data.general_text import read_lines, token_stream
from gems_jax.data.span_corruption import heldout_batches, num_chunks, span_corruption_batch, span_lengths
from gems_jax.data.tokenizer import sentinel_ids, train_tokenizer

SENTINELS = list(range(999, 899, -1))


@pytest.fixture(scope="module")
def heldout():
    return read_lines("pydoc", "heldout")


@pytest.fixture(scope="module")
def tokenizer(heldout):
    return train_tokenizer(heldout, 600, num_sentinels=20)


def restore(inputs, labels):
    """The text an input and its target stand for: every sentinel of the one replaced by its span in the other."""
    spans, current = {}, None
    for token in labels[:-1]:
        if token in SENTINELS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    text = []
    for token in inputs[:-1]:
        text += spans.pop(token) if token in SENTINELS else [token]
    assert not spans
    return text


def test_special_tokens_stand_where_t5_has_them(tokenizer):
    assert len(tokenizer) == 600
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert sentinel_ids(tokenizer) == list(range(599, 579, -1))


def test_the_same_text_gives_the_same_tokenizer(heldout, tokenizer):
    again = train_tokenizer(iter(heldout), 600, num_sentinels=20)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_saved_tokenizer_loads_in_transformers_and_reads_the_same(tokenizer, tmp_path, heldout):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for text in [*heldout[:20], "two  spaces\tand a tab", "<extra_id_3> left"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_known_text_survives_the_way_to_tokens_and_back(tokenizer):
    text = "The class statement returns a value."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_tokenizer_needs_text_and_room():
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(["", " "], 600)
    with pytest.raises(ValueError, match="fewer than 300 pieces"):
        train_tokenizer(["a"], 350)


def test_a_tokenizer_without_sentinels_is_an_error(heldout):
    with pytest.raises(ValueError, match="no sentinel tokens"):
        sentinel_ids(train_tokenizer(heldout, 400, num_sentinels=0))


def test_held_out_paragraphs_never_occur_in_training(heldout):
    training = read_lines("pydoc", "train")
    assert not set(training) & set(heldout)
    assert len(set(training)) == len(training)
    share = sum(map(len, heldout)) / sum(map(len, training + heldout))
    assert 0.05 < share < 0.25


def test_a_text_file_gives_its_lines_and_bad_ones_are_errors(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\n\n  two \n")
    assert read_lines(path) == ["one", "two"]
    with pytest.raises(FileNotFoundError, match=r"missing\.txt does not exist"):
        read_lines(tmp_path / "missing.txt")
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no text"):
        read_lines(path)
    path.write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_lines(path)
    with pytest.raises(ValueError, match="'train' or 'heldout'"):
        read_lines("pydoc", "test")


def test_a_token_stream_is_the_lines_one_after_the_other(tokenizer, heldout):
    lines = heldout[:50]
    expected = [token for line in lines for token in tokenizer(line, add_special_tokens=False)["input_ids"]]
    assert token_stream(lines, tokenizer, batch_lines=7).tolist() == expected
    assert token_stream([], tokenizer).tolist() == []


@settings(max_examples=40)
@given(st.integers(5, 600), st.floats(0.1, 0.4), st.floats(1.0, 6.0))
def test_lengths_add_up_to_exactly_the_asked_input(length, density, mean_span):
    text, noise, spans, target = span_lengths(length, density, mean_span)
    assert text - noise + spans + 1 == length
    assert target == noise + spans + 1
    assert abs(noise / text - density) <= 0.5 / text + 1 / text


def test_lengths_are_those_of_the_t5_recipe():
    # 512 inputs at 15 % and 3 tokens a span: 568 tokens of text and 114 of target.
    assert span_lengths(512) == (568, 85, 28, 114)


def test_every_corrupted_row_stands_for_a_stretch_of_the_text():
    tokens = np.arange(2, 802)
    batch = span_corruption_batch(tokens, 3, 6, 64, seed=1, sentinel_ids=SENTINELS)
    text, noise, spans, target = span_lengths(64)
    assert batch["input_ids"].shape == (6, 64)
    assert batch["labels"].shape == (6, target)
    for row in range(6):
        restored = restore(batch["input_ids"][row].tolist(), batch["labels"][row].tolist())
        assert restored == list(range(restored[0], restored[0] + text))
        used = [token for token in batch["input_ids"][row].tolist() if token in SENTINELS]
        assert used == SENTINELS[:spans]
        assert batch["decoder_input_ids"][row].tolist() == [0, *batch["labels"][row, :-1].tolist()]
        assert batch["input_ids"][row, -1] == batch["labels"][row, -1] == 1
    assert batch["attention_mask"].all()
    assert batch["label_mask"].all()


def test_an_epoch_passes_over_the_text_once_and_the_next_is_shifted():
    tokens = np.arange(2, 850)
    chunks = num_chunks(tokens, 32)
    text = span_lengths(32)[0]

    def epoch(number):
        rows = [
            span_corruption_batch(tokens, number * chunks + n, 1, 32, 0, sentinel_ids=SENTINELS) for n in range(chunks)
        ]
        return [restore(r["input_ids"][0].tolist(), r["labels"][0].tolist())[0] for r in rows]

    first, second = epoch(0), epoch(1)
    assert np.diff(np.sort(first)).tolist() == [text] * (chunks - 1)
    assert first != sorted(first)
    assert first != second


def test_a_batch_is_a_function_of_seed_and_step():
    tokens = np.arange(2, 802)

    def inputs(step, seed):
        return span_corruption_batch(tokens, step, 4, 32, seed, sentinel_ids=SENTINELS)["input_ids"]

    np.testing.assert_array_equal(inputs(5, 0), inputs(5, 0))
    assert not np.array_equal(inputs(5, 0), inputs(6, 0))
    assert not np.array_equal(inputs(5, 0), inputs(5, 1))


def test_slices_of_all_processes_make_the_global_batch():
    tokens = np.arange(2, 802)
    whole = span_corruption_batch(tokens, 0, 4, 32, 0, sentinel_ids=SENTINELS)
    parts = [
        span_corruption_batch(tokens, 0, 4, 32, 0, sentinel_ids=SENTINELS, process_index=p, process_count=2)
        for p in range(2)
    ]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_spans_are_as_dense_and_as_long_as_asked():
    tokens = np.arange(2, 802)
    text, noise, spans, _ = span_lengths(128, 0.3, 5.0)
    batch = span_corruption_batch(tokens, 0, 4, 128, 0, sentinel_ids=SENTINELS, noise_density=0.3, mean_span=5.0)
    removed = [token for token in batch["labels"][0].tolist() if token not in SENTINELS]
    assert len(removed) - 1 == noise == round(0.3 * text)
    assert spans == round(noise / 5.0)


def test_held_out_batches_cover_the_text_once_and_mask_what_is_filled_in():
    tokens = np.arange(2, 402)
    text = span_lengths(32)[0]
    chunks = len(tokens) // text
    batches = list(heldout_batches(tokens, 4, 32, sentinel_ids=SENTINELS))
    masks = np.concatenate([batch["label_mask"][:, 0] for batch in batches])
    assert masks.sum() == chunks
    starts = [
        restore(batch["input_ids"][row].tolist(), batch["labels"][row].tolist())[0]
        for batch in batches
        for row in range(4)
        if batch["label_mask"][row].all()
    ]
    assert starts == [2 + text * n for n in range(chunks)]
    few = list(heldout_batches(tokens, 4, 32, sentinel_ids=SENTINELS, max_batches=1))
    assert len(few) == 1
    assert few[0]["label_mask"].all()


def test_text_and_settings_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="20 tokens of text are too few"):
        span_corruption_batch(np.arange(20), 0, 2, 64, 0, sentinel_ids=SENTINELS)
    with pytest.raises(ValueError, match="20 tokens of text are too few"):
        list(heldout_batches(np.arange(20), 2, 64, sentinel_ids=SENTINELS))
    with pytest.raises(ValueError, match="only 1 sentinels"):
        span_corruption_batch(np.arange(800), 0, 2, 64, 0, sentinel_ids=[9])
    with pytest.raises(ValueError, match="too short for span corruption"):
        span_lengths(4)
    with pytest.raises(ValueError, match="noise_density"):
        span_lengths(64, 1.5)
    with pytest.raises(ValueError, match="divisible by 2 processes"):
        span_corruption_batch(np.arange(800), 0, 3, 64, 0, sentinel_ids=SENTINELS, process_count=2)
