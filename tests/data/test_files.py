"""Files of rows as people write them: quotation marks, delimiters, JSON arrays, Arrow types, files made to break."""

import csv
import datetime
import decimal
import gzip
import io
import json
import random

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from raw_tables import load, log, ready, rows_of, write_rows

from gems_jax.data.prepare import prepare
from gems_jax.data.raw import json_rows, raw_files
from gems_jax.data.raw.columns import as_text
from gems_jax.data.raw.id_lists import as_lists
from gems_jax.data.raw.options import Reading
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.raw_table import read_batches
from gems_jax.data.raw.times import as_times

ROLES = {"user": "user", "query": "query", "time": "time"}


def read(path, content=None, **options):
    """Rows by number, and the reasons of the rows left out by theirs."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    quarantine = Quarantine(1.0)
    rows = {}
    for batch in read_batches(path, ROLES, ("user",), quarantine, reading=Reading(**options)):
        columns = [as_text(batch.columns[role])[0].to_pylist() for role in ROLES if role in batch.columns]
        rows |= dict(zip(batch.numbers.tolist(), zip(*columns, strict=True), strict=True))
    return rows, {int(row["id"].split()[-1]): row["reason"] for row in quarantine.rows}


def test_columns_are_those_of_pythons_csv_module_wherever_blocks_end(tmp_path, monkeypatch):
    draw = random.Random(0)
    for trial in range(300):
        rows = [
            [
                "u" * draw.randrange(1, 3),
                "x" + "".join(draw.choices(["a", '"', ",", "\n", "\r\n", ";", "é"], k=draw.randrange(7))) + "x",
                "7",
            ]
            for _ in range(draw.randrange(1, 6))
        ]
        text = io.StringIO(newline="")
        quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        writer = csv.writer(text, quoting=quoting, lineterminator=draw.choice(["\n", "\r\n"]))
        writer.writerows([list(ROLES), *rows])
        monkeypatch.setattr(raw_files, "BLOCK_BYTES", draw.choice([3, 17, 64]))
        found = read(tmp_path / f"{trial % 2}.csv", text.getvalue(), quoting="rfc4180")
        assert found == (dict(enumerate(map(tuple, rows), start=1)), {})


HEADER = "user,query,time\nu1,blue shoes,1\nu2,sun hat,2\n"
# The rows behind the header's, and what must be said of them.
SWALLOWED = {
    "a row between": ('u3,"red,3\nu4,green,4\nu5,new",5\nu6,old,6\n', "in line 4 is closed lines later, and line 5"),
    "the next row": ('u3,"red,3\nu4,new hat",4\nu6,old,6\n', "in line 4 is closed lines later, and line 5"),
    "up to another quoted column": ('u3,"red,3\nu4,"new, big",4\n', "opens in line 4 is closed in the middle of a col"),
    "up to the end": ('u3,"red,3\nu4,new,4\n', "opens in line 4 and is never closed"),
    "in a column without a role": ('u3,red,3\n"u4,new,4\nu5",old,5\n', "in line 5 is closed lines later, and line 6"),
}


@pytest.mark.parametrize("rows", SWALLOWED, ids=list(SWALLOWED))
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_quotation_mark_that_swallows_rows_is_found_anywhere(tmp_path, rows, newline):
    text, message = SWALLOWED[rows]
    text = (HEADER + text + "u7,more,7\n" * (rows != "up to the end")).replace("\n", newline)
    with pytest.raises(ValueError, match=rf"log\.csv: .*{message}.*set files\.quoting to none"):
        read(tmp_path / "log.csv", text)
    # Without quoting every line is a row, or left out and counted.
    found, left_out = read(tmp_path / "log.csv", text, quoting="none")
    assert len(found) + len(left_out) == text.count(newline) - 1
    assert found[3][0] in ("u3", '"u3')


def test_text_of_several_lines_is_no_swallowed_row(tmp_path):
    items = "id,title,text\n" + "".join(
        f'i{n},kettle,"Good, they say.\nBlack, round, {n}\n\nAn ""old"" one."\n' for n in "12"
    )
    assert read(tmp_path / "a.csv", items.replace("id,title,text", "user,query,time"))[0][2][2].endswith('"old" one.')
    # Where rows cannot be told from text the options decide.
    text = HEADER + 'u3,"a\nu4,b,4\nc",3\n'
    with pytest.raises(ValueError, match=r"to have these lines, set files\.quoting to rfc4180"):
        read(tmp_path / "b.csv", text)
    assert read(tmp_path / "b.csv", text, quoting="rfc4180")[0][3] == ("u3", "a\nu4,b,4\nc", "3")


def test_tab_separated_files_have_no_quoting_unless_they_show_it(tmp_path):
    marks = 'user\tquery\ttime\nu1\t"open\t1\nu2\t"red shoes"\t2\nu3\t6" nails\t3\nu4\t"\t4\n'
    rows = {1: ("u1", '"open', "1"), 2: ("u2", '"red shoes"', "2"), 3: ("u3", '6" nails', "3"), 4: ("u4", '"', "4")}
    assert read(tmp_path / "a.tsv", marks) == (rows, {})
    packed = gzip.compress(marks.encode())
    assert read(tmp_path / "a.tsv.gz", packed) == (rows, {})
    assert read(tmp_path / "b.tsv", '"user"\t"query"\t"time"\n"u1"\t"a\tb"\t"1"\n')[0] == {1: ("u1", "a\tb", "1")}
    written = 'user\tquery\ttime\nu1\ta\t1\nu2\t"say ""yes"""\t2\n'
    with pytest.raises(ValueError, match=r"c\.tsv: line 3 has a column in quotation marks with doubled .*rfc4180, or"):
        read(tmp_path / "c.tsv", written)
    assert read(tmp_path / "c.tsv", written, quoting="rfc4180")[0][2] == ("u2", 'say "yes"', "2")
    assert read(tmp_path / "c.tsv", written, quoting="none")[0][2] == ("u2", '"say ""yes"""', "2")
    left_out = read(tmp_path / "d.tsv", 'user\tquery\ttime\nu1\t"a\tb"\t1\nu2\tb\n')[1]
    assert left_out == {
        1: "the number of columns is wrong; it has quotation marks, which files.quoting: rfc4180 would read",
        2: "the number of columns is wrong",
    }


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_gives_the_columns_needed(tmp_path, mark):
    text = HEADER.replace(",", mark) + mark.join(["u3", f"a {'; , |'.replace(mark, '')} b", "3\n"])
    for name in ("a.csv", "a.tsv"):
        assert read(tmp_path / name, text)[0][3] == ("u3", f"a {'; , |'.replace(mark, '')} b", "3")
    assert read(tmp_path / "b.csv", f"sep={mark}\r\n" + text)[0][1] == ("u1", "blue shoes", "1")


