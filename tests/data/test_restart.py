"""Preparing in shards: the same dataset whatever the shards, and going on after a kill from the last finished shard."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from gems_jax.data.dataset import array_records, storage
from gems_jax.data.dataset.tables import Row, Table
from gems_jax.data.preparation import shards
from gems_jax.data.preparation.item_sets import ItemSets
from gems_jax.data.preparation.resume import Pace
from gems_jax.data.prepare import prepare
from gems_jax.data.raw import named_columns

FILES = 4


def write_log(folder, users=12, seed=0):
    """A log in several files whose times are mixed, and a bad row in each."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for event in range(rng.integers(3, 12)):
            rows.append(
                (f"u{user}", rng.choice(["rec", "src"]), f"i{user % 3}{event}", f"q{event}", 1000 * user + event)
            )
    for number in range(FILES):
        part = [rows[place] for place in rng.permutation(len(rows)) if place % FILES == number]
        part.append(("", "rec", "i0", "", 5))
        columns = dict(zip(("user_id", "task", "target", "query", "timestamp"), zip(*part, strict=True), strict=True))
        folder.mkdir(exist_ok=True)
        parquet.write_table(
            pa.table({name: list(column) for name, column in columns.items()}), folder / f"{number}.parquet"
        )


OPTIONS = {"files": {"interactions": "log", "items": None}, "num_negatives": 3, "max_bad_fraction": 0.5}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder of raw files, to be prepared about 20 rows at a time."""
    write_log(tmp_path / "log")
    monkeypatch.setattr(shards, "ROWS", 20)
    return tmp_path


def run(raw, out, progress=None):
    return prepare("table", raw / out, path=raw, progress=progress, **OPTIONS)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def hidden(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def same_tables(first, second):
    assert list(first.tables) == list(second.tables)
    for key, table in first.tables.items():
        other = second.tables[key]
        assert (table.user_ids, table.queries) == (other.user_ids, other.queries)
        for name in ("history", "offsets", "target", "negatives", "time"):
            np.testing.assert_array_equal(getattr(table, name), getattr(other, name))


@pytest.mark.parametrize("rows", [1, 7, 30])
def test_shards_of_any_size_make_the_same_dataset(raw, monkeypatch, rows):
    monkeypatch.setattr(shards, "ROWS", 10**9)
    whole = run(raw, "whole")
    monkeypatch.setattr(shards, "ROWS", rows)
    said = []
    sharded = run(raw, "sharded", said.append)
    same_tables(whole, sharded)
    assert sharded.card == whole.card
    assert sharded.quarantined == whole.quarantined
    assert len(sharded.quarantined) == FILES
    assert sum("rows done" in line for line in said) > 1
    assert hidden(raw) == []


def test_the_files_of_the_shards_are_those_of_one_builder(raw):
    import tensorflow_datasets as tfds

    dataset = run(raw, "out")
    place = raw / "out" / "tables" / "table" / array_records.VERSION
    builder = tfds.builder_from_directory(place, file_format="array_record")
    assert builder.info.splits["train_rec"].num_shards > 2
    targets = np.concatenate([block["target"] for block in builder.as_data_source(split="train_rec")])
    np.testing.assert_array_equal(targets, dataset.table("train", "rec").target)


class Interrupting:
    """Takes lines and ends the preparation as a kill would after some of them."""

    def __init__(self, after):
        self.lines, self.after = [], after

    def __call__(self, line):
        self.lines.append(line)
        if self.after is not None and len(self.lines) == self.after:
            raise KeyboardInterrupt


def test_an_interrupted_preparation_goes_on_from_its_last_finished_shard(raw, monkeypatch):
    run(raw, "whole")
    wanted = content(raw / "whole")
    lines = Interrupting(None)
    run(raw, "counted", lines)
    for after in range(2, len(lines.lines), 3):
        out = raw / f"out{after}"
        with pytest.raises(KeyboardInterrupt):
            run(raw, out.name, Interrupting(after))
        assert not out.exists()
        finished = sum(("rows done" in line) for line in lines.lines[:after])
        read = sum(("of 4 read," in line) for line in lines.lines[:after])
        said = []
        run(raw, out.name, said.append)
        assert sum("is there already" in line for line in said) == finished
        assert sum("is read already" in line for line in said) == read
        found = content(out)
        assert found == wanted
    assert hidden(raw) == []


def test_files_that_were_read_are_not_read_again(raw, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(raw, "out", Interrupting(3))  # after "reading" and two files
    opened = []
    read_batches = named_columns.read_batches
    monkeypatch.setattr(
        named_columns, "read_batches", lambda path, *more: opened.append(path.name) or read_batches(path, *more)
    )
    run(raw, "out")
    assert opened == ["2.parquet", "3.parquet"]


def test_a_killed_process_is_gone_on_from(raw):
    run(raw, "whole")
    program = f"""
import os, signal
from gems_jax.data.preparation import shards
from gems_jax.data.prepare import prepare
shards.ROWS = 20
def progress(line):
    if "shard 2," in line:
        os.kill(os.getpid(), signal.SIGKILL)
