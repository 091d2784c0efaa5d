"""Anyone's logs: one table from CSV, JSON lines and parquet, with names of one's own, and hostile files."""

import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet
from raw_tables import catalogue, load, log, ready, rows_of, write_rows

from gems_jax.data.dataset import storage
from gems_jax.data.preparation.options import Preprocessing, options_of
from gems_jax.data.preparation.other_dataset import differences
from gems_jax.data.prepare import prepare
from gems_jax.data.raw.options import TableFiles

ENDINGS = (".csv", ".jsonl", ".parquet")


def with_histories(users=4):
    """Rows that bring their split, history and negatives."""
    rows = []
    for user in range(users):
        for task in ("rec", "src"):
            # Two users and tasks never share an item.
            first = 8 * (2 * user + (task == "src")) % 64
            for step, split in enumerate(("train", "train", "valid", "test")):
                rows.append(
                    {
                        "task": task,
                        "user_id": f"u{user}",
                        "split": split,
                        "history": [f"i{first + n}" for n in range(step + 1)],
                        "history_task": [task] * (step + 1),
                        "target": f"i{first + step + 1}",
                        "query": "some words" if task == "src" else "",
                        "negatives": [f"i{70 + n}" for n in range(5)],
                    }
                )
    return rows


def recorded(folder, rows, **kwargs):
    write_rows(folder / "interactions.jsonl", rows)
    write_rows(folder / "items.jsonl", catalogue(80))
    files = {"interactions": "interactions.jsonl", "items": "items.jsonl"}
    steps = {"cold_items": True} | kwargs.pop("preprocessing", {})
    return load(folder, files, num_negatives=5, preprocessing=steps, **kwargs)


def test_all_formats_give_the_same_tables(tmp_path):
    found = [rows_of(load(tmp_path / e[1:], ready(tmp_path / e[1:], e))) for e in ENDINGS]
    assert found[0] == found[1] == found[2]
    first = {row[0]: row for row in found[0]["test", "rec"]}["u1"]
    # User 1's events in order are i3, i4, ...; the last search and recommendation are held out, as are those before.
    assert first[1:3] == (["i3", "i4", "i5", "i6", "i7", "i8", "i9", "i10"], "i11")
    src = {row[0]: row for row in found[0]["test", "src"]}["u1"]
    assert src[1:4] == (["i3", "i4", "i5", "i6", "i7", "i8", "i9", "i10"], "i12", "thing 9")
    train = [row for row in found[0]["train", "rec"] if row[0] == "u1"]
    assert [row[1:3] for row in train] == [
        ([], "i3"), (["i3", "i4"], "i5"), (["i3", "i4", "i5", "i6"], "i7"),
    ]  # fmt: skip


def test_gzipped_files_folders_and_patterns_are_found(tmp_path):
    files = ready(tmp_path, ".jsonl")
    rows = (tmp_path / "interactions.jsonl").read_bytes().splitlines(keepends=True)
    plain = rows_of(load(tmp_path, files))
    (tmp_path / "parts").mkdir()
    for part in range(3):
        (tmp_path / "parts" / f"p{part}.jsonl.gz").write_bytes(gzip.compress(b"".join(rows[part::3])))
    for name in ("parts", "parts/p*.jsonl.gz"):
        assert rows_of(load(tmp_path, files | {"interactions": name}, out=name[:5] + name[-2:])) == plain


def test_columns_and_tasks_of_other_names_need_no_code(tmp_path):
    plain = rows_of(load(tmp_path / "a", ready(tmp_path / "a")))
    rows = [
        {"kind": {"rec": "feed", "src": "search"}[row["task"]], "visitor": row["user_id"], "clicked": row["target"],
         "typed": row["query"], "at": row["timestamp"] * 1000}
        for row in log()
    ]  # fmt: skip
    columns = {"task": "kind", "user_id": "visitor", "target": "clicked", "query": "typed", "timestamp": "at"}
    files = ready(tmp_path / "b", rows=rows, columns=columns, tasks={"feed": "rec", "search": "src"})
    assert rows_of(load(tmp_path / "b", files)) == plain


