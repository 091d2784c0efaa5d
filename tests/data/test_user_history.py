"""All that a dataset knows of one user, oldest first, whatever rows it is spread over."""

import dataclasses

import numpy as np
import pytest

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.data.dataset.user_history import UserHistories


def test_a_history_is_all_that_is_known_of_a_user() -> None:
    rows = {
        ("train", "rec"): [Row("ann", [4], 1), Row("bob", [0], 2)],
        ("test", "rec"): [Row("ann", [4, 1, 4], 6), Row("bob", [0, 2], 3)],
        ("test", "src"): [Row("ann", [4, 1], 4, query="shoe")],
    }
    dataset = Dataset("shop", [], {key: Table.from_rows(key[1], table) for key, table in rows.items()})
    assert UserHistories(dataset).of("ann") == [4, 1, 4, 6]
    assert UserHistories(dataset).of("bob") == [0, 2, 3]
    with pytest.raises(ValueError, match="no user 'anne'; it has 2, such as \\['ann'\\]"):
        UserHistories(dataset).of("anne")


def shop_of(rows: dict[tuple[str, str], list[tuple[list[int], int, float]]], timed: bool) -> Dataset:
    """A user's rows, each a history, a target and a time."""
    tables = {}
    for key, of_table in rows.items():
        table = Table.from_rows(key[1], [Row("ann", history, target) for history, target, _ in of_table])
        time = np.array([time for *_, time in of_table]) if timed else None
        tables[key] = dataclasses.replace(table, time=time)
    return Dataset("shop", [Item(f"B{n}", f"thing {n}") for n in range(60)], tables)


def windows(count: int, longest: int) -> dict[tuple[str, str], list[tuple[list[int], int, float]]]:
    """``count`` events, odd ones searched, as tables have them: histories cut to their newest events."""
    rows: dict[tuple[str, str], list[tuple[list[int], int, float]]] = {
        (split, task): [] for split in ("train", "valid", "test") for task in ("rec", "src")
    }
    for target in range(1, count):
        split = "test" if target == count - 1 else "valid" if target == count - 2 else "train"
        history = list(range(target))[-longest:]
        rows[split, ("rec", "src")[target % 2]].append((history, target, 1e9 + target))
    return rows


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("count", [4, 5, 6, 7, 50, 51])
def test_the_newest_events_come_last_however_many_there_are(count: int, timed: bool) -> None:
    taken = UserHistories(shop_of(windows(count, 5), timed)).of("ann")
    assert sorted(taken) == list(range(count))
    assert taken[-6:] == list(range(count))[-6:]
    if timed:
        assert taken == list(range(count))


def test_events_of_one_time_are_all_known_and_one_event_of_two_tasks_is_one() -> None:
    both = [([0, 1], 2, 7.0), ([0, 1], 3, 7.0)]
    rows = {("train", "rec"): [([0], 1, 5.0)], ("test", "rec"): both, ("test", "src"): both[1:]}
    for timed in (True, False):
        assert UserHistories(shop_of(rows, timed)).of("ann") == [0, 1, 2, 3]


def test_bought_again_counts_again() -> None:
    rows = {("train", "rec"): [([4], 1, 5.0), ([4, 1], 4, 6.0)], ("test", "rec"): [([1, 4], 4, 7.0)]}
    assert UserHistories(shop_of(rows, True)).of("ann") == [4, 1, 4, 4]


def test_of_a_user_no_more_is_known_than_was_said_to_be_the_most() -> None:
    dataset = shop_of(windows(50, 5), True)
    assert len(UserHistories(dataset).of("ann")) <= UserHistories(dataset).longest
