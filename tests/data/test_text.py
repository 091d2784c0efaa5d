"""General text: the tokenizer, the corpora, span corruption."""

import bz2
import gzip
import io
import json
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gems_jax.config.base_model import NullSpaceConfig
from gems_jax.config.data import TextConfig
from gems_jax.config.run import Config
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.raw import raw_rows
from gems_jax.data.text.general_text import read_lines, token_stream
from gems_jax.data.text.small_tokenizer import sentinel_ids, train_tokenizer
from gems_jax.data.text.span_corruption import heldout_batches, num_chunks, span_corruption_batch, span_lengths
from gems_jax.training import stages
from gems_jax.training.pretrain import heldout_text

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


WANTED = ["one", "two", "a </s> \u00e9"]
TABLE = pa.table({"text": ["one\ntwo", "", " a </s> \u00e9 "], "url": ["x", "y", "z"]})
ROWS = TABLE.to_pylist()
PLAIN = "one\r\n\r\n  two \r\na </s> \u00e9".encode()


def in_parquet(table):
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def in_zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


TEXTS = {
    "a.txt": PLAIN,
    "b.txt": b"\xef\xbb\xbf" + PLAIN,
    "old mac.md": PLAIN.replace(b"\r\n", b"\r"),
    "README": PLAIN,
    "a.txt.gz": gzip.compress(b"\xef\xbb\xbf" + PLAIN),
    "a.txt.bz2": bz2.compress(PLAIN),
    "a.zst": in_zstd(PLAIN),
    "a.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "b.jsonl": b"\xef\xbb\xbf" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    "a.json.gz": gzip.compress("\n".join(map(json.dumps, ROWS)).encode()),
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "a.parquet": in_parquet(TABLE),
    "views.parquet": in_parquet(TABLE.set_column(0, "text", TABLE["text"].cast(pa.large_string()))),
    "words.parquet": in_parquet(TABLE.set_column(0, "text", TABLE["text"].dictionary_encode())),
    "a.csv": b'text,url\r\n"one\ntwo",x\r\n,y\r\n a </s> \xc3\xa9 ,z\r\n',
    "a.tsv": b"text\turl\none\tx\ntwo\ty\na </s> \xc3\xa9\tz\n",
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_the_same_text_in_any_file_is_the_same_lines(tmp_path, name):
    (tmp_path / name).write_bytes(TEXTS[name])
    assert read_lines(tmp_path / name) == WANTED


def test_a_folder_a_pattern_and_an_address_stand_for_their_files_in_order(tmp_path):
    folder = tmp_path / "of [2024]"
    folder.mkdir()
    for name in ("b.txt", "a.jsonl", "_SUCCESS", ".a.txt.swp", "notes.pdf"):
        (folder / name).write_bytes(TEXTS.get(name, b"other"))
    (folder / "b.txt").write_text("last")
    pattern = str(folder).replace("[", "[[]")
    address = folder.as_uri()
    for source in (folder, f"{folder}/", f"{pattern}/*.[jt]*", address):
        assert read_lines(source) == [*WANTED, "last"]
    assert read_lines(f"{address}/b.txt") == ["last"]


def test_another_field_holds_the_text_where_it_is_named(tmp_path):
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        (tmp_path / name).write_bytes(TEXTS[name])
        assert read_lines(tmp_path / name, field="url") == ["x", "y", "z"]
        with pytest.raises(ValueError, match=rf"^general text .*{name} has no column 'txt' .*Did you mean 'text'\?"):
            read_lines(tmp_path / name, field="txt")


WRONG = {
    "folder": (None, r"folder is a folder without a text; it holds inner/; name a \.txt, \.jsonl"),
    "*.text": (None, r"\*\.text does not exist: no file fits the pattern"),
    "missing.txt": (None, r"missing\.txt does not exist; name a .*or 'pydoc'"),
    "blank.txt": (b"\n \n", "blank.txt holds no text"),
    "latin.txt": (b"one\ncaf\xe9\n", r"latin\.txt is not UTF-8 text: line 2: .* at byte 4; save text of another"),
    "wide.txt": ("one\n".encode("utf-16"), r"wide\.txt is UTF-16 text; save it as UTF-8"),
    "wide.jsonl": ('{"text": "a"}'.encode("utf-16"), r"wide\.jsonl is UTF-16 text; save it as UTF-8"),
    "wider.txt": ("one\n".encode("utf-16-le"), r"wider\.txt seems to be UTF-16 text, as every other byte is NUL"),
    "tar.gz": (gzip.compress(b"name\0ustar"), r"tar\.gz is not UTF-8 text: line 1: it has a NUL byte"),
    "book.txt": (b"PK\x03\x04", r"book\.txt is a zip archive"),
    "table.txt": (TEXTS["a.parquet"], r"table\.txt is a parquet file; name it \.parquet"),
    "a.parquet.gz": (gzip.compress(TEXTS["a.parquet"]), "is compressed as a whole, by gzip; decompress it"),
    "lines.txt": (TEXTS["a.jsonl"], r"lines\.txt holds JSON objects; name it \.jsonl"),
    "long.txt": (json.dumps([{"text": "a" * 70_000}], indent=1).encode(), r"long\.txt holds JSON objects"),
    "page.txt": (b"\n<!DOCTYPE html>\n<p>one", r"page\.txt is HTML or XML"),
    "cut.txt.gz": (gzip.compress(PLAIN)[:-9], r"cut\.txt\.gz cannot be read .*is it whole"),
    "lists.jsonl": (b'{"text": ["a", "b"]}\n' * 3, r"3 of 3 rows cannot be read as text \(3: its text is a list"),
    "names.json": (b'["a", "b"]', r"1 of 1 rows cannot be read as text \(1: it is not an object"),
    "deep.jsonl": (b'{"text": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", r"1: it is nested more than 64 deep"),
    "bad.csv": (b"text\na\n\xe9\n", r"1 of 2 rows cannot be read as text \(1: it is not UTF-8"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_no_text_is_named_with_what_to_do(tmp_path, name):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    content, message = WRONG[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match="^general text .*" + message):
        read_lines(tmp_path / name)


def test_text_that_only_begins_like_another_format_is_read(tmp_path):
    for text in ('{"quoted} words\nin braces', "[1] a list\nof notes", "{", '"{" opens', "<hr> is a tag"):
        (tmp_path / "a.txt").write_text(text)
        assert read_lines(tmp_path / "a.txt") == text.split("\n")


def test_few_rows_without_text_are_left_out_and_told(tmp_path):
    good = json.dumps({"text": "one"}) + "\n"
    (tmp_path / "a.jsonl").write_text(good * 40 + '{"text": null}\n{"text": "\\ud83d"}\n')
    said = []
    assert read_lines(tmp_path / "a.jsonl", say=said.append) == ["one"] * 40
    assert said == [
        f"text: {tmp_path}/a.jsonl: 2 of 42 rows are left out (1: it has no text, 1: it has lone surrogates, which "
        "are no text)"
    ]


def test_a_file_of_bad_rows_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_rows, "HOPELESS_AFTER", 100)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 60 + "1\n" * 1000)
    with pytest.raises(ValueError, match="more than half of the first 121 rows cannot be used, the last because it is"):
        read_lines(tmp_path / "a.jsonl")


def test_the_splits_of_a_text_are_two():
    with pytest.raises(ValueError, match="'train' or 'heldout'"):
        read_lines("pydoc", "test")


def test_names_of_special_tokens_in_a_text_are_letters(tokenizer):
    tokens = token_stream(["one </s> two <unk>", "<extra_id_0> <pad>"], tokenizer)
    assert tokenizer.decode(tokens.tolist()).split() == ["one", "</s>", "two", "<unk>", "<extra_id_0>", "<pad>"]
    assert not set(tokens.tolist()) & set(tokenizer.all_special_ids)


def test_calibration_and_drift_read_the_field_that_the_configuration_names(tmp_path, tokenizer, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "{}", "body": f"the value of number {n}"}) + "\n" for n in range(20)))
    config = Config(
        text=TextConfig(train=str(path), heldout=str(path), field="body", input_length=16, eval_batch_size=2),
        null_space=NullSpaceConfig(path=str(tmp_path / "null_space"), batch_size=2, batches=16),
    )
    tokens = token_stream([f"the value of number {n}" for n in range(20)], tokenizer)
    wanted = list(LAYOUTS["encoder_decoder"].text_batches(tokens, tokenizer, 2, 16, 16))
    seen = []
    monkeypatch.setattr(stages, "estimate_null_space", lambda model, batches, **_: seen.append(batches) or MagicMock())
    model = type("NoParameters", (nnx.Module,), {"layout": "encoder_decoder"})()
    stages.calibrate(config, model, tokenizer)
    for batches in (heldout_text(tokenizer, config), seen[0]):
        for one, other in zip(batches, wanted, strict=True):
            np.testing.assert_array_equal(one["input_ids"], other["input_ids"])


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
