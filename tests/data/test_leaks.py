"""What is held out stays unseen: the checks that fail a preparation, and the steps that keep them quiet."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_tables import catalogue, rows_of, write_rows

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.data.preparation.holdout import Events, leaking_history, leaking_targets
from gems_jax.data.preparation.leaks import check_leaks
from gems_jax.data.prepare import prepare
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.sources.synthetic import marketplace


def dataset(times=None, **tables):
    """Tables named `train_rec` and so on, from rows."""
    made = {}
    for name, rows in tables.items():
        split, task = name.split("_")
        table = Table.from_rows(task, rows)
        if times is not None:
            table = dataclasses.replace(table, time=np.asarray(times[name], np.float64))
        made[split, task] = table
    return Dataset("mine", [Item(f"i{n}", f"thing {n}") for n in range(20)], made)


def clean(**changes):
    tables = {
        "train_rec": [Row("ann", [0], 1), Row("bob", [5], 6)],
        "valid_rec": [Row("ann", [0, 1], 2, negatives=[8, 9])],
        "test_rec": [Row("ann", [0, 1, 2], 3, negatives=[8, 9])],
        "train_src": [Row("ann", [0], 10, "q")],
        "test_src": [Row("ann", [0, 1, 2], 3, "q", [9, 7])],
    }
    return tables | changes


def test_tables_in_time_order_pass_and_say_which_items_the_splits_share():
    assert check_leaks(dataset(**clean())) == {
        "train": 5, "valid": 3, "test": 4, "targets never in train": {"valid": 1, "test": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_rec": [Row("ann", [0], 3)]}, "train/rec row 0 of user 'ann' has as a target the held-out item 'i3'"),
        ({"train_src": [Row("bob", [1], 7, "q"), Row("ann", [], 3, "q")]},
         "train/src row 1 of user 'ann' has as a target"),
        ({"train_rec": [Row("ann", [0, 2], 1)]}, "in its history the held-out item 'i2', a target of valid/rec"),
        ({"train_src": [Row("ann", [3, 0], 10, "q")]}, "train/src row 0 of user 'ann' has in its history the held-out"),
        ({"valid_rec": [Row("ann", [0, 3], 2, negatives=[8, 9])]}, "valid/rec row 0 of user 'ann' has in its history"),
        ({"valid_rec": [Row("ann", [0], 3, negatives=[8, 9])]}, "valid/rec row 0 of user 'ann' has as a target"),
        ({"test_rec": [Row("ann", [0, 3], 3, negatives=[8, 9])]}, "test/rec row 0 of user 'ann' has in its history"),
        ({"test_rec": [Row("ann", [0], 4, negatives=[8, 9])], "test_src": [Row("ann", [4], 3, "q", [9, 7])]},
         "test/src row 0 of user 'ann' has in its history the held-out item 'i4', a target of test/rec"),
        ({"test_rec": [Row("ann", [0], 3, negatives=[8, 10])]},
         "test/rec row 0 ranks against item 'i10', which user 'ann' took"),
        ({"test_rec": [Row("ann", [0], 3, negatives=[3, 8])]}, "ranks against item 'i3', which user 'ann' took"),
        ({"valid_rec": [Row("ann", [0], 2, negatives=[8, 1])]}, "valid/rec row 0 ranks against item 'i1'"),
    ],
)  # fmt: skip
def test_every_kind_of_leak_names_the_row_the_user_and_the_item(change, message):
    with pytest.raises(ValueError, match=message) as error:
        check_leaks(dataset(**clean(**change)))
    assert "on_leak: remove" in str(error.value)


def test_another_users_items_are_no_leak():
    check_leaks(dataset(**clean(train_rec=[Row("bob", [2, 3], 1), Row("ann", [0], 1)])))


def test_targets_that_training_never_shows_must_be_announced():
    with pytest.raises(
        ValueError, match="1 targets of valid never occur in train, the first is item 'i2' of user 'ann'"
    ):
        check_leaks(dataset(**clean()), cold_items=False)
    check_leaks(dataset(**clean(train_rec=[Row("bob", [2, 3], 1), Row("ann", [0], 1)])), cold_items=False)


def repeats(train, train_time, test=(0, 1, 2), **more):
    """Ann's test event is item 3 at time 9."""
    return dataset(
        times={"train_rec": [train_time], "test_rec": [9.0]},
        train_rec=[train],
        test_rec=[Row("ann", test, 3, negatives=[8, 9])],
        **more,
    )


