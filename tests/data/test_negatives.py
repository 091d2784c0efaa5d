"""What a held-out search is ranked against, and what its history holds: no answer to the query, and not the answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from raw_tables import catalogue, load, rows_of, write_rows

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.data.preparation.evaluation_negatives import items_by_query
from gems_jax.data.preparation.histories import make_histories
from gems_jax.data.preparation.leaks import check_leaks
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.preparation.splits import Event, leave_one_out
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.quarantine import Quarantine
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.raw.raw_rows import RawRows
from gems_jax.data.sources.qilin import encode_requests
from gems_jax.data.sources.synthetic import marketplace

FILES = {"interactions": "rows.jsonl", "items": "items.jsonl"}


def event(user, item, at, query=None, **more):
    return {"user_id": user, "target": item, "timestamp": 1_700_000_000 + at, "query": query} | more


def searches():
    """Ann's last search, for a red lamp, is held out; she touches i0 to i5, Bob i3, i6 and i7."""
    ann = [event("ann", f"i{n}", n, None if n < 3 else f"thing {n}") for n in range(5)]
    bob = [event("bob", item, n, f"word {n}") for n, item in enumerate(("i3", "i6", "i7"))]
    return [*ann, event("ann", "i5", 9, "red lamp"), *bob]


def write(folder, rows, items=12):
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "items.jsonl", catalogue(items))


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        # Used.
        ([event("eve", "i9", 20, "red lamp")], {}),
        ([event("eve", "i9", 20, " Red  LAMP")], {}),
        # Taken before.
        ([event("bob", "i9", 5, "other"), event("bob", "i9", 20, "red lamp")], {}),
        # Left out as it is read.
        ([event("eve", "i9", 0, "red lamp") | {"timestamp": "yesterday"}], {}),
        ([event(None, "i9", 20, "red lamp")], {}),
        # Left out because its user has too few rows.
        ([event("eve", "i9", 20, "red lamp")], {"min_rows": 2}),
        # One of several.
        ([event("eve", ["i5", "i9"], 20, "red lamp")], {"multi_click": "first"}),
    ],
)
def test_no_negative_is_an_item_that_any_known_search_of_the_query_led_to(tmp_path, more, steps):
    rows = [row | {"target": json.dumps(row["target"])} if isinstance(row["target"], list) else row for row in more]
    write(tmp_path, [*searches(), *rows])
    settings = {"preprocessing": {"cold_items": True} | steps, "max_bad_fraction": 0.5}
    # Of twelve items Ann has touched six, and i9 is another answer.
    found = rows_of(load(tmp_path, FILES, num_negatives=5, **settings))["test", "src"]
    negatives = {row[0]: row[4] for row in found}["ann"]
    assert negatives == ["i10", "i11", "i6", "i7", "i8"]
    with pytest.raises(ValueError, match="test/src/ann/0: 6 negatives are needed, but only 5 of 12"):
        load(tmp_path, FILES, out="more", num_negatives=6, **settings)


def test_a_row_without_query_may_be_ranked_against_what_a_query_led_to(tmp_path):
    write(tmp_path, [*searches(), event("eve", "i9", 20, "red lamp")])
    drawn = [rows_of(load(tmp_path, FILES, f"out{seed}", num_negatives=5, seed=seed)) for seed in range(4)]
    assert any("i9" in found["test", "rec"][0][4] for found in drawn)


def test_searches_of_bad_rows_are_known_again_after_an_interruption(tmp_path):
    def read():
        first.queries.add("tea")
        first.items.add("i0")
        first.left_out.add((0, 0))

    first, cache = Names(), ReadCache(tmp_path / "read", lambda line: None)
    cache.rows_of(0, 1, first, Quarantine(), read)
    again = Names()
    ReadCache(tmp_path / "read", lambda line: None).rows_of(0, 1, again, Quarantine(), lambda: 1 / 0)
    assert [tuple(pair) for pair in again.left_out.names] == [(0, 0)]


def test_bad_requests_of_qilin_say_what_their_queries_led_to_all_the_same():
    names = Names()
    note = {"note_idx": 7, "click": 1, "search_timestamp": 1_700_000_000}
    late = note | {"note_idx": 9, "search_timestamp": 1e30}
    columns = {
        "user": [None, "u1", "u2"],
        "history": [[], [], []],
        "query": ["tea pot", "tea pot", "tea pot"],
        "details": [[note, note | {"note_idx": 8, "click": 0}], [late], [note]],
    }
    batch = RawRows(Path("search_train/part.parquet"), np.arange(3), columns)
    rows = encode_requests(batch, names, "search", Quarantine(1.0))
    assert len(rows) == 1
    led = items_by_query(rows).of(np.array([names.queries.get("tea pot"), -1]))
    assert {names.items.names[item] for item in led[0]} == {"7", "9"}
    assert not len(led[1])


def test_queries_of_items_lead_to_all_items_that_have_them():
    rows = _examples(users=[0, 0], times=[1, 2], targets=[0, 1])
    led = items_by_query(rows, {"i0": "drill", "i2": "drill", "i1": "saw", "elsewhere": "saw"})
    names = rows.names
    drill, saw = (led.of(np.array([names.queries.get(text)]))[0] for text in ("drill", "saw"))
    assert {names.items.names[item] for item in drill} == {"i0", "i2"}
    assert {names.items.names[item] for item in saw} == {"i1"}


