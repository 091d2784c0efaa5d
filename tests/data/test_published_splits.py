"""Splits that others publish and compare on: their rows, histories and catalogues as they are in the files."""

import csv
import json

import numpy as np
import pytest
from raw_tables import rows_of
from shared import SHARED, needs_shared

from gems_jax.data.preparation.holdout import Events, leaking_history
from gems_jax.data.prepare import prepare
from gems_jax.data.raw.ragged import Ragged

ITEMS = 12


def write_objects(path, count=ITEMS, **changes):
    """A catalogue as an object of objects; a description is a list as Python writes it, or plain text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {
        str(n): {
            "title": f"Drill &amp; bit {n}",
            "description": f"['It is {n}', \"cord's end\"]" if n % 2 else f"plain {n}",
            "brand": "Acme",
            "categories": "",
        }
        for n in range(count)
    }
    path.write_text(json.dumps(entries | changes, indent=2))


def sliding(user, items, first=1, longest=10):
    """A row for each of a user's items from ``first`` on, with what precedes it."""
    return [(user, items[max(0, place - longest) : place], items[place]) for place in range(first, len(items))]


# Cut by time: ann is done before valid begins, bob has two rows of test and takes item 3 again, cat comes late.
ANN, BOB, CAT = [0, 1, 2, 3], [3, 4, 5, 6, 3, 7, 8], [9, 10, 11]
MINI = {
    "train": sliding("A1", ANN) + sliding("A2", BOB[:4]),
    "valid": sliding("A2", BOB[:5], first=4) + sliding("A3", CAT[:2]),
    "test": sliding("A2", BOB, first=5) + sliding("A3", CAT, first=2),
}


def write_minionerec(folder, rows=MINI, category="Office_Products", **changes):
    write_objects(folder / "index" / f"{category}.item.json", **changes)
    for split, some in rows.items():
        (folder / split).mkdir(exist_ok=True)
        with (folder / split / f"{category}_5_2016-10-2018-11.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid",
                 "item_sid"]
            )  # fmt: skip
            for user, history, item in some:
                titles = [f'Drill, {n} "long"' for n in history]
                writer.writerow([user, titles, f"Drill {item}", history, item, ["<a_1><b_2>"] * len(history), "<a_3>"])
    return folder


def load(name, folder, **kwargs):
    return prepare(name, folder / "out", path=folder, **{"num_negatives": 0, "progress": None} | kwargs)


def published(rows):
    return sorted((user, list(map(str, history)), str(item)) for user, history, item in rows)


def found(dataset, split):
    return sorted(row[:3] for row in rows_of(dataset)[split, "rec"])


def test_minionerecs_rows_stay_row_by_row(tmp_path):
    dataset = load("minionerec", write_minionerec(tmp_path))
    for split, rows in MINI.items():
        assert found(dataset, split) == published(rows)
    assert dataset.tasks == ("rec",)
    assert dataset.card["splits"] == "as given"
    assert dataset.card["quarantined"] == {}
    assert dataset.card["remarks"] == []
    # All items are candidates, those of no row too, in the catalogue's order.
    assert dataset.item_ids() == [str(n) for n in range(ITEMS)]
    assert dataset.items[1].title == "Drill & bit 1"
    assert dataset.items[1].text == "Acme It is 1 cord's end"
    assert dataset.items[2].text == "Acme plain 2"


def test_what_is_odd_in_a_published_split_is_kept_and_counted(tmp_path):
    said = []
    dataset = load("minionerec", write_minionerec(tmp_path), progress=said.append)
    histories = dataset.card["steps"][-1]
    # In bob's last row of test stands the one before; his valid row takes an item of its own history.
    assert histories["events of histories that the row's own split holds out, kept as published"] == 1
    assert histories["targets in their rows' own histories, kept as published"] == 1
    assert any("own split holds out, kept as published 1" in line for line in said)
    # The valid row of cat and three of test have items that no training row names.
    assert dataset.card["item_sets"]["targets never in train"] == {"valid": 1, "test": 3}


