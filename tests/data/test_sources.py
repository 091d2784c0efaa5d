"""Published datasets in their raw formats: Qilin, Amazon reviews, and the authors' six tables."""

import collections
import csv
import gzip
import json
import math
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet
from raw_tables import rows_of
from shared import SHARED, needs_shared

from gems_jax.data.dataset import storage
from gems_jax.data.prepare import prepare
from gems_jax.data.sources import amazon_scientific, qilin
from gems_jax.data.sources.amazon import category_query

SCIENTIFIC = SHARED / "data" / "amazon_scientific"
NOTES = 60


def requests(kind, users=5, count=5):
    """Requests of one task in time order, with the columns and types as published.

    Each shows four notes, the first of them twice, and has one click, each fifth has two, one of them repeated.
    """
    rows = []
    search = kind == "search"
    number = float if search else int
    for user in range(users):
        for step in range(count):
            first = (7 * user + 3 * step + 29 * search) % NOTES
            seconds = 1_700_000_000 + 60 * step + user
            details = [
                {"click": number(n == 0 or (n == 1 and step == 2)), "collect": number(0), "comment": number(0),
                 "like": number(0), "note_id": f"67{first + n:022x}", "note_idx": (first + n) % NOTES,
                 "page_time": math.nan if n and search else 3.5, "position": number(n + 1),
                 # Searches have seconds, requests for recommendations milliseconds.
                 **({"search_timestamp": float(seconds)} if search else {"request_timestamp": 1000 * seconds + n}),
                 "share": number(0)}
                for n in (0, 1, 2, 3, 0 if step == 2 else 4)
            ]  # fmt: skip
            row = {
                "recent_clicked_note_idxs": [(first + 40 + n) % NOTES for n in range(3)],
                f"{'search' if search else 'rec'}_result_details_with_idx": details,
                f"{'search' if search else 'request'}_idx": 100 * user + step,
                "session_idx": user,
                "user_idx": user,
                # Of recommendations it is the titles of the history.
                "query": f"question {step}" if search else f"note {first} note {first + 1}",
            }
            rows.append(row | {"query_from_type": 1.0, "dpr_results": [[1.5, 320.25]]} if search else row)
    return rows


def qilin_parts(**kwargs):
    parts = {}
    for kind in ("recommendation", "search"):
        rows = requests(kind, **kwargs)
        parts[f"{kind}_train"], parts[f"{kind}_test"] = rows[::2], rows[1::2]
    parts["notes"] = [
        {"note_title": "" if n % 10 == 9 else f"note {n}", "note_content": f"about   {n}\nand more", "note_type": 1.0,
         "image_num": 3.0, "note_idx": n, "image_path": [f"image/part_{n}.jpg"]}
        for n in range(NOTES)
    ]  # fmt: skip
    return parts


def detail_type(number, time, time_type):
    names = ("click", "collect", "comment", "like", "position", "share")
    fields = dict.fromkeys(names, number) | {"note_id": pa.string(), "note_idx": pa.int64()}
    return pa.list_(pa.struct(sorted((fields | {"page_time": pa.float64(), time: time_type}).items())))


# Of the columns that are read; the others as they come.
PUBLISHED = {
    "recommendation": {"rec_result_details_with_idx": detail_type(pa.int64(), "request_timestamp", pa.int64())},
    "search": {"search_result_details_with_idx": detail_type(pa.float64(), "search_timestamp", pa.float64())},
    "notes": {},
}


def as_published(name, rows):
    types = PUBLISHED[name.split("_")[0]]
    made = pa.Table.from_pylist(rows)
    for column, kind in types.items():
        cells = pa.array([row[column] for row in rows], kind)
        made = made.set_column(made.schema.get_field_index(column), column, cells)
    return made