def test_without_tasks_a_row_with_a_query_is_a_search_and_without_titles_ids_are(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "task"} for row in log()]
    files = ready(tmp_path, rows=rows) | {"items": None}
    dataset = load(tmp_path, files)
    assert dataset.tasks == ("rec", "src")
    assert dataset.items[0].title == dataset.items[0].item_id


def test_splits_histories_and_negatives_that_the_rows_bring_are_kept(tmp_path):
    dataset = recorded(tmp_path, with_histories())
    assert dataset.card["splits"] == "as given"
    row = rows_of(dataset)["test", "src"][1]
    assert row == ("u1", ["i24", "i25", "i26", "i27"], "i28", "some words", ["i70", "i71", "i72", "i73", "i74"])
    assert dataset.table("train", "rec").negatives is None


def test_a_file_for_each_split_says_the_split(tmp_path):
    rows = with_histories()
    for split in ("train", "valid", "test"):
        part = [{k: v for k, v in row.items() if k != "split"} for row in rows if row["split"] == split]
        write_rows(tmp_path / f"{split}.parquet", part)
    write_rows(tmp_path / "items.csv", catalogue(80))
    files = {"interactions": {split: f"{split}.parquet" for split in ("train", "valid", "test")}}
    dataset = load(tmp_path, files, num_negatives=5, preprocessing={"cold_items": True})
    (tmp_path / "one").mkdir()
    assert rows_of(dataset) == rows_of(recorded(tmp_path / "one", rows))
    with pytest.raises(ValueError, match="interactions are given for 'dev'; the splits are train"):
        load(tmp_path, {"interactions": {"dev": "train.parquet"}})


def test_several_targets_give_a_row_each_or_the_first(tmp_path):
    rows = [row | {"target": ["i1", "i2"] if row["timestamp"] == 1_700_000_000 else [row["target"]]} for row in log()]
    rows = [row for row in rows if row["user_id"] == "u0"]
    for choice, expected in (("expand", ["i1", "i2"]), ("first", ["i1"])):
        write_rows(tmp_path / "interactions.jsonl", [row for row in rows if row["target"] not in (["i1"], ["i2"])])
        write_rows(tmp_path / "items.jsonl", catalogue())
        files = {"interactions": "interactions.jsonl", "items": "items.jsonl"}
        dataset = load(tmp_path, files, out=choice, preprocessing={"multi_click": choice})
        table = dataset.table("train", "rec")
        ids = dataset.item_ids()
        first = [ids[item] for item in table.target[table.time == 1_700_000_000]]
        assert first == expected


def test_histories_can_be_shortened_and_kept_to_a_task(tmp_path):
    files = ready(tmp_path)
    dataset = load(tmp_path, files, preprocessing={"max_history": 3})
    assert max(np.diff(dataset.table("test", "rec").offsets)) == 3
    dataset = load(tmp_path, files, preprocessing={"history_tasks": {"rec": ["rec"]}, "min_history": 1})
    row = {row[0]: row for row in rows_of(dataset)["test", "rec"]}["u1"]
    assert row[1] == ["i3", "i5", "i7", "i9"]
    assert min(np.diff(dataset.table("train", "rec").offsets)) == 1
    brought = recorded(tmp_path / "b", with_histories(), preprocessing={"history_tasks": {"rec": ["src"]}})
    assert brought.table("test", "rec").history.size == 0
    assert brought.table("test", "src").history.size > 0
    with pytest.raises(ValueError, match="history_tasks names 'ads'"):
        load(tmp_path, files, preprocessing={"history_tasks": {"ads": ["rec"]}})
    untasked = [{k: v for k, v in row.items() if k != "history_task"} for row in with_histories()]
    with pytest.raises(ValueError, match="needs the task of each"):
        recorded(tmp_path / "c", untasked, preprocessing={"history_tasks": {"rec": ["rec"]}})