@pytest.mark.parametrize(("split", "leaks"), [(0, [True]), (1, [True]), (2, [False])])
def test_only_events_of_the_rows_own_split_are_no_leak_there(split, leaks):
    # Item 1 is held out for test at time 5; another row of the user has it in its history.
    events = Events(
        user=np.array([0, 0]), time=np.array([5.0, 6.0]), split=np.array([2, split]), target=np.array([1, 2]),
        history=Ragged.of([[], [1]]),
    )  # fmt: skip
    assert leaking_history(events, own_split=True).tolist() == leaks
    assert leaking_history(events).tolist() == [True]


def test_minionerecs_files_that_are_not_in_the_order_of_time_are_told_of(tmp_path):
    swapped = {"train": MINI["test"], "valid": MINI["valid"], "test": MINI["train"]}
    said = []
    load("minionerec", write_minionerec(tmp_path, swapped), progress=said.append)
    assert any("histories do not end with the target of the user's row before" in line for line in said)


def test_minionerecs_bad_rows_are_named_with_file_and_row(tmp_path):
    folder = write_minionerec(tmp_path)
    path = folder / "test" / "Office_Products_5_2016-10-2018-11.csv"
    good = path.read_text()
    path.write_text(good + 'A9,[],x,"[1, {",2,[],y\nA9,[],x,[1],77,[],y\n,[],x,[1],2,[],y\nA9,[],x\n')
    with pytest.raises(ValueError, match=r"(?s)rows of kind 'row'.*\.csv: row 4': the history cannot") as error:
        load("minionerec", folder)
    assert "files." not in str(error.value)
    dataset = load("minionerec", folder, max_bad_fraction=0.9)
    assert dataset.card["quarantined"] == {
        "row: the history cannot be read as item ids": 1,
        "row: the user is missing": 1,
        "row: the number of columns is wrong": 1,
        "target: the item is not in the catalogue": 1,
    }
    assert found(dataset, "test") == published(MINI["test"])
    path.write_text(good.replace("history_item_id", "history"))
    with pytest.raises(ValueError, match=r"test/Office.*\.csv has no column 'history_item_id' for history; it has"):
        prepare("minionerec", tmp_path / "other", path=folder, progress=None)


def test_minionerecs_missing_files_and_several_categories_are_named(tmp_path):
    folder = write_minionerec(tmp_path / "raw")
    write_minionerec(folder, category="Industrial_and_Scientific")
    with pytest.raises(
        ValueError, match=r"holds Industrial_and_Scientific, Office_Products; name one as data\.category"
    ):
        load("minionerec", folder)
    assert len(load("minionerec", folder, category="Office_Products").items) == ITEMS
    with pytest.raises(FileNotFoundError, match=r"no Toys\.item\.json; there is Industrial.*github\.com/AkaliKong"):
        prepare("minionerec", tmp_path / "o", path=folder, category="Toys", progress=None)
    table = folder / "valid" / "Office_Products_5_2016-10-2018-11.csv"
    table.rename(table.with_name("Office_Products_8.csv"))
    (folder / "valid" / "Office_Products_9.csv").write_text("")
    with pytest.raises(ValueError, match=r"valid holds Office_Products_8\.csv, Office_Products_9\.csv; leave one"):
        prepare("minionerec", tmp_path / "o", path=folder, category="Office_Products", progress=None)
    for path in (folder / "valid").glob("Office*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"valid holds no Office_Products_\*\.csv; fetch data/Amazon"):
        prepare("minionerec", tmp_path / "o", path=folder, category="Office_Products", progress=None)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; fetch"):
        prepare("minionerec", tmp_path / "o", path=tmp_path / "nowhere", progress=None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"3": ["no object"]}, "it is not an object"),
        ({"3": {"title": " "}}, "it has no title"),
        ({"3": {"title": "caf\udce9"}}, "its title or text is no Unicode text"),
    ],
)
def test_published_items_without_a_usable_title_are_left_out_with_the_reason(tmp_path, changes, reason):
    with pytest.raises(ValueError, match=rf"item\.json: item 3'?: {reason}"):
        load("minionerec", write_minionerec(tmp_path, **changes))
    dataset = load("minionerec", tmp_path, max_bad_fraction=0.5)
    assert dataset.card["quarantined"][f"item: {reason}"] == 1
    assert "3" not in dataset.item_ids()