def write_qilin(folder, parts, form="parquet"):
    for name, rows in parts.items():
        if form == "parquet":
            (folder / name).mkdir(parents=True)
            half = len(rows) // 2
            for part, some in enumerate((rows[:half], rows[half:])):
                parquet.write_table(as_published(name, some), folder / name / f"train-0000{part}-of-00002.parquet")
        else:
            folder.mkdir(exist_ok=True)
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                # As pandas writes object columns: numpy's text for arrays.
                for row in rows:
                    writer.writerow({k: str(np.asarray(v)) if isinstance(v, list) else v for k, v in row.items()})


def load_qilin(folder, **kwargs):
    kwargs = {"num_negatives": 5, "max_bad_fraction": 0.1, "progress": None, "preprocessing": {"core": 1}, **kwargs}
    return prepare("qilin", folder / "out", path=folder, **kwargs)


def test_qilins_parquet_and_csv_files_give_the_same_tables(tmp_path):
    parts = qilin_parts()
    for form in ("parquet", "csv"):
        write_qilin(tmp_path / form, parts, form)
    first, second = (load_qilin(tmp_path / form) for form in ("parquet", "csv"))
    # Files of parquet halves are read in another order of rows than one CSV file: the tables must not show it.
    assert {k: sorted(map(str, v)) for k, v in rows_of(first).items()} == {
        k: sorted(map(str, v)) for k, v in rows_of(second).items()
    }
    assert first.quarantined == []


def test_qilins_requests_become_rows_split_by_task(tmp_path):
    write_qilin(tmp_path, qilin_parts())
    dataset = load_qilin(tmp_path)
    assert dataset.tasks == ("rec", "src")
    found = rows_of(dataset)
    assert len(found["test", "rec"]) == len(found["test", "src"]) == 5
    row = next(row for row in found["test", "src"] if row[0] == "1")
    last = requests("search")[9]
    assert row[2:4] == (str((7 + 12 + 29) % NOTES), "question 4")
    assert row[1] == [str(note) for note in last["recent_clicked_note_idxs"]]
    # The third request's two clicks are a row each.
    assert len([row for row in found["train", "src"] if row[3] == "question 2"]) == 10
    titles = dict(zip(dataset.item_ids(), dataset.titles(), strict=True))
    assert titles["48"] == "note 48"
    assert titles["9"] == "about 9 and more"


def test_a_note_clicked_several_times_in_a_request_is_one_target(tmp_path):
    parts = qilin_parts()
    twice = [d["note_idx"] for d in requests("search")[2]["search_result_details_with_idx"] if d["click"]]
    assert len(twice) == len(set(twice)) + 1
    write_qilin(tmp_path, parts)
    dataset = load_qilin(tmp_path)
    assert dataset.quarantined == []
    taken = [row for rows in rows_of(dataset).values() for row in rows if row[0] == "0" and row[3] == "question 2"]
    assert sorted(row[2] for row in taken) == sorted({str(note) for note in twice})


def test_qilins_times_are_seconds_whatever_the_files_have(tmp_path):
    write_qilin(tmp_path, qilin_parts())
    dataset = load_qilin(tmp_path)
    for table in dataset.tables.values():
        assert ((table.time >= 1_700_000_000) & (table.time < 1_700_000_300)).all()


def test_qilins_files_that_were_read_are_not_read_again(tmp_path, monkeypatch):
    write_qilin(tmp_path, qilin_parts())
    wanted = load_qilin(tmp_path, max_bad_fraction=0.2)
    read = []
    plain = qilin.read_requests

    def failing(path, *arguments):
        read.append(f"{path.parent.name}/{path.name}")
        if len(read) == 6:
            raise OSError("the disk is gone")
        return plain(path, *arguments)

    monkeypatch.setattr(qilin, "read_requests", failing)
    said = []
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(OSError, match="the disk is gone"):
        load_qilin(tmp_path, max_bad_fraction=0.2)
    found = load_qilin(tmp_path, max_bad_fraction=0.2, progress=said.append)
    assert len(read) == 6 + 3
    assert read[5:7] == ["search_train/train-00001-of-00002.parquet"] * 2
    assert "data: file 5 of 8 is read already" in said
    assert rows_of(found) == rows_of(wanted)
    assert found.card == wanted.card