def test_the_card_has_the_numbers_of_every_step(tmp_path):
    card = load(tmp_path, ready(tmp_path), preprocessing={"core": 2, "min_rows": 3, "both_tasks": True}).card
    assert [step["step"] for step in card["steps"]][:2] == ["read", "usable"]
    assert card["steps"][0] == {"step": "read", "rows": {"rec": 30, "src": 30}, "users": 6, "items": 25}
    assert any(step["step"].startswith("core 2") and step["rounds"] >= 1 for step in card["steps"])
    stored = json.loads((tmp_path / "out" / "card.json").read_text())
    assert stored["steps"] == card["steps"]
    assert stored["item_sets"]["train"] > 0


HOSTILE = [
    ({"user_id": ""}, "the user is missing"),
    ({"target": ""}, "the target is missing"),
    ({"target": "[{'a': "}, "the target cannot be read as item ids"),
    ({"target": "nothing"}, "the item is not in the catalogue"),
    ({"query": "  ", "task": "src"}, "the query is empty"),
    ({"timestamp": -4}, "the timestamp is no time between 1970 and 2100"),
    ({"timestamp": 9e18}, "the timestamp is no time between 1970 and 2100"),
    ({"timestamp": "yesterday"}, "the timestamp is no time between 1970 and 2100"),
    ({"timestamp": None}, "the timestamp is missing"),
    ({"task": None}, "the task is missing"),
]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_each_kind_of_bad_row_is_quarantined_with_its_reason_and_text(tmp_path, ending):
    good = log(users=20)
    bad = [good[-1] | {"user_id": "u77", "timestamp": 1_600_000_000} | change for change, _ in HOSTILE]
    files = ready(tmp_path, ending, good + bad)
    dataset = load(tmp_path, files, max_bad_fraction=0.2)
    counts = dataset.card["quarantined"]
    for reason in {reason for _, reason in HOSTILE}:
        kind = "target" if "catalogue" in reason else "row"
        same = sum(other == reason for _, other in HOSTILE)
        assert counts.pop(f"{kind}: {reason}") == same
    assert not counts
    assert not {row[0] for rows in rows_of(dataset).values() for row in rows} & {"u77", ""}
    assert rows_of(dataset) == rows_of(load(tmp_path / "good", ready(tmp_path / "good", ending, good)))
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert len(lines) == len(HOSTILE)
    line = next(line for line in lines if line["reason"] == "the target is missing")
    assert line["id"] == f"interactions{ending}: row {len(good) + 2}"
    assert "1600000000" in line["detail"]