def test_a_delimiter_of_ones_own_is_read_and_a_wrong_one_named(tmp_path):
    text = HEADER.replace(",", "~")
    assert read(tmp_path / "a.csv", text, delimiter="~")[0][2] == ("u2", "sun hat", "2")
    assert read(tmp_path / "b.csv", HEADER.replace(",", "\t"), delimiter="tab")[0][2] == ("u2", "sun hat", "2")
    with pytest.raises(ValueError, match=r"has no column 'user' for user; it has 'user~query~time'"):
        read(tmp_path / "a.csv", text)
    for wrong, message in (("::", "one character"), ("", "one character"), ('"', "one character"), ("é", "ASCII")):
        with pytest.raises(ValueError, match=rf"files\.delimiter must be .*{message}"):
            Reading(delimiter=wrong)
    with pytest.raises(ValueError, match=r"files\.quoting must be none or rfc4180, got 'all'"):
        Reading(quoting="all")
    with pytest.raises(ValueError, match=r"files\.max_row_bytes must be a whole number from 1 on, got 0"):
        Reading(max_row_bytes=0)


def test_semicolons_and_json_arrays_prepare_as_commas_and_lines_do(tmp_path):
    plain = rows_of(load(tmp_path / "a", ready(tmp_path / "a")))
    files = ready(tmp_path / "b")
    for name in files.values():
        text = (tmp_path / "b" / name).read_text()
        (tmp_path / "b" / name).write_text("\ufeff" + text.replace(",", ";"), encoding="utf-8")
    assert rows_of(load(tmp_path / "b", files)) == plain
    files = ready(tmp_path / "c", ".jsonl") | {"interactions": "log.json"}
    for indent in (None, 2):
        (tmp_path / "c" / "log.json").write_text(json.dumps(log(), indent=indent))
        assert rows_of(load(tmp_path / "c", files, out=f"out{indent}")) == plain
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "log.csv").write_text((tmp_path / "a" / "interactions.csv").read_text().replace(",", ";"))
    files = {"interactions": "log.csv", "items": None, "delimiter": ","}
    with pytest.raises(ValueError, match="it has 'task;user_id;target;query;timestamp'"):
        load(tmp_path / "d", files)