def test_the_authors_steps_are_qilins_defaults(tmp_path):
    parts = qilin_parts()
    browser = [row | {"user_idx": 77} for row in requests("recommendation")[:4]]
    rare = [row | {"user_idx": 78} for kind in ("recommendation",) for row in requests(kind)[:4]]
    parts["recommendation_train"] += browser + rare
    parts["search_train"] += [row | {"user_idx": 78} for row in requests("search")[:2]]
    unclicked = requests("search")[0]
    for detail in unclicked["search_result_details_with_idx"]:
        detail["click"] = 0.0
    parts["search_train"].append(unclicked)
    write_qilin(tmp_path, parts)
    dataset = load_qilin(tmp_path, preprocessing={})
    card = dataset.card
    assert card["steps"][0]["rows"] == {"rec": 25 + 8, "src": 25 + 2}
    core = next(step for step in card["steps"] if step["step"].startswith("core"))
    assert core["step"] == "core 3, 3 rows a task, both tasks: True"
    # Neither who only browses nor who searches twice stays.
    assert not {row[0] for rows in rows_of(dataset).values() for row in rows} & {"77", "78"}
    occurs = collections.Counter(
        item
        for row in requests("search") + requests("recommendation")
        for part in (
            row["recent_clicked_note_idxs"],
            [d["note_idx"] for k, v in row.items() if k.endswith("_idx") and isinstance(v, list) for d in v],
        )
        for item in part
    )
    assert {int(item) for item in dataset.item_ids()} <= {item for item, count in occurs.items() if count >= 3}


def test_qilins_bad_requests_are_quarantined(tmp_path):
    parts = qilin_parts()
    good = requests("search", users=1)[0]
    parts["search_train"] += [good | {"user_idx": 90, "query": " "}, good | {"user_idx": None}]
    write_qilin(tmp_path, parts, "csv")
    row = {"user_idx": 5, "recent_clicked_note_idxs": "[1]", "rec_result_details_with_idx": "[]"}
    bad = [row | {"rec_result_details_with_idx": "[{'note_idx': 1, 'click': exit()}]"}, row]
    bad.append(row | {"recent_clicked_note_idxs": "{"})
    with (tmp_path / "recommendation_train.csv").open("a", newline="") as file:
        csv.DictWriter(file, list(parts["recommendation_train"][0])).writerows(bad)
    dataset = load_qilin(tmp_path, max_bad_fraction=0.2)
    assert dataset.card["quarantined"] == {
        "row: the results cannot be read": 1,
        "row: the history cannot be read as item ids": 1,
        "row: its time is none between 1970 and 2100": 1,
        "row: the query is empty": 1,
        "row: the user is missing": 1,
    }