def test_duplicates_and_targets_in_their_history_are_bad_rows(tmp_path):
    rows = log()
    again = [rows[3] | {"timestamp": 1_700_000_950}, rows[5] | {"timestamp": 1}]
    dataset = load(tmp_path, ready(tmp_path, rows=[*rows, *again]), max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {"target: the user took the item before in this task": 2}
    # The earlier of two stays.
    times = np.concatenate([table.time for table in dataset.tables.values()])
    assert (times == 1).sum() == 1
    rows = with_histories()
    rows[0]["history"] = [*rows[0]["history"], rows[0]["target"]]
    rows[0]["history_task"] = ["rec", "rec"]
    dataset = recorded(tmp_path / "b", rows, max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {"target: the target stands in the row's own history": 1}


def test_unknown_items_in_histories_and_negatives_are_left_out_of_them(tmp_path):
    rows = with_histories()
    wanted = rows_of(recorded(tmp_path / "good", rows))["test", "rec"][0]
    row = next(row for row in rows if row["user_id"] == "u0" and row["split"] == "test" and row["task"] == "rec")
    row["history"], row["history_task"] = ["nothing", *row["history"]], ["rec", *row["history_task"]]
    row["negatives"] = [*row["negatives"], "nothing"]
    dataset = recorded(tmp_path / "bad", rows, max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {"history: the item is not in the catalogue": 1}
    assert rows_of(dataset)["test", "rec"][0] == wanted


def test_taking_an_item_again_is_allowed_where_the_options_say_so(tmp_path):
    rows = log()
    again = [rows[2] | {"timestamp": 1_700_000_950}, rows[2] | {"query": "other words"}]
    dataset = load(tmp_path, ready(tmp_path, rows=rows + again), max_bad_fraction=0.1, preprocessing={"repeats": True})
    assert dataset.card["quarantined"] == {"target: the same event stands there already": 1}
    assert sum(len(table) for table in dataset.tables.values()) == len(rows) + 1


def test_rows_out_of_order_are_sorted_by_time(tmp_path):
    first = load(tmp_path / "a", ready(tmp_path / "a", rows=log()))
    second = load(tmp_path / "b", ready(tmp_path / "b", rows=log()[::-1]))
    a, b = (sorted(map(str, rows_of(dataset)["test", "src"])) for dataset in (first, second))
    assert a == b


def test_broken_utf8_costs_its_row_only(tmp_path):
    for ending in (".csv", ".jsonl"):
        folder = tmp_path / ending[1:]
        files = ready(folder, ending, log())
        place = folder / files["interactions"]
        place.write_bytes(place.read_bytes().replace(b"thing 9", b"thing \xff", 1))
        dataset = load(folder, files, max_bad_fraction=0.1)
        assert sum(dataset.card["quarantined"].values()) == 1
        assert (
            "\\ufffd" in (folder / "out" / "quarantine.jsonl").read_text()
            or "\\\\xff" in (folder / "out" / "quarantine.jsonl").read_text()
        )


def test_newlines_and_quotes_inside_cells_are_text(tmp_path):
    rows = [row | {"query": row["query"] and f'a "b"\r\n{row["query"]}, c'} for row in log()]
    for ending in ENDINGS:
        folder = tmp_path / ending[1:]
        dataset = load(folder, ready(folder, ending, rows))
        assert dataset.table("test", "src").queries[0].startswith('a "b"\r\nthing')


def test_a_cell_of_ten_megabytes_is_read_or_quarantined_short(tmp_path):
    rows = log()
    rows[2] = rows[2] | {"task": "src", "query": "long " * 2_000_000}
    rows.append(rows[0] | {"timestamp": "x" * 10_000_000})
    for ending in (".csv", ".jsonl"):
        folder = tmp_path / ending[1:]
        dataset = load(folder, ready(folder, ending, rows), max_bad_fraction=0.1)
        assert max(len(query) for table in dataset.tables.values() for query in table.queries) == 9_999_999
        assert (folder / "out" / "quarantine.jsonl").stat().st_size < 2000
        assert "(10,000," in (folder / "out" / "quarantine.jsonl").read_text()


def test_rows_of_the_wrong_width_and_malformed_lines_are_quarantined(tmp_path):
    files = ready(tmp_path, ".csv")
    place = tmp_path / "interactions.csv"
    lines = place.read_text().splitlines(keepends=True)
    place.write_text("".join([*lines[:5], "rec,u1\n", *lines[5:], "rec,u1,i1,,1700000000,more\n"]))
    dataset = load(tmp_path, files, max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {"row: the number of columns is wrong": 2}
    assert {row["id"] for row in dataset.quarantined} == {"interactions.csv: row 5", "interactions.csv: row 62"}
    files = ready(tmp_path, ".jsonl")
    with (tmp_path / "interactions.jsonl").open("a") as file:
        file.write('{"user_id": \n[1, 2]\n\n' + "[" * 100_000 + "\n")
    dataset = load(tmp_path, files, max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {
        "row: it is malformed JSON": 1,
        "row: it is not an object": 1,
        "row: it is nested more than 64 deep": 1,
    }


def test_stranger_values_in_json_and_parquet_cost_their_rows_only(tmp_path):
    strange = [
        {"user_id": {"a": 1}}, {"user_id": True}, {"user_id": "q\ud800"}, {"user_id": math.nan}, {"task": ["rec"]},
        {"target": [["i1"]]}, {"target": [None]}, {"target": {"i1": 1}}, {"target": "[i1, 'x"},
        {"query": [1], "task": "src"},
        {"timestamp": 10**400}, {"timestamp": True}, {"timestamp": math.inf},
    ]  # fmt: skip
    rows = [*log(), *(log()[0] | {"user_id": "u8"} | change for change in strange)]
    dataset = load(tmp_path, ready(tmp_path, ".jsonl", rows), max_bad_fraction=0.5)
    assert sum(dataset.card["quarantined"].values()) == len(strange)
    assert sum(len(table) for table in dataset.tables.values()) == len(log())
    table = pa.table(
        {
            "user_id": pa.array([1] * 4 + [2]).dictionary_encode(),
            "target": pa.array([b"a", b"b", b"c", b"d", b"\xff"], pa.binary()).view(pa.string()),
            "history": pa.array([[]] * 5, pa.list_(pa.null())),
        }
    )
    parquet.write_table(table, tmp_path / "strange.parquet")
    files = {"interactions": "strange.parquet", "items": None}
    dataset = load(tmp_path, files, num_negatives=0, max_bad_fraction=0.2)
    assert dataset.card["quarantined"] == {"row: the target cannot be read as item ids": 1}
    assert dataset.item_ids() == ["a", "b", "c", "d"]


def test_lists_may_be_written_in_any_way(tmp_path):
    (tmp_path / "log.csv").write_text(
        'user_id,target,timestamp\nu,"[\'a\', ""b""]",1\nu,c|d;e f,2\nu,[g],3\nu,"[h, i\n j]",4\nu,"[1 2]",5\n'
    )
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{i},{i}\n" for i in "abcdefghij12"))
    dataset = load(tmp_path, {"interactions": "log.csv"}, num_negatives=0, preprocessing={"max_history": 0})
    # The fourth row is valid and so each of its items; the fifth test.
    assert rows_of(dataset)["test", "rec"][0][1] == list("abcdefghij")


def test_a_column_twice_is_an_error(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,target,target\n1,2,3\n")
    with pytest.raises(ValueError, match=r"log\.csv has 2 columns 'target'; rename all but one"):
        load(tmp_path, {"interactions": "log.csv", "items": None})
    (tmp_path / "log.jsonl").write_text("[1]\n{\n")
    with pytest.raises(ValueError, match="2 of 2 rows of kind 'row' cannot be used"):
        load(tmp_path, {"interactions": "log.jsonl", "items": None})


def test_too_many_bad_rows_stop_with_the_first_ten_reasons(tmp_path):
    rows = log() + [log()[0] | {"user_id": "", "target": f"i{n}"} for n in range(14)]
    with pytest.raises(ValueError, match=r"14 of 74 rows of kind 'row' cannot be used, more than the allowed") as error:
        load(tmp_path, ready(tmp_path, rows=rows), max_bad_fraction=0.1)
    assert "of 0.1: 14 times the user is missing (files.missing lists" in str(error.value)
    assert str(error.value).count("': the user is missing") == 10
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "out.quarantine.jsonl"
    assert f"All 14 rows left out, with reasons, are in {kept}" in str(error.value)
    assert {json.loads(line)["reason"] for line in kept.read_text().splitlines()} == {"the user is missing"}
    load(tmp_path, ready(tmp_path))
    assert not kept.exists()


def test_items_without_title_or_twice_are_quarantined(tmp_path):
    files = ready(tmp_path)
    items = [*catalogue(), {"item_id": "i1", "title": "again", "text": ""}, {"item_id": "x", "title": " ", "text": ""}]
    write_rows(tmp_path / "items.csv", items)
    dataset = load(tmp_path, files, max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {
        "item: there is an item of this id already": 1,
        "item: it has no title": 1,
    }
    assert dataset.items[1].title == "thing 1"
    assert dataset.items[1].text == "brand 1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interactions": "nowhere.csv"}, r"nowhere\.csv does not exist"),
        ({"items": "nowhere.csv"}, r"nowhere\.csv does not exist"),
        (
            {"columns": {"user_id": "user"}},
            r"interactions\.csv has no column 'user' for user_id; it has 'task', .*\. Did you mean 'user_id'\? "
            r"Name the right one in files\.columns \(user_id: user_id\)",
        ),
        ({"columns": {"usr": "x"}}, "columns names the unknown role 'usr'; the roles are user_id"),
        ({"item_columns": {"title": "name"}}, r"items\.csv has no column 'name' for title.* in files\.item_columns \("),
        ({"columns": {"query": "qeury"}}, r"interactions\.csv has no column 'qeury' for query.*Did you mean 'query'\?"),
        ({"columns": {"timestamp": "whenn"}}, r"interactions\.csv has no column 'whenn' for timestamp"),
        ({"columns": {"split": "fold"}}, r"interactions\.csv has no column 'fold' for split"),
        ({"item_columns": {"text": "brand"}}, r"items\.csv has no column 'brand' for text"),
        (
            {"columns": {"item_id": "sku"}},
            r"files\.columns names 'item_id', which is a role of files\.item_columns: write files\.item_columns: "
            r"\{item_id: sku\}",
        ),
        ({"item_columns": {"query": "q"}}, r"which is a role of files\.columns: write files\.columns: \{query: q\}"),
    ],
)
def test_files_and_columns_that_are_not_there_are_named(tmp_path, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tmp_path, ready(tmp_path) | change)


@pytest.mark.parametrize("ending", ENDINGS[1:])
def test_a_named_column_must_be_in_one_row_of_one_file_of_json_and_in_every_other_file(tmp_path, ending):
    rows = [{k: v for k, v in row.items() if v is not None} for row in log()] if ending == ".jsonl" else log()
    files = ready(tmp_path, ending, rows, columns={"query": "query"})
    assert load(tmp_path, files).row_counts()["test"] == {"rec": 6, "src": 6}
    with pytest.raises(ValueError, match=rf"interactions\{ending} has no column 'typed' for query"):
        load(tmp_path, files | {"columns": {"query": "typed"}})
    browses = [{k: v for k, v in row.items() if k != "query"} for row in log() if row["task"] == "rec"]
    write_rows(tmp_path / "logs" / f"a{ending}", rows)
    write_rows(tmp_path / "logs" / f"b{ending}", [row | {"user_id": "u9"} for row in browses])
    if ending == ".jsonl":
        dataset = load(tmp_path, files | {"interactions": "logs"}, preprocessing={"repeats": True})
        assert dataset.row_counts()["test"] == {"rec": 7, "src": 6}
    else:
        with pytest.raises(ValueError, match=r"b\.parquet has no column 'query' for query"):
            load(tmp_path, files | {"interactions": "logs"})


def test_files_that_are_cut_off_or_of_another_kind_are_errors(tmp_path):
    files = ready(tmp_path)
    place = tmp_path / "interactions.csv"
    whole = place.read_text()
    place.write_text(whole + 'rec,u1,i1,"an open quotation mark,1700000000\nrec,u1,i2,,1700000000\n')
    with pytest.raises(ValueError, match=r"interactions\.csv"):
        load(tmp_path, files)
    place.write_text(whole + 'rec,u1,i1,,"1700000000\nrec,u1,i2,,1700000000\n')
    with pytest.raises(ValueError, match="quotation mark opens in line 62 and is never closed"):
        load(tmp_path, files, max_bad_fraction=0.5)
    place.write_text("")
    with pytest.raises(ValueError, match="is empty; it needs a header"):
        load(tmp_path, files)
    files = ready(tmp_path, ".parquet")
    place = tmp_path / "interactions.parquet"
    place.write_bytes(place.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"interactions\.parquet cannot be read as parquet"):
        load(tmp_path, files)
    packed = gzip.compress(whole.encode())
    (tmp_path / "log.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"log\.csv\.gz"):
        load(tmp_path, files | {"interactions": "log.csv.gz"})
    (tmp_path / "log.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"is none of \.csv"):
        load(tmp_path, files | {"interactions": "log.xlsx"})


def test_times_for_some_rows_only_are_an_error(tmp_path):
    write_rows(tmp_path / "items.csv", catalogue())
    write_rows(tmp_path / "p" / "a.csv", log())
    write_rows(tmp_path / "p" / "b.csv", [{k: v for k, v in row.items() if k != "timestamp"} for row in log(1)])
    with pytest.raises(ValueError, match="some rows have a timestamp and some have not"):
        load(tmp_path, {"interactions": "p"}, max_bad_fraction=1.0)


def test_options_that_are_misspelt_or_do_not_fit_are_errors(tmp_path):
    with pytest.raises(ValueError, match="files has no field 'iterms'; did you mean 'items'"):
        options_of(TableFiles, {"iterms": "x"}, "files")
    with pytest.raises(ValueError, match=r"preprocessing\.core must be a whole number from 0 on, got -1"):
        Preprocessing(core=-1)
    with pytest.raises(ValueError, match=r"preprocessing\.on_leak must be one of fail, remove"):
        Preprocessing(on_leak="ignore")
    with pytest.raises(ValueError, match=r"data\.preprocessing has no effect on marketplace"):
        prepare("marketplace", tmp_path / "x", preprocessing={"core": 3})
    with pytest.raises(ValueError, match=r"data\.category has no effect on table"):
        load(tmp_path, ready(tmp_path), category="Books")


def test_another_dataset_is_neither_used_nor_replaced(tmp_path):
    files = ready(tmp_path)
    said = []
    load(tmp_path, files)
    load(tmp_path, files, again=True, progress=said.append, max_bad_fraction=0.5)
    assert "is prepared already" in said[0]
    assert len(said) == 1
    before = (tmp_path / "out" / "card.json").read_text()
    changes = [
        ({"preprocessing": {"core": 2}}, r"preprocessing\.core: None there, 2 here"),
        ({"seed": 3}, "seed: 0 there, 3 here"),
        ({"files": files | {"columns": {"query": ""}}}, r"files\.columns\.query: nothing there, '' here"),
        ({"files": files | {"missing": ["x"]}}, r"files\.missing: \['nan',"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=f"out holds another dataset.*{message}.*Name another data.dir"):
            load(tmp_path, change.pop("files", files), again=True, **change)
    with (tmp_path / "interactions.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"the raw file interactions\.csv has changed since.*remove the folder"):
        load(tmp_path, files, again=True)
    with pytest.raises(ValueError, match="name: 'table' there, 'marketplace' here"):
        prepare("marketplace", tmp_path / "out", progress=None)
    assert (tmp_path / "out" / "card.json").read_text() == before


def test_options_that_a_dataset_did_not_know_of_yet_had_their_defaults(tmp_path):
    files = ready(tmp_path)
    load(tmp_path, files)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    for name in ("missing", "separators", "time_format"):
        del card["settings"]["files"][name]
    assert differences(card["settings"], card["settings"]) == []
    said = []
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("interactions.csv", "items.csv"):
        (tmp_path / name).rename(moved / name)
    prepare("table", tmp_path / "out", path=moved, files=files, num_negatives=3, progress=said.append)
    assert "is prepared already" in said[0]


def test_a_dataset_of_an_earlier_format_is_made_anew(tmp_path):
    files = ready(tmp_path)
    load(tmp_path, files)
    card = tmp_path / "out" / "card.json"
    card.write_text(card.read_text().replace(f'"format_version": {storage.FORMAT_VERSION}', '"format_version": 1'))
    said = []
    load(tmp_path, files, again=True, progress=said.append)
    assert "earlier format; making it again" in said[0]
    assert "done in" in said[-1]


def test_the_example_of_the_documentation_works(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for name, content in re.findall(r"`([\w.]+)`:\n\n```(?:csv|json)\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).write_text(content)
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))["data"]
    monkeypatch.chdir(tmp_path)
    out, name, path = config.pop("dir"), config.pop("name"), config.pop("path")
    assert path
    dataset = prepare(name, tmp_path / out, path=tmp_path, progress=None, **config)
    assert dataset.tasks == ("rec", "src")
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(program, "docs/data.md", "exec"), {})
    rows = (tmp_path / "both.csv").read_text().splitlines()
    assert rows[1] == "rec,ann,kettle,2024-05-01T08:00:00,"
    assert rows[-1] == "src,bob,cup,1714640400,"
    assert rows[0].split(",") == ["task", "user_id", "target", "timestamp", "query"]