def test_every_line_of_a_file_is_a_row_or_left_out(tmp_path):
    lines = [f"u{n},a,{n}" for n in range(60)]
    lines[10], lines[20], lines[30], lines[40] = "u10,a", 'u20,"b"c,1', "u30," + "d" * 200 + ",1", "u40,a,b,c"
    for size in (7, 100, 10_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(raw_files, "BLOCK_BYTES", size)
            found, left_out = read(tmp_path / "a.csv", "\n\n".join(["user,query,time", *lines]), max_row_bytes=150)
        assert sorted([*found, *left_out]) == list(range(1, 61))
        assert list(left_out) == [11, 21, 31, 41] or sorted(left_out) == [11, 21, 31, 41]
        assert left_out[21] == "text follows the quotation mark that closes a column; is files.quoting none?"
        assert left_out[31] == "the row is longer than 150 bytes (files.max_row_bytes)"


VALUES = [{"user": f"u{n}", "query": 'a\n"b" é' * n, "more": [{"user": 1}, {"user": 2}]} for n in range(5)]


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("block", [1, 13, 2**20])
def test_arrays_and_objects_over_several_lines_are_read(tmp_path, monkeypatch, indent, block):
    monkeypatch.setattr(json_rows, "_BLOCK", block)
    rows = {n + 1: (row["user"], row["query"].strip() or None) for n, row in enumerate(VALUES)}
    text = json.dumps(VALUES, indent=indent, ensure_ascii=False)
    assert read(tmp_path / "a.json", "\ufeff" + text) == (rows, {})
    assert read(tmp_path / "a.json.gz", gzip.compress(text.encode())) == (rows, {})
    if indent:
        assert read(tmp_path / "b.json", "\n".join(json.dumps(row, indent=indent) for row in VALUES)) == (rows, {})
        bad = text.replace('"u2"', '"u2')
    else:
        bad = json.dumps([{k: row[k] for k in ("user", "query")} for row in VALUES]).replace('"u2"', "u2")
    found, left_out = read(tmp_path / "c.json", bad)
    assert [row[0] for row in found.values()] == ["u0", "u1", "u3", "u4"]
    assert left_out == {3: "it is malformed JSON"}


def test_what_is_no_row_of_an_array_is_left_out_or_an_error(tmp_path):
    text = b'[{"user": "a"}, 5, null, {"user": "\xff"}, {"user": ' + b"[" * 80 + b"]" * 80 + b'}, {"user": "b"}]'
    found, left_out = read(tmp_path / "a.json", text)
    assert found == {1: ("a",), 6: ("b",)}
    assert list(left_out.values()) == ["it is not an object"] * 2 + [
        "it is not UTF-8",
        "it is nested more than 64 deep",
    ]
    with pytest.raises(ValueError, match="is cut off: its JSON array is not closed"):
        read(tmp_path / "a.json", '[{"user": "a"}, {"user": "b"')
    with pytest.raises(ValueError, match="goes on after its JSON array is closed"):
        read(tmp_path / "a.json", '[{"user": "a"}] {"user": "b"}')
    with pytest.raises(ValueError, match="has no column 'user' for user; it has 'data'"):
        read(tmp_path / "a.json", '{\n"data": [{"user": "a"}]\n}')


@pytest.mark.parametrize("depth", [70, 900, 100_000])
def test_cells_nested_without_end_cost_their_rows_only(tmp_path, depth):
    rows = [*log(), log()[0] | {"user_id": "deep"}]
    files = ready(tmp_path, ".jsonl", rows)
    place = tmp_path / files["interactions"]
    place.write_text(place.read_text().replace('"deep"', "[" * depth + "]" * depth))
    dataset = load(tmp_path, files, max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {"row: it is nested more than 64 deep": 1}
    files = ready(tmp_path, ".csv", rows)
    place = tmp_path / files["interactions"]
    place.write_text(place.read_text().replace(",i0,", f",{'{' * depth},", 1))
    dataset = load(tmp_path, files, max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {"row: the target cannot be read as item ids": 1}


TEXT, D = pa.string(), decimal.Decimal
LISTS = {
    "fixed-size list": pa.list_(TEXT, 2), "list view": pa.list_view(TEXT), "large list view": pa.large_list_view(TEXT),
    "large list of large text": pa.large_list(pa.large_string()), "list of text views": pa.list_(pa.string_view()),
    "list of bytes": pa.list_(pa.binary()), "list of dictionaries": pa.list_(pa.dictionary(pa.int8(), TEXT)),
}  # fmt: skip
CELLS = {
    "text view": (["a", None, "b"], pa.string_view()), "large text": (["a", None, "b"], pa.large_string()),
    "bytes": ([b"a", None, b"b"], pa.binary()), "byte view": ([b"a", None, b"b"], pa.binary_view()),
    "bytes of a length": ([b"a", None, b"b"], pa.binary(1)), "large bytes": ([b"a", None, b"b"], pa.large_binary()),
    "dictionary": (["a", None, "b"], pa.dictionary(pa.int32(), TEXT)),
}  # fmt: skip
NUMBERS = {
    "decimal": ([D("12.00"), None, D("1.50")], pa.decimal128(10, 2), ["12", None, "1.5"]),
    "small decimal": ([D(12), None, D(3)], pa.decimal32(5, 0), ["12", None, "3"]),
    "long decimal": ([D("1" * 40 + ".00"), None, D(3)], pa.decimal256(50, 2), ["1" * 40, None, "3"]),
    "half float": ([12.0, None, 1.5], pa.float16(), ["12", None, "1.5"]),
    "dictionary of numbers": ([12, None, 3], pa.int64(), ["12", None, "3"]),
    "unsigned": ([2**64 - 1, None, 3], pa.uint64(), [str(2**64 - 1), None, "3"]),
}


def stored(path, array):
    parquet.write_table(pa.table({"user": array}), path)
    (batch,) = read_batches(path, {"user": "user"}, ("user",), Quarantine())
    return batch.columns["user"]


def test_columns_of_every_arrow_type_hold_what_plain_ones_hold(tmp_path):
    values = [["a", "b"], None, ["b", "c"]]
    for name, kind in LISTS.items():
        given = [v and [part.encode() for part in v] for v in values] if name == "list of bytes" else values
        array = pa.array(given, kind) if "dictionaries" not in name else pa.array(given, pa.list_(TEXT)).cast(kind)
        lists, flat, bad = as_lists(stored(tmp_path / "a.parquet", array))
        assert (lists.lengths.tolist(), flat.to_pylist(), bad.any()) == ([2, 0, 2], ["a", "b", "b", "c"], False), name
    for name, (given, kind) in CELLS.items():
        text, bad = as_text(stored(tmp_path / "a.parquet", pa.array(given, kind)))
        assert (text.to_pylist(), bad.any()) == (["a", None, "b"], False), name
    for name, (given, kind, wanted) in NUMBERS.items():
        array = pa.array(given, kind)
        array = array.dictionary_encode() if name.startswith("dictionary") else array
        text, bad = as_text(stored(tmp_path / "a.parquet", array))
        assert (text.to_pylist(), bad.any()) == (wanted, False), name
        lists = pa.ListArray.from_arrays(
            pa.array([0, 1, 3], pa.int32()), pa.array([given[0], given[2], given[2]], kind)
        )
        assert as_lists(stored(tmp_path / "a.parquet", lists))[1].to_pylist() == [wanted[0], wanted[2], wanted[2]], name


def test_times_of_every_arrow_type_are_seconds(tmp_path):
    moment = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
    for kind in ("s", "ms", "us", "ns"):
        for zone in (None, "Europe/Paris"):
            times, bad = as_times(stored(tmp_path / "a.parquet", pa.array([moment, None], pa.timestamp(kind, zone))))
            assert (times[0], bad.tolist(), np.isnan(times[1])) == (1_700_000_000, [False, False], True)
    half = pa.array([1_700_000_000_000_000_500, 1], pa.timestamp("ns"))
    assert as_times(stored(tmp_path / "a.parquet", half))[0].tolist() == [1_700_000_000.0000005, 1e-9]
    far = pa.array([2**50, 1_700_000_000], pa.timestamp("s"))
    assert as_times(stored(tmp_path / "a.parquet", far))[1].tolist() == [True, False]
    seconds = pa.array([datetime.timedelta(seconds=1_700_000_000)], pa.duration("ms"))
    assert as_times(stored(tmp_path / "a.parquet", seconds))[0].tolist() == [1_700_000_000]
    days = pa.array([datetime.date(2023, 11, 14)], pa.date64())
    assert as_times(stored(tmp_path / "a.parquet", days))[0].tolist() == [1_699_920_000]


def test_compressed_files_that_hold_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "ALWAYS_READ", 2**20)
    row = b"u1,some words,1\n"
    for name, pack in (("a.csv.gz", gzip.compress), ("a.csv.zst", pa.Codec("zstd").compress)):
        if name.endswith("zst"):
            with pa.output_stream(str(tmp_path / name), compression="zstd") as stream:
                stream.write(b"user,query,time\n" + row * 200_000)
        else:
            (tmp_path / name).write_bytes(pack(b"user,query,time\n" + row * 200_000))
        with pytest.raises(
            ValueError, match=rf"{name} has .* bytes and holds .* more than 200 times as many; raise files"
        ):
            for _ in read_batches(tmp_path / name, ROLES, (), Quarantine(), reading=Reading()):
                pass
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        for _ in range(2):
            file.write(b"a" * 2**20)
    with pytest.raises(ValueError, match=r"b\.jsonl\.gz has .* bytes and holds .* more than 200 times as many$"):
        list(read_batches(tmp_path / "b.jsonl.gz", ROLES, (), Quarantine()))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"user,query,time\n") + gzip.compress(row))
    assert read(tmp_path / "c.csv.gz")[0] == {1: ("u1", "some words", "1")}