def test_where_items_are_taken_again_times_tell_the_events_apart():
    earlier_purchase = repeats(Row("ann", [0], 3), 5.0)
    check_leaks(earlier_purchase, repeats=True)
    with pytest.raises(ValueError, match="as a target"):
        check_leaks(earlier_purchase)
    seen_before = repeats(Row("ann", [3], 1), 5.0)
    check_leaks(seen_before, repeats=True)
    with pytest.raises(ValueError, match="in its history"):
        check_leaks(seen_before)
    # The test history has the earlier purchase of the item itself.
    check_leaks(repeats(Row("ann", [0], 3), 5.0, test=(0, 3)), repeats=True)
    for leaking in (repeats(Row("ann", [0], 3), 9.0), repeats(Row("ann", [3], 1), 9.5)):
        with pytest.raises(ValueError, match="held-out item 'i3'"):
            check_leaks(leaking, repeats=True)
    with pytest.raises(ValueError, match="needs timestamps"):
        check_leaks(dataset(**clean()), repeats=True)


@st.composite
def events(draw):
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 2), st.integers(0, 4), st.integers(0, 2), st.integers(0, 4),
                st.lists(st.integers(0, 4), max_size=3),
            ),
            max_size=10,
        )
    )  # fmt: skip
    timed = draw(st.booleans())
    user, time, split, target = (np.asarray([row[k] for row in rows], np.int64) for k in range(4))
    history = Ragged.of([row[4] for row in rows])
    return rows, Events(user, time.astype(float) if timed else None, split.astype(np.int8), target, history), timed


@settings(max_examples=200)
@given(events())
def test_leaks_are_those_of_the_definition_row_by_row(made):
    rows, given_events, timed = made
    targets, history = [], []
    for user, time, split, target, seen in rows:
        held = [(t, s, x) for u, t, s, x, _ in rows if u == user and s > 0]
        targets.append(any(s > split and x == target and (t == time or not timed) for t, s, x in held))
        history += [any(s >= split and x == item and (t < time or not timed) for t, s, x in held) for item in seen]
    assert leaking_targets(given_events).tolist() == targets
    assert leaking_history(given_events).tolist() == history


def rows_with_a_leak():
    rows = []
    for user in ("ann", "bob"):
        first = 10 * (user == "bob")
        for split, target in (("train", 1), ("train", 2), ("valid", 3), ("test", 4)):
            rows.append(
                {
                    "user_id": user,
                    "split": split,
                    "history": [f"i{first + n}" for n in range(target)],
                    "target": f"i{first + target}",
                    "negatives": [f"i{20 + n}" for n in range(4)],
                }
            )
    rows[0]["history"] = ["i0", "i4"]
    rows[4]["target"] = "i14"
    rows[3]["negatives"] = ["i20", "i1", "i21", "i22"]
    return rows


def load(folder, **steps):
    write_rows(folder / "rows.jsonl", rows_with_a_leak())
    write_rows(folder / "items.jsonl", catalogue())
    files = {"interactions": "rows.jsonl", "items": "items.jsonl"}
    steps = {"cold_items": True} | steps
    return prepare(
        "table", folder / "out", path=folder, files=files, num_negatives=4, preprocessing=steps, progress=None
    )


def test_a_leak_in_splits_that_came_with_the_data_ends_the_preparation(tmp_path):
    with pytest.raises(ValueError, match="user 'bob' has as a target the held-out item 'i14', a target of test/rec"):
        load(tmp_path)
    assert not (tmp_path / "out").exists()


def test_leaks_are_taken_out_and_counted_where_the_options_say_so(tmp_path):
    found = load(tmp_path, on_leak="remove")
    step = next(step for step in found.card["steps"] if step["step"] == "histories")
    assert step["training targets that are held out"] == 1
    assert step["events of histories that are held out"] == 1
    rows = rows_of(found)
    assert [row[:3] for row in rows["train", "rec"]][0] == ("ann", ["i0"], "i1")
    assert [row[0] for row in rows["train", "rec"]] == ["ann", "ann", "bob"]
    negatives = rows["test", "rec"][0][4]
    assert {"i20", "i21", "i22"} < set(negatives)
    assert len(negatives) == 4
    assert not set(negatives) & {f"i{n}" for n in range(5)}


def test_cold_items_in_given_splits_must_be_announced(tmp_path):
    with pytest.raises(ValueError, match=r"item sets of the splits differ.*cold_items: true"):
        load(tmp_path, on_leak="remove", cold_items=False)


def test_the_marketplace_is_checked_too(tmp_path, monkeypatch):
    def leaky(*args):
        made = marketplace.generate(0, 20, 5)[0]
        table = made.tables["train", "rec"]
        test = made.tables["test", "rec"]
        table.target[0] = test.target[test.user_ids.index(table.user_ids[0])]
        return made

    monkeypatch.setattr(marketplace, "load", leaky)
    with pytest.raises(ValueError, match="marketplace: 1 leaks. train/rec row 0 of user 'user0000'"):
        prepare("marketplace", tmp_path / "out", num_users=20, num_negatives=5, progress=None)
    assert not (tmp_path / "out").exists()