prepare("table", {str(raw / "out")!r}, path={str(raw)!r}, progress=progress, **{OPTIONS!r})
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (raw / "out").exists()
    said = []
    run(raw, "out", said.append)
    assert sum("is there already" in line for line in said) == 2
    # The bytes of a record, and so its checksum, depend on the process that writes it; what it says does not.
    found, wanted = (
        {
            path: text
            for path, text in content(raw / name).items()
            if "array_record" not in path.name and path.name != "checksums.json"
        }
        for name in ("out", "whole")
    )
    assert found == wanted
    same_tables(storage.load(raw / "out"), storage.load(raw / "whole"))
    assert hidden(raw) == []


def test_other_settings_or_changed_files_begin_anew(raw):
    for change in ("settings", "files"):
        shutil.rmtree(raw / "out", ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            run(raw, "out", Interrupting(10))
        said = []
        if change == "settings":
            prepare("table", raw / "out", path=raw, progress=said.append, **OPTIONS, seed=1)
        else:
            os.utime(raw / "log" / "0.parquet", (1, 1))
            run(raw, "out", said.append)
        assert not any("already" in line for line in said)


def test_data_that_cannot_be_used_leave_nothing_behind(raw, monkeypatch):
    def leaking(*args):
        raise ValueError("leaks")

    monkeypatch.setattr(shards, "check_events", leaking)
    with pytest.raises(ValueError, match="leaks"):
        run(raw, "out")
    assert sorted(path.name for path in raw.iterdir()) == ["log"]


def test_a_full_disk_leaves_what_is_finished(raw, monkeypatch):
    finish = shards.finish

    def full(ready, rows, left=[2]):  # noqa: B006
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return finish(ready, rows)

    monkeypatch.setattr(shards, "finish", full)
    with pytest.raises(OSError, match="No space left"):
        run(raw, "out")
    monkeypatch.setattr(shards, "finish", finish)
    said = []
    run(raw, "out", said.append)
    assert sum("is there already" in line for line in said) == 2


def test_a_second_preparation_of_the_same_folder_waits_for_the_first(raw):
    said, reached = [], threading.Event()

    def slowly(line):
        if "shard 1" in line:
            reached.set()
            time.sleep(0.6)

    first = threading.Thread(target=run, args=(raw, "out", slowly))
    first.start()
    assert reached.wait(60)
    dataset = run(raw, "out", said.append)
    first.join()
    assert "data: another process prepares out; waiting for it" in said
    assert not any("rows done" in line for line in said)
    same_tables(dataset, storage.load(raw / "out"))


def test_a_leak_in_a_later_shard_names_the_row_of_the_whole_table(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS", 1)
    rows = [{"user_id": f"u{n}", "target": f"i{n}{s}", "split": split, "history": [f"i{n}9"]} for n in range(4)
            for s, split in enumerate(("train", "valid", "test"))]  # fmt: skip
    rows.append({"user_id": "u3", "target": "i32", "split": "train", "history": ["i39"]})
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"files": {"interactions": "log.jsonl", "items": None}, "preprocessing": {"cold_items": True}}
    with pytest.raises(ValueError, match=r"1 leaks\. train/rec row 4 of user 'u3' has as a target the held-out item"):
        prepare("table", tmp_path / "out", path=tmp_path, num_negatives=0, progress=None, **options)
    rows.pop()
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options["preprocessing"] = {}
    with pytest.raises(
        ValueError, match="4 targets of valid never occur in train, the first is item 'i01' of user 'u0'"
    ):
        prepare("table", tmp_path / "out", path=tmp_path, num_negatives=0, progress=None, **options)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 12))
def test_shards_hold_whole_users_and_every_row_once_in_order(users, rows):
    user = np.asarray(users)
    found = list(shards.user_shards(user, rows))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(user)))
    users_of = [set(user[shard].tolist()) for shard in found]
    assert sum(map(len, users_of)) == len(set(users))
    for shard, names in zip(found, users_of, strict=True):
        assert (np.diff(shard) > 0).all()
        assert len(shard) < rows + max(users.count(name) for name in names)
    assert [min(names) for names in users_of] == sorted(min(names) for names in users_of)


def test_item_sets_of_shards_are_those_of_the_whole(tmp_path):
    first = {("train", "rec"): Table.from_rows("rec", [Row("a", [0], 1)]), ("test", "rec"): Table.from_rows("rec", [])}
    second = {
        ("train", "rec"): Table.from_rows("rec", [Row("b", [], 2)]),
        ("test", "rec"): Table.from_rows("rec", [Row("b", [2], 3)]),
    }
    whole = ItemSets(5, with_users=True)
    merged = ItemSets(5, with_users=True)
    for number, part in enumerate((first, second)):
        whole.add(part)
        sets = ItemSets(5, with_users=True)
        sets.add(part)
        sets.save(tmp_path / f"{number}.npz")
        merged.merge(ItemSets.load(tmp_path / f"{number}.npz"))
    np.testing.assert_array_equal(whole.named, merged.named)
    np.testing.assert_array_equal(whole.targets, merged.targets)
    assert whole._user_of == merged._user_of == [{}, {}, {3: "b"}]
    assert merged.num_targets() == 3


def test_time_left_counts_what_was_done_now():
    pace = Pace(100, done=50)
    assert pace.of(75, seconds=50.0) == "75%, 50 s left"
    assert pace.of(60, seconds=60.0) == "60%, 4 min left"
    assert pace.of(51, seconds=3600.0) == "51%, 49.0 h left"
    assert pace.of(100, seconds=9.0) == "100%"