def test_parquet_files_that_blow_up_are_refused_and_their_long_rows_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "ALWAYS_READ", 2**20)
    zeros = pa.array(np.zeros(1_000_000, np.int8))
    same = pa.DictionaryArray.from_arrays(zeros, pa.array(["a"]))
    cell = pa.DictionaryArray.from_arrays(zeros.slice(0, 200), pa.array(["a" * 100_000]))
    offsets = pa.array([0, 1, 1_000_000], pa.int32())
    for name, column in (("rows", same), ("cell", cell), ("list", pa.ListArray.from_arrays(offsets, same))):
        parquet.write_table(pa.table({"user": column}), tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=rf"{name}\.parquet has .* bytes and holds .* more than 200 times as many"):
            read(tmp_path / f"{name}.parquet")
    found, left_out = read(tmp_path / "list.parquet", max_expansion=10**6, max_row_bytes=10**5)
    assert left_out == {2: "the row is longer than 100,000 bytes (files.max_row_bytes)"}
    assert list(found) == [1]
    few = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), pa.array(["b", "a" * 1_000_000]))
    parquet.write_table(pa.table({"user": few}), tmp_path / "few.parquet")
    found, left_out = read(tmp_path / "few.parquet", max_row_bytes=500_000)
    assert (found, list(left_out)) == ({1: ("b",), 3: ("b",)}, [2])


