"""Files as people bring them: headers, encodings, ids of the catalogue and their spellings, dates, touched files."""

import json
import os
import pickle
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from raw_tables import catalogue, load, log, ready, rows_of, write_rows

from gems_jax.checksums import write_checksums
from gems_jax.data.preparation.negatives import NegativeSampler
from gems_jax.data.raw.id_lists import Division, read_lists
from gems_jax.data.raw.ids import KnownIds
from gems_jax.data.raw.pickle_scan import check_operations
from gems_jax.data.raw.times import read_times
from gems_jax.data.text.general_text import read_lines, shared_text


def csv_of(names, rows=(), mark=","):
    return mark.join(names) + "\n" + "".join(mark.join(map(str, row)) + "\n" for row in rows)


HEADERS = [
    ("a.csv", csv_of(["USER_ID", "target"]), r"Did you mean 'USER_ID'\? Name the right one .*\(user_id: USER_ID\)"),
    ("a.csv", csv_of(["'user_id'", "target"]), r"""\(user_id: "'user_id'"\)"""),
    ("a.csv", csv_of(["u1", "i1"]), r"where it is a row already, write a line of names above it$"),
    ("a.csv", csv_of(["user_id", "target"], mark="~"), r"files\.delimiter says which character is between them"),
    ("a.csv", '{"user_id": 1, "target": 2}\n', r"a\.csv holds JSON objects; name it \.jsonl"),
    ("a.csv", csv_of(["user_id", "target"]).encode("utf-16-le"), r"a\.csv seems to be UTF-16 text"),
    ("a.jsonl", '{"user_id": 1}'.encode("utf-16-be"), r"a\.jsonl seems to be UTF-16 text"),
    ("a.csv", csv_of(["user_id", "target"]).encode("utf-32"), r"a\.csv is UTF-32 text"),
    ("a.csv", csv_of(["user_id", "target", "query", "query"]), r"2 columns 'query'; rename all but one"),
    ("a.csv", "user_id,target\nu1,caf\u00e9\n".encode("latin-1"), r"1 times it is not UTF-8 \(save the file as UTF-8"),
    ("a.csv", 'user_id,target\nu1,"a \\"b\\" c"\n', r"marks are to be doubled .*, not written with a backslash"),
    ("a.csv", "user_id,target\nu1,i1,\n", r"the number of columns is wrong \(each row has as many as the header"),
    ("a.json", '{"data": [{"user_id": 1}]}', r"it has 'data'\. .*Each row is an object whose keys are the columns'"),
    ("a.json", '{"user_id": {"0": 1, "1": 2}, "target": {"0": 1, "1": 2}}', r"one object of whole columns; write an"),
    ("a.json", '[["user_id", "target"]]', r"it is not an object \(a JSON file holds an object a line, or one array"),
]