def test_a_published_catalogue_that_is_cut_off_or_too_deep_is_refused(tmp_path):
    folder = write_minionerec(tmp_path)
    path = folder / "index" / "Office_Products.item.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"item\.json is cut off"):
        load("minionerec", folder)
    path.write_text('{"0": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(ValueError, match=r"item\.json: 1 of 1 rows of kind 'item' cannot be used"):
        load("minionerec", folder)


USERS = {"0": [0, 1, 2, 3, 4], "1": [5, "6", 5, 7], "2": [8, 9], "3": [10]}


def write_collisiongenrec(folder, users=USERS, name="Beauty"):
    write_objects(folder / f"{name}.item.json")
    (folder / f"{name}.inter.json").write_text(json.dumps(users))
    return folder


def test_collisiongenrecs_last_items_are_test_and_those_before_valid(tmp_path):
    dataset = load("collisiongenrec", write_collisiongenrec(tmp_path))
    # As the authors' loader makes them: a row from the second item on, of user 2 the test row alone has a history.
    assert found(dataset, "train") == published([("0", [0], 1), ("0", [0, 1], 2), ("1", [5], 6)])
    assert found(dataset, "valid") == published([("0", [0, 1, 2], 3), ("1", [5, 6], 5)])
    assert found(dataset, "test") == published([("0", [0, 1, 2, 3], 4), ("1", [5, 6, 5], 7), ("2", [8], 9)])
    assert dataset.item_ids() == [str(n) for n in range(ITEMS)]
    assert dataset.card["quarantined"] == {}
    assert dataset.tasks == ("rec",)


def test_collisiongenrecs_histories_keep_the_twenty_newest_items(tmp_path):
    write_collisiongenrec(tmp_path, {"0": list(range(30))})
    write_objects(tmp_path / "Beauty.item.json", 30)
    assert found(load("collisiongenrec", tmp_path), "test") == published([("0", list(range(9, 29)), 29)])


def test_collisiongenrecs_bad_users_and_events_are_named(tmp_path):
    bad = {"8": {"0": 1}, "9": [], "7": [1, 99, None, 2, [3], 4]}
    folder = write_collisiongenrec(tmp_path, USERS | bad)
    with pytest.raises(ValueError, match=r"user 7, item 2 of the list': its item is not in the catalogue \(99\)"):
        load("collisiongenrec", folder)
    dataset = load("collisiongenrec", folder, max_bad_fraction=0.5)
    assert dataset.card["quarantined"] == {
        "user: it is not a list of items": 2,
        "event: its item is not in the catalogue": 3,
    }
    assert [row for row in found(dataset, "test") if row[0] == "7"] == published([("7", [1, 2], 4)])


def test_collisiongenrecs_datasets_are_named_by_their_folders(tmp_path):
    for name in ("Beauty", "Yelp"):
        write_collisiongenrec(tmp_path / name, name=name)
    assert len(load("collisiongenrec", tmp_path, category="Yelp").items) == ITEMS
    with pytest.raises(FileNotFoundError, match=r"holds no <name>\.item\.json; fetch data/<NAME>"):
        prepare("collisiongenrec", tmp_path / "o", path=tmp_path, progress=None)
    (tmp_path / "Yelp" / "Yelp.inter.json").write_text("[]")
    with pytest.raises(ValueError, match=r"Yelp\.inter\.json must hold one JSON object, found list"):
        prepare("collisiongenrec", tmp_path / "o", path=tmp_path / "Yelp", progress=None)
    (tmp_path / "Yelp" / "Yelp.inter.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no Yelp\.inter\.json; fetch"):
        prepare("collisiongenrec", tmp_path / "o", path=tmp_path / "Yelp", progress=None)


@needs_shared
def test_the_published_scientific_dataset_has_the_authors_rows(tmp_path):
    """Against a loop over the file as the authors' loader goes; costs 3 s, and is the one on real files."""
    folder = SHARED / "data" / "amazon_scientific"
    users = json.loads((folder / "Scientific.inter.json").read_text())
    dataset = prepare("collisiongenrec", tmp_path / "o", path=folder, num_negatives=0, progress=None)
    for split, cut in (("valid", 2), ("test", 1)):
        rows = [(user, items[: len(items) - cut][-20:], items[-cut]) for user, items in users.items()]
        assert found(dataset, split) == published(rows)
    train = [
        (user, items[max(0, n - 20) : n], items[n]) for user, items in users.items() for n in range(1, len(items) - 2)
    ]
    assert found(dataset, "train") == published(train)
    assert len(train) == 33_541
