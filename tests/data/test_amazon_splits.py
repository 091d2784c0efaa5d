"""Amazon Reviews 2023 as its authors split it: rows and histories as they are in the files."""

import gzip
import json

import pytest
from raw_tables import rows_of

from gems_jax.data.prepare import prepare

FIRST = 1_452_647_382_000
# Of ann the last two are held out; bob's last two by time alone; cat is of test alone.
SEQUENCES = {
    "ANN": [("B1", 1), ("B2", 2), ("B3", 3), ("B4", 4)],
    "BOB": [("B2", 1), ("B3", 1), ("B5", 7), ("B6", 8)],
    "CAT": [("B1", 9), ("B4", 9)],
}


def write_amazon_splits(folder, cut=None, histories=True, category="Toys_and_Games", ending=".csv"):
    """By last purchases, or by time with ``cut``, the first times of valid and test, as the authors' scripts go."""
    folder.mkdir(exist_ok=True)
    rows = {"train": [], "valid": [], "test": []}
    for user, events in SEQUENCES.items():
        for place, (item, time) in enumerate(events):
            from_end = len(events) - place
            number = sum(time >= first for first in cut) if cut else {1: 2, 2: 1}.get(from_end, 0)
            history = " ".join(item for item, _ in events[:place])
            row = [user, item, 4.0, FIRST + time, *([history] if histories else [])]
            rows[list(rows)[number]].append(row)
    for split, some in rows.items():
        lines = [["user_id", "parent_asin", "rating", "timestamp", *(["history"] if histories else [])], *some]
        text = "".join(",".join(map(str, line)) + "\n" for line in lines).encode()
        path = folder / f"{category}.{split}{ending}"
        path.write_bytes(gzip.compress(text) if ending.endswith(".gz") else text)
    metas = [
        {"parent_asin": f"B{n}", "title": f"toy {n}", "store": "Acme", "features": [],
         "categories": ["Toys", f"Puzzle {n % 2}"] if n != 3 else []}
        for n in range(8)
    ]  # fmt: skip
    (folder / f"meta_{category}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metas))
    return folder


def rows_from(places):
    return sorted(
        (user, [item for item, _ in SEQUENCES[user][:place]], SEQUENCES[user][place][0]) for user, place in places
    )


def load(name, folder, **kwargs):
    return prepare(name, folder / "out", path=folder, **{"num_negatives": 0, "progress": None} | kwargs)


def found(dataset, split):
    return sorted(row[:3] for row in rows_of(dataset)[split, "rec"])


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_amazons_last_out_splits_stay_row_by_row(tmp_path, ending):
    dataset = load("amazon_splits", write_amazon_splits(tmp_path, ending=ending))
    assert found(dataset, "train") == rows_from([("ANN", 0), ("ANN", 1), ("BOB", 0), ("BOB", 1)])
    assert found(dataset, "valid") == rows_from([("ANN", 2), ("BOB", 2), ("CAT", 0)])
    assert found(dataset, "test") == rows_from([("ANN", 3), ("BOB", 3), ("CAT", 1)])
    # Rows of items that have a category are searches, too, in the same split and with the same history.
    searches = {(row[0], row[2], row[3]) for row in rows_of(dataset)["valid", "src"]}
    assert searches == {("BOB", "B5", "puzzle 1"), ("CAT", "B1", "puzzle 1")}
    assert dataset.item_ids() == [f"B{n}" for n in range(1, 7)]
    assert dataset.card["quarantined"] == {}
    assert dataset.card["splits"] == "as given"


def test_amazons_splits_by_time_keep_what_a_row_of_test_sees_of_test(tmp_path):
    dataset = load("amazon_splits", write_amazon_splits(tmp_path, cut=(4, 7)))
    assert found(dataset, "valid") == rows_from([("ANN", 3)])
    assert found(dataset, "test") == rows_from([("BOB", 2), ("BOB", 3), ("CAT", 0), ("CAT", 1)])
    # B5 before B6 of bob, B1 before B4 of cat, in a row of each task.
    histories = dataset.card["steps"][-1]
    assert histories["events of histories that the row's own split holds out, kept as published"] == 4


def test_amazons_splits_without_histories_have_those_of_the_splits_before(tmp_path):
    dataset = load("amazon_splits", write_amazon_splits(tmp_path, histories=False))
    # Both of cat's are of one time: the files say which came first.
    assert found(dataset, "test") == rows_from([("ANN", 3), ("BOB", 3), ("CAT", 1)])
    assert found(dataset, "train") == rows_from([("ANN", 0), ("ANN", 1), ("BOB", 0), ("BOB", 1)])


def test_amazons_training_rows_that_see_test_are_a_leak(tmp_path):
    folder = write_amazon_splits(tmp_path)
    path = folder / "Toys_and_Games.train.csv"
    path.write_text(path.read_text() + f"ANN,B6,4.0,{FIRST + 6},B1 B2 B4\n")
    with pytest.raises(
        ValueError, match="leaks. train/rec row . of user 'ANN' has in its history the held-out item 'B4'"
    ):
        load("amazon_splits", folder)
    dataset = load("amazon_splits", folder, preprocessing={"on_leak": "remove"})
    assert ("ANN", ["B1", "B2"], "B6") in found(dataset, "train")


def test_missing_files_of_amazons_splits_are_named(tmp_path):
    folder = write_amazon_splits(tmp_path / "raw")
    write_amazon_splits(folder, category="Software")
    with pytest.raises(ValueError, match=r"holds Software, Toys_and_Games; name one as data\.category"):
        load("amazon_splits", folder)
    (folder / "meta_Software.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no meta_Software\.jsonl; fetch <Category>\.train\.csv"):
        load("amazon_splits", folder, category="Software")
    (folder / "Software.valid.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no Software\.valid\.csv; fetch"):
        load("amazon_splits", folder, category="Software")
    with pytest.raises(FileNotFoundError, match=r"holds no <Category>\.train\.csv; fetch"):
        load("amazon_splits", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"but a split; data\.name: amazon_splits reads it"):
        load("amazon", folder)
    # As the authors' scripts write them, without a line of names.
    path = folder / "Toys_and_Games.test.csv"
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(ValueError, match=r"test\.csv has no column 'user_id' .*The first line holds the columns"):
        load("amazon_splits", folder, category="Toys_and_Games")