@pytest.mark.parametrize(("name", "content", "message"), HEADERS)
def test_what_is_wrong_with_a_file_leads_to_its_mend(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        load(tmp_path, {"interactions": name, "items": None})


def test_blanks_and_byte_order_marks_around_names_are_not_part_of_them(tmp_path):
    wanted = rows_of(load(tmp_path, ready(tmp_path)))
    plain = (tmp_path / "interactions.csv").read_text()
    header, rest = plain.split("\n", 1)
    (tmp_path / "interactions.csv").write_text("\ufeff\ufeff " + header.replace(",", " , ") + "\u200b\n" + rest)
    assert rows_of(load(tmp_path, {"interactions": "interactions.csv", "items": "items.csv"})) == wanted
    table = pa.table({f" {name}": [row[name] for row in log()] for name in log()[0]})
    parquet.write_table(table, tmp_path / "log.parquet")
    assert rows_of(load(tmp_path, {"interactions": "log.parquet", "items": "items.csv"})) == wanted
    twice = pa.Table.from_arrays([*table.columns, table.column(3)], [*table.column_names, " query"])
    parquet.write_table(twice, tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="has 2 columns 'query'; rename all but one"):
        load(tmp_path, {"interactions": "log.parquet", "items": "items.csv"})


def renamed(names):
    """A log and a catalogue with other ids of items."""
    name = lambda item: names.get(item, item)  # noqa: E731
    return (
        [row | {"target": name(row["target"])} for row in log()],
        [item | {"item_id": name(item["item_id"])} for item in catalogue()],
    )


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_word_for_nothing_that_the_catalogue_has_is_an_id(tmp_path, ending):
    wanted = rows_of(load(tmp_path, ready(tmp_path)))
    rows, items = renamed({"i3": "NA", "i4": "null"})
    files = ready(tmp_path, ending, rows)
    write_rows(tmp_path / files["items"], items)
    dataset = load(tmp_path, files)
    back = {"NA": "i3", "null": "i4"}
    assert [row[2] for row in wanted["train", "rec"]] == [
        back.get(row[2], row[2]) for row in rows_of(dataset)["train", "rec"]
    ]
    assert any(line.startswith("2 ids of the catalogue are words for nothing") for line in dataset.card["remarks"])
    # Items without an id: the word is what it is taken for elsewhere.
    write_rows(tmp_path / files["items"], [*catalogue(), *({"item_id": "NA", "title": t, "text": ""} for t in "ab")])
    write_rows(tmp_path / "plain.csv", log())
    dataset = load(tmp_path, files | {"interactions": "plain.csv"}, max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {"item: it has no id": 2}
    assert "NA" not in dataset.item_ids()


def test_ids_are_one_however_their_accents_are_written_and_others_that_are_alike_are_said(tmp_path):
    composed = {item["item_id"]: f"caf\u00e9 {item['item_id']}" for item in catalogue()}
    apart = {name: unicodedata.normalize("NFD", other) + "\u200b" for name, other in composed.items()}
    wanted = [row[2] for row in rows_of(load(tmp_path, ready(tmp_path)))["test", "src"]]
    rows = renamed(apart)[0]
    rows = [row | {"user_id": row["user_id"] + "\ufeff" * (n % 3 == 0)} for n, row in enumerate(rows)]
    files = ready(tmp_path, rows=rows)
    write_rows(tmp_path / "items.csv", renamed(composed)[1])
    found = rows_of(load(tmp_path, files))["test", "src"]
    assert [row[2] for row in found] == [composed[name] for name in wanted]
    assert [row[0] for row in found] == [f"u{n}" for n in (5, 4, 3, 2, 1, 0)]

    known = KnownIds(["007", "Ab", "12"])
    assert [known.find(name) for name in ("7", "aB", "12.0")] == [None, None, "12"]
    assert [known.near(name) for name in ("7", "aB", "\uff41b", "8")] == ["007", "Ab", "Ab", None]
    rows = [row | {"target": row["target"].upper(), "user_id": row["user_id"].upper() if n % 2 else row["user_id"]}
            for n, row in enumerate(log())]  # fmt: skip
    said = []
    with pytest.raises(ValueError, match="60 of 60 rows of kind 'target'"):
        load(tmp_path, ready(tmp_path, rows=rows), progress=said.append)
    # Before the error, since they are its cause.
    assert any("which has them in other case or with other leading zeros" in line for line in said)
    assert any("values of user_id differ from another by case or leading zeros alone" in line for line in said)


def test_two_items_that_differ_by_decimals_alone_stay_two(tmp_path):
    rows, items = renamed({"i3": "7", "i4": "7.0", "i5": "8.0"})
    files = ready(tmp_path, rows=rows)
    write_rows(tmp_path / "items.csv", items)
    assert {"7", "7.0", "8"} <= set(load(tmp_path, files).item_ids())


def test_arrays_of_postgres_and_sets_are_lists():
    lists = read_lists(["{a,b}", '{"a b",c}', "{'a', 'b'}", "{'a': 1}"], Division())
    texts = lists.texts.to_pylist()
    assert [[texts[i] for i in lists.indices[row]] for row in range(3)] == [["a", "b"], ["a b", "c"], ["a", "b"]]
    assert lists.bad.tolist() == [False, False, False, True]


def test_an_item_twice_in_a_cell_is_one_event_and_too_few_rows_are_counted_as_rows(tmp_path):
    rows = [row | {"target": [row["target"]] * 2} for row in log()]
    dataset = load(tmp_path, ready(tmp_path, ".jsonl", rows))
    assert rows_of(dataset) == rows_of(load(tmp_path, ready(tmp_path)))
    assert dataset.card["copies"] == {"target": 60}
    # Two rows of two targets each are two to hold out, not four.
    rows = [row | {"target": [row["target"], f"i{29 - n}"]} for n, row in enumerate(log(users=1, events=2)[::-1])]
    with pytest.raises(ValueError, match=r"no user has 3 rows of task 'rec'.* there are 2 by 1 users, at most 2 each"):
        load(tmp_path, ready(tmp_path, ".jsonl", rows))


def test_no_row_that_can_be_used_is_said_with_the_reasons(tmp_path):
    files = ready(tmp_path, rows=[row | {"target": "#" + row["target"]} for row in log()])
    said = []
    with pytest.raises(ValueError, match="no row can be used: 60 times target: the item is not in the catalogue"):
        load(tmp_path, files, max_bad_fraction=1.0, progress=said.append)
    shown = "25 of 25 items are not in the catalogue, whose ids are such as 'i0', 'i1', 'i10'; the first: '#i24'"
    assert f"data: {shown}" in said


AFTERNOON = float(np.datetime64("2023-11-14T22:13:20", "s").astype(np.int64))
TIMES = [
    ("Nov 14, 2023 10:13:20 PM", AFTERNOON),
    ("2023-11-14 10:13:20 PM", AFTERNOON),
    ("Tue Nov 14 2023 22:13:20 GMT+0100 (Central European Standard Time)", AFTERNOON - 3600),
    ("Tue Nov 14 22:13:20 PST 2023", AFTERNOON + 8 * 3600),
    ("14 November 2023", AFTERNOON - 80_000),
    ("1700000000,25", AFTERNOON + 0.25),
]


@pytest.mark.parametrize(("text", "second"), TIMES)
def test_times_of_other_programs_are_read_to_the_second(text, second):
    assert read_times([text, "2023-11-14"]).seconds[0] == second


@pytest.mark.parametrize("text", ["Tue, 14 Nov 2023 22:13:20 CET", "14 Nov 2023 10:13:20 PM", "1,700,000,000"])
def test_times_whose_zone_or_half_of_the_day_is_unknown_are_bad(text):
    assert read_times([text, "2023-11-14"]).bad.tolist() == [True, False]


def test_times_with_and_without_zones_and_dates_of_two_forms_are_told(tmp_path):
    day = lambda n: f"2023-11-{1 + n % 28:02}"  # noqa: E731
    rows = log()[::-1]
    zones = [row | {"timestamp": f"{day(n)}T10:00:00" + "+02:00" * (n % 2)} for n, row in enumerate(rows)]
    said = load(tmp_path, ready(tmp_path, rows=zones)).card["remarks"]
    assert any(line.startswith("30 timestamps say no zone, beside others that do, and were read as") for line in said)
    mixed = [row | {"timestamp": day(n).replace("-", "") if n % 2 else day(n)} for n, row in enumerate(rows)]
    plain = [row | {"timestamp": day(n)} for n, row in enumerate(rows)]
    found, wanted = (load(tmp_path, ready(tmp_path, rows=one)) for one in (mixed, plain))
    assert rows_of(found) == rows_of(wanted)
    assert any("30 timestamps of interactions.csv were read as dates" in line for line in found.card["remarks"])


def test_a_raw_file_that_was_touched_is_the_same_and_one_of_other_content_is_not(tmp_path):
    files = ready(tmp_path)
    load(tmp_path, files)
    said = []
    os.utime(tmp_path / "interactions.csv")
    load(tmp_path, files, again=True, progress=said.append)
    assert "is prepared already" in said[0]
    content = (tmp_path / "interactions.csv").read_bytes()
    (tmp_path / "interactions.csv").write_bytes(content.replace(b"u1", b"u7"))
    with pytest.raises(ValueError, match=r"the raw file interactions\.csv has changed since"):
        load(tmp_path, files, again=True)
    (tmp_path / "interactions.csv").write_bytes(content)
    (tmp_path / "new.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"interactions: .*the raw file new\.jsonl was not there"):
        load(tmp_path, files | {"interactions": "[in]*.[cj]*"}, again=True)


def test_queries_of_tasks_that_have_none_and_tasks_of_no_row_are_said(tmp_path):
    rows = [row | {"task": "search" if row["task"] == "src" else "rec"} for row in log()]
    said = load(tmp_path, ready(tmp_path, rows=rows)).card["remarks"]
    assert said[0].startswith("30 rows of the task 'search' have a query that is not read, because files.query_tasks")
    files = ready(tmp_path, rows=rows, query_tasks=["search"])
    assert load(tmp_path, files).card["remarks"] == []
    said = load(tmp_path, files | {"query_tasks": ["search", "serch"], "tasks": {"x": "src"}}).card["remarks"]
    assert said == [
        f"files.{option} has the task {name!r}, of which there is no row; there are ['rec', 'search']"
        for option, name in (("tasks", "src"), ("query_tasks", "serch"))
    ]


def test_a_dataset_of_a_version_that_drew_otherwise_is_used_and_that_is_said(tmp_path):
    files = ready(tmp_path)
    wanted = rows_of(load(tmp_path, files))
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    del card["content_version"]
    (tmp_path / "out" / "card.json").write_text(json.dumps(card))
    write_checksums(tmp_path / "out")
    said = []
    assert rows_of(load(tmp_path, files, again=True, progress=said.append)) == wanted
    assert "an earlier version prepared" in said[1]
    assert "name another data.dir" in said[1]


def test_few_candidates_are_said_when_the_data_is_prepared(tmp_path):
    said = []
    dataset = load(tmp_path, ready(tmp_path), progress=said.append)
    line = "rec: each row has 4 candidates, so that a random order has hit@5 1.00"
    assert any(line in text for text in said)
    assert dataset.card["few_candidates"][0].startswith(line)
    assert load(tmp_path, ready(tmp_path), num_negatives=0).card["few_candidates"][0].startswith("rec: each row has 30")


def test_an_id_of_any_length_costs_its_own_memory_only():
    ids = ["b", "a" * 2_000_000, *(f"c{n:04}" for n in range(2000))]
    drawn = NegativeSampler(ids, seed=0).draw("test/rec/ann", excluded=[0], count=5)
    # 16 GB as an array of equally long texts.
    assert len(set(drawn.tolist()) - {0}) == 5


def test_folders_with_brackets_are_themselves_in_patterns_of_text(tmp_path):
    place = tmp_path / "run[1]"
    (place / "deep").mkdir(parents=True)
    (place / "a.txt").write_text("one\n\u200b\n")
    (place / "deep" / "b.txt").write_text("two\n")
    assert read_lines(f"{place}/*.txt") == ["one"]
    assert read_lines(f"{place}/**/[ab].txt") == ["one", "two"]


def test_a_heldout_text_that_trains_is_said(tmp_path):
    for name, text in (("train.txt", "one"), ("copy.txt", "one"), ("other.txt", "two")):
        (tmp_path / name).write_text(text)
    train = tmp_path / "train.txt"
    assert shared_text(train, train).startswith("1 of 1 files of text.heldout are in text.train, too")
    assert shared_text(train, f"{tmp_path}/*.txt").startswith("2 of 3 files")
    assert shared_text(train, tmp_path / "other.txt") == shared_text("pydoc", train) == ""
    assert shared_text(tmp_path / "gone.txt", train) == ""


def test_runs_of_numbers_in_a_pickle_hide_nothing(tmp_path):
    path = tmp_path / "rows.pkl"
    shared = (1, 2)
    path.write_bytes(pickle.dumps([[1, 2.5, None, True, 70_000, 300] * 50, [shared] * 16]))
    check_operations(path)
    path.write_bytes(pickle.dumps([[1, 2.5, None, True, 70_000, 300] * 50, [shared, 7] * 18]))
    with pytest.raises(pickle.UnpicklingError, match="refers to earlier tuples or sets more than 16 times"):
        check_operations(path)