def test_hostile_requests_of_qilin_cost_themselves_alone(tmp_path):
    parts = qilin_parts()
    parts["search_train"][0]["query"] = 'two\r\n"lines", quoted'
    write_qilin(tmp_path / "good", parts, "csv")
    wanted = load_qilin(tmp_path / "good")
    assert any(row[3] == 'two "lines", quoted' for rows in rows_of(wanted).values() for row in rows)

    def details(note, seconds=1_600_000_000.0, click=1.0):
        return f"[{{'click': {click}, 'note_idx': {note}, 'page_time': nan, 'search_timestamp': {seconds}}}]"

    good = {"user_idx": 90, "query": "words", "recent_clicked_note_idxs": "[1 2]"}
    results = "search_result_details_with_idx"
    bad = {
        "row: its time is none between 1970 and 2100": [good | {results: details(3, s)} for s in (-1.0, 9e18)],
        "row: the query is empty": [good | {"query": "broken \udcff", results: details(3)}],
        "row: the results cannot be read": [
            good | {results: details(3) + "x" * 10_000_000},
            good | {results: details(3).replace("}", "")},
            good | {results: details(3).replace("note_idx", "note\udcff")},
        ],
        "row: the history cannot be read as item ids": [
            good | {"recent_clicked_note_idxs": "[{]", results: details(3)},
        ],
        "target: the item is not in the catalogue": [good | {results: details(777_777)}],
        "target: the target stands in the row's own history": [good | {results: details(2)}],
    }
    write_qilin(tmp_path / "bad", parts, "csv")
    place = tmp_path / "bad" / "search_train.csv"
    with place.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(parts["search_train"][0]))
        writer.writerows(row for rows in bad.values() for row in rows)
        # The first is a duplicate of a good one.
        repeated = {name: str(np.asarray(v)) if isinstance(v, list) else v for name, v in requests("search")[0].items()}
        writer.writerow(repeated | {results: repeated[results].replace("1700000000", "1700000001")})
    found = load_qilin(tmp_path / "bad", max_bad_fraction=0.5)
    counts = {reason: len(rows) for reason, rows in bad.items()}
    assert found.card["quarantined"] == counts | {"target: the user took the item before in this task": 1}
    assert rows_of(found) == rows_of(wanted)
    assert (tmp_path / "bad" / "out" / "quarantine.jsonl").stat().st_size < 20_000


@pytest.mark.parametrize("missing", ["search_test", "notes"])
def test_a_missing_part_of_qilin_says_what_to_fetch_from_where_to_where(tmp_path, missing):
    parts = qilin_parts()
    del parts[missing]
    write_qilin(tmp_path, parts)
    with pytest.raises(FileNotFoundError) as error:
        load_qilin(tmp_path)
    for part in (f"has no {missing}", "huggingface.co/datasets/THUIR/Qilin", "data.path", str(tmp_path)):
        assert part in str(error.value)


def test_prepared_tables_are_a_tensorflow_dataset_in_array_records(tmp_path):
    write_qilin(tmp_path, qilin_parts())
    dataset = load_qilin(tmp_path)
    builder = tfds.builder_from_directory(tmp_path / "out" / "tables" / "qilin" / "1.0.0", file_format="array_record")
    assert builder.name == "qilin"
    record = builder.as_data_source(split="test_src")[0]
    np.testing.assert_array_equal(record["target"], dataset.table("test", "src").target)
    np.testing.assert_array_equal(record["time"], dataset.table("test", "src").time)
    stored = storage.load(tmp_path / "out")
    assert rows_of(stored) == rows_of(dataset)
    for key, table in dataset.tables.items():
        np.testing.assert_array_equal(stored.tables[key].time, table.time)


def write_amazon(folder, year=2018, category="Tools", copies=1):
    folder.mkdir(exist_ok=True)
    reviews = [
        {"reviewerID": f"U{user}", "asin": f"A{(2 * user + step) % 12}", "unixReviewTime": 86_400 * (15_000 + step),
         "overall": 5.0}
        for user in range(8)
        for step in range(6)
    ][::-1]  # fmt: skip
    items = []
    for n in range(12):
        path = ["Tools &amp; Home", f"Power Tools {n % 2}", "Drills and Tools"]
        place = {"category": path} if year == 2018 else {"categories": [["Sale"], path]}
        items.append({"asin": f"A{n}", "title": f"drill &amp; bit {n}", "brand": "Acme", **place})
    items.append({"asin": "A99", "title": "never bought", **place})
    name = f"{category}_5.json.gz" if year == 2018 else f"reviews_{category}_5.json.gz"
    write = json.dumps if year == 2018 else repr
    (folder / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in reviews * copies).encode()))
    (folder / f"meta_{category}.json.gz").write_bytes(
        gzip.compress("".join(write(row) + "\n" for row in items).encode())
    )
    return folder