def test_absolute_names_addresses_and_patterns_are_found(tmp_path):
    plain = rows_of(load(tmp_path / "a", ready(tmp_path / "a")))
    place = tmp_path / "logs of [2024]"
    write_rows(place / "day 1.csv", log()[::2])
    write_rows(place / "day 2.csv", log()[1::2])
    (place / "._day 3.csv").write_bytes(b"\0\0")
    escaped = str(place).replace("[", "[[]")
    address = f"file://{place}".replace(" ", "%20").replace("[", "%5B").replace("]", "%5D")
    for number, name in enumerate((str(place), f"{escaped}/*.csv", address, "../logs of [[]2024]/day*.csv")):
        dataset = load(tmp_path / "a", {"interactions": name, "items": "items.csv"}, out=f"out{number}")
        assert rows_of(dataset) == plain
    files = {"interactions": "day*.csv", "items": f"file://{tmp_path}/a/items.csv"}
    options = {"num_negatives": 3, "progress": None, "files": files}
    assert rows_of(prepare("table", tmp_path / "o", path=address, **options)) == plain
    said = []
    prepare("table", tmp_path / "o", path=address, **(options | {"progress": said.append}))
    assert "is prepared already" in said[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/*.csv", r"/nowhere/\*\.csv does not exist: no file fits the pattern"),
        ("file:///nowhere/a.csv", r"/nowhere/a\.csv does not exist"),
        ("file://data/a.csv", r"names no absolute path on this machine; write it as file:///"),
        ("gs://bucket/a.csv", r"gs://bucket/a\.csv is not on this machine"),
        ("folder", r"folder is a folder without a table; .*it holds notes\.md; name a CSV"),
        ("folder/*", r"notes\.md is none of \.csv"),
        ("book.csv", r"book\.csv is a zip archive \(as Excel workbooks are\); unpack it or save it as CSV"),
        ("wide.csv", r"wide\.csv is UTF-16 text; save it as UTF-8"),
    ],
)
def test_names_that_stand_for_nothing_end_in_one_message(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").write_text("x")
    (tmp_path / "book.csv").write_bytes(b"PK\x03\x04rest")
    (tmp_path / "wide.csv").write_bytes("user_id,target\n".encode("utf-16"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tmp_path, {"interactions": name, "items": None})
