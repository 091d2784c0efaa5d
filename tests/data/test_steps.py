"""The steps between raw rows and tables, against slow and plain versions of themselves."""

import collections

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_tables import load, log, ready, rows_of, write_rows

from gems_jax.data.preparation import evaluation_negatives, leaks, negatives
from gems_jax.data.preparation.histories import make_histories
from gems_jax.data.preparation.holdout import leave_one_out_split
from gems_jax.data.preparation.k_core import to_core
from gems_jax.data.preparation.negatives import NegativeSampler
from gems_jax.data.raw import ragged, raw_files
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.ragged import Ragged


def examples(user, task, time, targets, split=None, history=None, shown=None):
    names = Names()
    count = len(user)
    names.users.encode(pa.array([f"u{n}" for n in range(8)]))
    names.items.encode(pa.array([f"i{n}" for n in range(12)]))
    zeros = np.zeros(count, np.int32)
    return Examples(
        names, np.asarray(user, np.int32), np.asarray(task, np.int32), zeros - 1, np.asarray(time, np.float64),
        np.full(count, -1, np.int8) if split is None else np.asarray(split, np.int8), Ragged.of(targets),
        zeros, np.arange(count), history=None if history is None else Ragged.of(history),
        shown=None if shown is None else Ragged.of(shown),
    )  # fmt: skip


rows = st.lists(
    st.tuples(
        st.integers(0, 5), st.integers(0, 1), st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3),
        st.lists(st.integers(0, 9), max_size=3), st.lists(st.integers(0, 9), max_size=2),
    ),
    min_size=1,
    max_size=40,
)  # fmt: skip


def plain_core(rows, core, min_rows, both):
    while True:
        before = repr(rows)
        tasks = collections.Counter((row[0], row[1]) for row in rows)
        rows = [row for row in rows if tasks[row[0], row[1]] >= min_rows]
        users = collections.Counter(row[0] for row in rows)
        done = collections.defaultdict(set)
        for row in rows:
            done[row[0]].add(row[1])
        rows = [row for row in rows if users[row[0]] >= core and (not both or len(done[row[0]]) == 2)]
        items = collections.Counter(item for row in rows for part in row[3:] for item in part)
        if core > 1:
            rows = [(*row[:3], *([i for i in part if items[i] >= core] for part in row[3:])) for row in rows]
        rows = [row for row in rows if row[3]]
        if repr(rows) == before:
            return rows