def load_amazon(folder, **kwargs):
    kwargs = {"num_negatives": 2, "progress": None, "preprocessing": {"core": 2}, **kwargs}
    return prepare("amazon", folder / "out", path=folder, **kwargs)


@pytest.mark.parametrize("year", [2014, 2018])
def test_amazon_reviews_of_either_year_become_the_same_tables(tmp_path, year):
    dataset = load_amazon(write_amazon(tmp_path / "raw", year))
    found = rows_of(dataset)
    test = {row[0]: row for row in found["test", "src"]}["U1"]
    assert test[1:4] == (["A2", "A3", "A4", "A5", "A6"], "A7", "power 1 drills tools")
    assert {row[0]: row for row in found["valid", "rec"]}["U1"][1:4] == (["A2", "A3", "A4", "A5"], "A6", "")
    assert len(found["train", "rec"]) == 8 * 3
    item = next(item for item in dataset.items if item.item_id == "A7")
    assert (item.title, item.text) == ("drill & bit 7", "Acme")
    assert "A99" not in dataset.item_ids()
    assert dataset.card["splits"] == "leave one out"


def test_amazon_reviews_that_stand_there_twice_count_once_and_later_ones_of_the_item_are_bad(tmp_path):
    folder = write_amazon(tmp_path / "raw", copies=2)
    wanted = load_amazon(write_amazon(tmp_path / "once"))
    found = load_amazon(folder)
    assert rows_of(found) == rows_of(wanted)
    assert found.card["copies"] == {"row": 48}
    assert found.card["quarantined"] == {}
    reviews = folder / "Tools_5.json.gz"
    lines = gzip.decompress(reviews.read_bytes()).decode().splitlines()
    later = [json.dumps(json.loads(line) | {"unixReviewTime": 86_400 * 16_000}) for line in lines[:48]]
    reviews.write_bytes(gzip.compress("\n".join(lines + later).encode()))
    with pytest.raises(ValueError, match=r"48 of 96 rows of kind 'target'.*preprocessing\.repeats: true keeps them"):
        prepare("amazon", tmp_path / "o", path=folder, num_negatives=2, progress=None, preprocessing={"core": 2})