def _examples(users, times, targets, splits=None, tasks=None):
    names = Names()
    for number in range(10):
        names.items.add(f"i{number}")
    names.users.add("ann")
    names.users.add("bob")
    count = len(users)
    zeros = np.zeros(count, np.int32)
    return Examples(
        names, np.asarray(users, np.int32), zeros if tasks is None else np.asarray(tasks, np.int32), zeros - 1,
        np.asarray(times, np.float64), np.asarray(splits if splits is not None else zeros, np.int8),
        Ragged.of([[target] for target in targets]), zeros, np.arange(count),
    )  # fmt: skip


def histories(*columns, **more):
    found = make_histories(_examples(*columns, **more)).history
    return [found[row].tolist() for row in range(len(found))]


def test_histories_hold_no_event_of_the_same_time():
    assert histories([0, 0, 0, 0, 1], [1, 2, 2, 3, 2], [0, 1, 2, 3, 4]) == [[], [0], [0], [0, 1, 2], []]
    # Whichever of them was read first.
    assert histories([0, 0, 0], [2, 2, 1], [1, 2, 0]) == [[0], [0], []]


def test_a_valid_history_holds_training_events_alone_and_a_test_history_those_of_valid_too():
    # Both tasks hold out an event for valid (4, 5) and test (6, 7).
    found = histories(
        [0] * 8, range(8), range(8), splits=[0, 0, 0, 0, 1, 1, 2, 2], tasks=[0, 1, 0, 1, 0, 1, 0, 1]
    )  # fmt: skip
    assert found[4:6] == [[0, 1, 2, 3]] * 2
    assert found[6:] == [[0, 1, 2, 3, 4, 5]] * 2


def test_rows_that_come_with_a_training_event_after_the_valid_one_see_no_held_out_event():
    assert histories([0] * 4, range(4), range(4), splits=[0, 1, 0, 2]) == [[], [0], [0], [0, 1, 2]]


def test_the_marketplaces_held_out_events_are_in_no_history_of_their_split():
    dataset = marketplace.load(num_users=40, num_negatives=5)
    held = {
        split: {
            (user, int(item))
            for task in dataset.tasks
            for table in [dataset.table(split, task)]
            for user, item in zip(table.user_ids, table.target, strict=True)
        }
        for split in ("valid", "test")
    }
    for split, forbidden in (("valid", held["valid"] | held["test"]), ("test", held["test"])):
        for task in dataset.tasks:
            table = dataset.table(split, task)
            seen = {(user, int(item)) for row, user in enumerate(table.user_ids) for item in table.history_of(row)}
            assert seen
            assert not seen & forbidden
            assert (split == "valid") != bool(seen & held["valid"])  # a test history has the events of valid


def test_negatives_of_generated_searches_were_reached_by_no_search_of_the_same_query():
    dataset = marketplace.load(num_users=300, num_negatives=40)
    reached, again = {}, 0
    for split in ("train", "valid", "test"):
        table = dataset.table(split, "src")
        for query, item in zip(table.queries, table.target, strict=True):
            reached.setdefault(query, set()).add(int(item))
    for split in ("valid", "test"):
        table = dataset.table(split, "src")
        for row, query in enumerate(table.queries):
            again += len(reached[query]) > 1
            assert not reached[query] & set(table.negatives[row].tolist())
    assert again > 20


def test_negatives_of_a_search_by_category_do_not_share_it():
    events = {"ann": [Event(0), Event(1), Event(2), Event(3, "red")]}
    for seed in range(20):
        tables = leave_one_out(events, list("abcdefg"), seed, 2, {"red": [3, 4]})
        assert 4 not in tables["test", "src"].negatives[0]
    assert any(4 in leave_one_out(events, list("abcdefg"), s, 2)["test", "src"].negatives[0] for s in range(20))


def crossed():
    """Everything is browsed first and searched for afterwards, as films are rated and then tagged."""
    rows = []
    for n in range(12):
        rows += [event("ann", f"i{n}", 10 * n), event("ann", f"i{n}", 10 * n + 5, f"thing {n}")]
    return rows


def test_no_history_holds_its_rows_target_from_another_task(tmp_path):
    write(tmp_path, crossed(), items=30)
    dataset = load(tmp_path, FILES, preprocessing={"max_history": 4})
    rows = rows_of(dataset)
    assert all(row[2] not in row[1] for table in rows.values() for row in table)
    # The row stays, and its history is the newest events all the same.
    found = {row[2]: row[1] for row in rows["train", "src"]}
    assert set(found) == {f"i{n}" for n in range(10)}
    assert found["i7"] == ["i5", "i5", "i6", "i6"]
    step = next(step for step in dataset.card["steps"] if step["step"] == "histories")
    assert step["targets in their rows' own histories"] == 10


def test_where_users_take_items_again_an_earlier_event_of_the_item_stays_in_the_history(tmp_path):
    write(tmp_path, crossed(), items=30)
    rows = rows_of(load(tmp_path, FILES, preprocessing={"max_history": 4, "repeats": True}))
    assert {row[2]: row[1] for row in rows["train", "src"]}["i7"] == ["i5", "i6", "i6", "i7"]


def test_tables_whose_histories_name_the_target_fail():
    table = Table.from_rows("src", [Row("bob", [1], 2, "tea"), Row("ann", [0, 3], 3, "tea")])
    dataset = Dataset("mine", [Item(f"i{n}", f"thing {n}") for n in range(5)], {("train", "src"): table})
    wanted = "1 leaks. train/src row 1 of user 'ann' has in its history item 'i3', its own target; .*repeats: true"
    with pytest.raises(ValueError, match=wanted):
        check_leaks(dataset)