@settings(max_examples=100)
@given(rows, st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_the_core_is_that_of_a_plain_loop(rows, core, min_rows, both):
    user, task, time, targets, history, shown = zip(*rows, strict=True)
    kept, rounds = to_core(examples(user, task, time, targets, history=history, shown=shown), core, min_rows, both)
    expected = plain_core(rows, core, min_rows, both)
    assert rounds >= 1
    assert kept.user.tolist() == [row[0] for row in expected]
    for name, place in (("targets", 3), ("history", 4), ("shown", 5)):
        lists = getattr(kept, name)
        assert [lists[row].tolist() for row in range(len(kept))] == [row[place] for row in expected]


@settings(max_examples=100)
@given(rows, st.booleans())
def test_the_last_row_of_each_task_is_test_and_the_one_before_it_valid(rows, per_task):
    user, task, time, targets, *_ = zip(*rows, strict=True)
    split = leave_one_out_split(examples(user, task, time, targets), per_task)
    expected = [0] * len(rows)
    groups = collections.defaultdict(list)
    for place, row in enumerate(rows):
        groups[row[:2] if per_task else row[0]].append((row[2], place))
    for group in groups.values():
        if len(group) >= 3:
            *_, valid, test = sorted(group)
            expected[valid[1]], expected[test[1]] = 1, 2
    assert split.tolist() == expected


@settings(max_examples=100)
@given(rows, st.integers(0, 3), st.lists(st.integers(0, 2), min_size=40, max_size=40))
def test_histories_are_the_events_of_earlier_times_that_the_split_may_see(rows, longest, splits):
    user, task, time, targets, *_ = zip(*rows, strict=True)
    split = splits[: len(rows)]
    made = make_histories(examples(user, task, time, [part[:1] for part in targets], split), longest)
    for place, row in enumerate(rows):
        seen = [
            (other[2], number, other[3][0], other[1])
            for number, other in enumerate(rows)
            if other[0] == row[0] and other[2] < row[2] and (split[number] == 0 or split[number] < split[place])
        ]
        seen = sorted(seen)[-longest:] if longest else sorted(seen)
        assert made.history[place].tolist() == [item for *_, item, _ in seen]
        assert made.history_task[place].tolist() == [task for *_, task in seen]


def test_many_draws_at_once_are_uniform_and_leave_out_what_they_should():
    sampler = NegativeSampler([str(n) for n in range(200)], seed=3)
    excluded = Ragged.of([[0, 1, 2, 3]] * 5000)
    drawn = sampler.draw_rows([f"test/rec/{n}" for n in range(5000)], excluded, 10)
    assert drawn.shape == (5000, 10)
    assert all(len(set(row)) == 10 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=200)
    assert counts[:4].sum() == 0
    # 5,000 draws of 10 of 196: mean 255, standard deviation 15.6.
    assert np.abs(counts[4:] - 255.1).max() < 5 * 15.6
    # The order within a row is random as well: the first column alone is uniform.
    assert np.abs(np.bincount(drawn[:, 0], minlength=200)[4:] - 25.5).max() < 6 * 5.1


def test_a_draw_depends_on_its_key_the_seed_and_the_catalogue_only():
    ids = [f"i{n}" for n in range(300)]
    keys = [f"valid/src/{n}" for n in range(50)]
    excluded = Ragged.of([[n] for n in range(50)])
    whole = NegativeSampler(ids, 1).draw_rows(keys, excluded, 20)
    part = NegativeSampler(ids, 1).draw_rows(keys[30:], excluded.take(np.arange(30, 50)), 20)
    np.testing.assert_array_equal(whole[30:], part)
    turned = NegativeSampler(ids[::-1], 1).draw_rows(keys, excluded.map(299 - np.arange(300)), 20)
    np.testing.assert_array_equal(np.asarray(ids)[whole], np.asarray(ids[::-1])[turned])
    assert (NegativeSampler(ids, 2).draw_rows(keys, excluded, 20) != whole).any()


def test_a_row_that_few_items_are_left_for_gets_them_all_or_an_error():
    sampler = NegativeSampler(list("abcdefghij"), 0)
    drawn = sampler.draw_rows(["x", "y"], Ragged.of([[0, 1], [5]]), 8)
    assert sorted(drawn[0].tolist()) == [2, 3, 4, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="x: 9 negatives are needed, but only 8 of 10"):
        sampler.draw_rows(["x"], Ragged.of([[0, 1]]), 9)


def test_negatives_are_untouched_items_that_no_search_of_the_query_found(tmp_path):
    dataset = load(tmp_path, ready(tmp_path), num_negatives=15)
    touched, found = collections.defaultdict(set), collections.defaultdict(set)
    for row in log():
        touched[row["user_id"]].add(row["target"])
        if row["query"]:
            found[row["query"]].add(row["target"])
    for (split, task), rows in rows_of(dataset).items():
        for user, _, _, query, drawn in rows:
            assert (drawn is None) == (split == "train")
            if drawn:
                assert len(set(drawn)) == 15
                assert not set(drawn) & (touched[user] | (found[query] if task == "src" else set()))


def test_negatives_do_not_depend_on_the_order_of_rows_but_on_the_seed(tmp_path):
    def negatives(folder, rows, **kwargs):
        found = rows_of(load(folder, ready(folder, rows=rows), num_negatives=8, **kwargs))
        return {(key, row[0], row[2]): row[4] for key, part in found.items() for row in part}

    shuffled = [log()[n] for n in np.random.default_rng(0).permutation(len(log()))]
    assert negatives(tmp_path / "a", log()) == negatives(tmp_path / "b", shuffled)
    assert negatives(tmp_path / "a", log()) != negatives(tmp_path / "b", log(), seed=1)


def test_without_negatives_rows_are_ranked_against_the_whole_catalogue(tmp_path):
    assert load(tmp_path, ready(tmp_path), num_negatives=0).table("test", "rec").negatives is None


def test_nothing_left_is_an_error_that_names_the_steps(tmp_path):
    with pytest.raises(ValueError, match="no row is left after.*core 50"):
        load(tmp_path, ready(tmp_path), preprocessing={"core": 50})


def test_what_another_tasks_rows_would_give_away_is_taken_out(tmp_path):
    # Ann's last recommendation comes before her searches, whose recorded histories have it.
    rows = [
        {"task": "rec", "user_id": "ann", "timestamp": n, "history": [f"i{k}" for k in range(n)], "target": f"i{n}",
         "query": ""}
        for n in range(4)
    ] + [
        {"task": "src", "user_id": "ann", "timestamp": n, "history": [f"i{k}" for k in range(n)], "target": f"i{n}",
         "query": "q"}
        for n in range(4, 9)
    ]  # fmt: skip
    folder = tmp_path / "a"
    files = ready(folder, ".jsonl", rows)
    dataset = load(folder, files)
    found = rows_of(dataset)
    assert [row[2] for row in found["test", "rec"]] == ["i3"]
    assert found["train", "src"][0][1] == ["i0", "i1"]  # not i2 of valid, not i3 of test
    assert found["valid", "src"][0][1] == ["i0", "i1", "i4", "i5", "i6"]
    assert found["test", "src"][0][1] == ["i0", "i1", "i2", "i4", "i5", "i6", "i7"]
    step = next(step for step in dataset.card["steps"] if step["step"] == "histories")
    assert step["events of histories that are held out"] == 3 * 2 + 2 + 1


def test_ragged_lists_agree_with_python_lists():
    lists = Ragged.of([[1, 2, 2], [], [3, 1]])
    assert [part.tolist() for part in map(lists.distinct().__getitem__, range(3))] == [[1, 2], [], [3, 1]]
    both = lists.beside(Ragged.of([[9], [8], []]))
    assert [both[row].tolist() for row in range(3)] == [[1, 2, 2, 9], [8], [3, 1]]
    assert lists.last(1).values.tolist() == [2, 1]
    assert lists.first(1).values.tolist() == [1, 3]
    assert len(Ragged.join([])) == 0


def test_work_block_by_block_changes_nothing(tmp_path, monkeypatch):
    options = {"num_negatives": 6, "preprocessing": {"core": 2, "max_history": 4}}
    whole = rows_of(load(tmp_path, ready(tmp_path), out="a", **options))
    for module, name, size in ((ragged, "BLOCK_VALUES", 5), (evaluation_negatives, "_ROWS", 2), (negatives, "_ROWS", 3),
                               (leaks, "_ROWS", 2), (raw_files, "BLOCK_BYTES", 400)):  # fmt: skip
        monkeypatch.setattr(module, name, size)
    assert rows_of(load(tmp_path, ready(tmp_path), out="b", **options)) == whole


def test_parquet_dates_and_numbers_are_read_as_they_are(tmp_path):
    import datetime

    rows = [
        row
        | {"timestamp": datetime.datetime.fromtimestamp(row["timestamp"], datetime.UTC), "query": row["query"] or ""}
        for row in log()
    ]
    write_rows(tmp_path / "p" / "interactions.parquet", rows)
    files = ready(tmp_path / "p", ".parquet", rows)
    plain = load(tmp_path / "q", ready(tmp_path / "q"))
    assert rows_of(load(tmp_path / "p", files)) == rows_of(plain)