def write_amazon_2023(folder, ending=".jsonl"):
    """The reviews of 2018 in the form of 2023: variants of a product, milliseconds, categories as one path."""
    write_amazon(folder)
    reviews = [
        json.loads(line) for line in gzip.decompress((folder / "Tools_5.json.gz").read_bytes()).decode().splitlines()
    ]
    items = [
        json.loads(line) for line in gzip.decompress((folder / "meta_Tools.json.gz").read_bytes()).decode().splitlines()
    ]
    for path in folder.iterdir():
        path.unlink()
    rows = [
        {"rating": 5.0, "images": [{"small": "x.jpg"}], "asin": f"{row['asin']}V{n}", "parent_asin": row["asin"],
         "user_id": row["reviewerID"], "timestamp": 1000 * row["unixReviewTime"], "verified_purchase": True}
        for n, row in enumerate(reviews)
    ]  # fmt: skip
    metas = [
        {"parent_asin": item["asin"], "title": item["title"], "store": item.get("brand"),
         "features": ["steel", "sharp"], "description": [],
         "images": [{"hi_res": None}], "categories": item["category"], "details": {"a": "b"}}
        for item in items
    ]  # fmt: skip
    write_lines(folder / "meta_Tools.jsonl", [*metas, metas[3]])
    if ending == ".csv":
        with (folder / "Tools.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["user_id", "parent_asin", "rating", "timestamp"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_lines(folder / f"Tools{ending}", rows)
    return folder


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("ending", [".jsonl", "_5.json", ".csv"])
def test_amazon_reviews_of_2023_become_the_tables_of_2018(tmp_path, ending):
    wanted = load_amazon(write_amazon(tmp_path / "old"))
    found = load_amazon(write_amazon_2023(tmp_path / "new", ending))
    assert rows_of(found) == rows_of(wanted)
    assert found.card["copies"] == {"item": 1}
    assert found.items[0].text == "Acme steel sharp"
    assert [(item.item_id, item.title) for item in found.items] == [(i.item_id, i.title) for i in wanted.items]


def test_columns_that_no_amazon_reviews_have_do_not_lead_in_a_circle(tmp_path):
    folder = write_amazon_2023(tmp_path / "raw")
    write_lines(folder / "Tools.jsonl", [{"who": "a", "parent_asin": "b", "timestamp": 1}])
    with pytest.raises(
        ValueError, match=r"no column 'user_id' or 'reviewerID'; it has 'who', .*data\.name: table"
    ) as error:
        load_amazon(folder)
    assert "columns (" not in str(error.value)


def test_amazon_items_whose_words_are_no_text_are_bad_items(tmp_path):
    folder = write_amazon(tmp_path / "raw")
    place = folder / "meta_Tools.json.gz"
    lines = gzip.decompress(place.read_bytes()).decode()
    lines = lines.replace("bit 7", "bit \\ud800").replace("Acme", "caf\\udce9", 1)
    place.write_bytes(gzip.compress(lines.encode()))
    dataset = load_amazon(folder, max_bad_fraction=0.5)
    assert dataset.card["quarantined"]["item: its title or text is no Unicode text"] == 2
    assert not {"A0", "A7"} & set(dataset.item_ids())


def test_the_amazon_category_is_found_or_named(tmp_path):
    folder = write_amazon(tmp_path / "raw")
    write_amazon(folder, category="Books")
    with pytest.raises(ValueError, match=r"holds Books, Tools; name one as data\.category"):
        load_amazon(folder)
    load_amazon(folder, category="Books")
    shutil.rmtree(folder / "out")
    for category, name in (("Games", "reviews of Games"), ("Books", r"meta_Books\.json\.gz")):
        if category == "Books":
            (folder / "meta_Books.json.gz").unlink()
        with pytest.raises(FileNotFoundError, match=f"holds no {name}.*jmcauley.*data.path names"):
            load_amazon(folder, category=category)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; fetch"):
        prepare("amazon", tmp_path / "o", path=tmp_path / "nowhere")


@needs_shared
def test_category_queries_are_those_made_of_the_same_paths_elsewhere():
    items = json.loads((SCIENTIFIC / "Scientific.item.json").read_text())
    lines = (SCIENTIFIC / "queries.tsv").read_text().splitlines()[1:]
    expected = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
    assert {key: category_query(item["categories"].split(",")) for key, item in items.items()} == expected


@needs_shared
def test_reviews_in_any_order_give_the_tables_of_the_processed_files(tmp_path):
    items = json.loads((SCIENTIFIC / "Scientific.item.json").read_text())
    users = json.loads((SCIENTIFIC / "Scientific.inter.json").read_text())
    users = {user: users[user] for user in list(users)[:800]}
    reviews = [
        {"reviewerID": user, "asin": str(item), "unixReviewTime": 86_400 * (16_000 + place)}
        for user, events in users.items()
        for place, item in enumerate(events)
    ]
    order = np.random.default_rng(0).permutation(len(reviews))
    (tmp_path / "Scientific_5.json").write_text("".join(json.dumps(reviews[n]) + "\n" for n in order))
    meta = [
        {"asin": key, "title": item["title"], "brand": item["brand"], "category": item["categories"].split(",")}
        for key, item in items.items()
    ]
    (tmp_path / "meta_Scientific.json").write_text("".join(json.dumps(row) + "\n" for row in meta))
    (tmp_path / "p").mkdir()
    for name in ("Scientific.item.json", "queries.tsv"):
        (tmp_path / "p" / name).write_bytes((SCIENTIFIC / name).read_bytes())
    (tmp_path / "p" / "Scientific.inter.json").write_text(json.dumps(users))
    made = prepare(
        "amazon",
        tmp_path / "o",
        path=tmp_path,
        num_negatives=1,
        preprocessing={"core": 0, "max_history": 0},
        progress=None,
    )
    other = amazon_scientific.load(tmp_path / "p", num_negatives=1)
    for key, rows in rows_of(other).items():
        assert sorted(row[:4] for row in rows) == sorted(row[:4] for row in rows_of(made)[key])


def write_released(folder, **changes):
    """Tables as the authors' scripts write them; a test row's targets are a list."""
    folder.mkdir()
    for task, first in (("rec", 0), ("src", 20)):
        for split, place in (("train", 1), ("valid", 3), ("test", 4)):
            rows = {}
            for user in range(4):
                target = first + 5 * user + place
                row = {
                    "user_id": user,
                    "item_list": [str(first + 5 * user + n) for n in range(place)],
                    "target_item": [target] if split == "test" else target,
                    "neg_note_idx": [50, 51, 52],
                    "timestamp": math.nan,
                }
                if task == "src":
                    row["query"] = f"words {user}"
                rows[len(rows)] = row | changes
            (folder / f"{split}_{task}.pkl").write_bytes(pickle.dumps(rows))
    return folder


def test_the_authors_tables_are_imported_with_their_splits_and_negatives(tmp_path):
    folder = write_released(tmp_path / "raw")
    # Items 50 to 52 stand in no other column: only the negatives name them.
    dataset = prepare(
        "released", tmp_path / "o", path=folder, num_negatives=3, preprocessing={"cold_items": True}, progress=None
    )
    assert dataset.card["splits"] == "as given"
    assert rows_of(dataset)["test", "src"][2] == ("2", ["30", "31", "32", "33"], "34", "words 2", ["50", "51", "52"])
    assert rows_of(dataset)["valid", "rec"][0] == ("0", ["0", "1", "2"], "3", "", ["50", "51", "52"])
    assert dataset.items[0].title == dataset.items[0].item_id
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"item_id": n, "title": f"note {n}"}) + "\n" for n in range(60))
    )
    named = prepare(
        "released", tmp_path / "named", path=folder, num_negatives=3, preprocessing={"cold_items": True}, progress=None,
        files={"items": "items.jsonl"},
    )  # fmt: skip
    assert named.items[3].title == "note 3"


def test_leaks_in_the_authors_tables_are_found(tmp_path):
    folder = write_released(tmp_path / "raw", neg_note_idx=[50, 51, 0])
    with pytest.raises(ValueError, match="ranks against item '0', which user '0' took"):
        prepare(
            "released", tmp_path / "o", path=folder, num_negatives=3, preprocessing={"cold_items": True}, progress=None
        )
    options = {"cold_items": True, "on_leak": "remove"}
    dataset = prepare("released", tmp_path / "o", path=folder, num_negatives=3, preprocessing=options, progress=None)
    assert all("0" not in row[4] for row in rows_of(dataset)["test", "rec"] if row[0] == "0")


def test_tables_that_are_no_tables_are_named(tmp_path):
    folder = write_released(tmp_path / "raw")
    path = folder / "test_rec.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"test_rec\.pkl must hold a dictionary of rows"):
        prepare("released", tmp_path / "o", path=folder, progress=None)
    path.write_bytes(pickle.dumps({0: {"user": 1}}))
    with pytest.raises(ValueError, match=r"test_rec\.pkl: rows have no 'user_id', they have 'user'"):
        prepare("released", tmp_path / "o", path=folder, progress=None)
    path.write_bytes(pickle.dumps({0: {"user_id": np.int64(1)}}))
    with pytest.raises(ValueError, match=r"test_rec\.pkl cannot be imported: it names numpy"):
        prepare("released", tmp_path / "o", path=folder, progress=None)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no test_rec\.pkl; make them with the scripts"):
        prepare("released", tmp_path / "o", path=folder, progress=None)
