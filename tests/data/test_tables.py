"""Reading raw data into tables: counts, quarantine, negatives, storage."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from shared import SHARED, needs_shared

from gems_jax.data.dataset import array_records, storage
from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.data.preparation.leaks import check_leaks
from gems_jax.data.preparation.negatives import NegativeSampler
from gems_jax.data.preparation.splits import Event, leave_one_out
from gems_jax.data.prepare import prepare
from gems_jax.data.sources import amazon_scientific
from gems_jax.evaluation.simple_rankers import simple_rankers

RAW = SHARED / "data" / "amazon_scientific"
EXPECTED_ROWS = {
    "train": {"rec": 33541, "src": 32656},
    "valid": {"rec": 8317, "src": 8077},
    "test": {"rec": 8317, "src": 8116},
}


@pytest.fixture(scope="module")
def amazon():
    return amazon_scientific.load(RAW)


@pytest.fixture
def raw(tmp_path):
    """A small raw folder of ten items and four users."""
    items = {str(n): {"title": f"tool {n}", "brand": "Acme", "categories": "x"} for n in range(10)}
    users = {f"u{n}": [n, n + 1, n + 2, n + 3] for n in range(4)}
    (tmp_path / "Scientific.item.json").write_text(json.dumps(items, indent=1))
    (tmp_path / "Scientific.inter.json").write_text(json.dumps(users))
    lines = ["item\tquery_hem\tquery_noroot", *(f"{n}\troot tool {n % 3}\ttool {n % 3}" for n in range(10))]
    (tmp_path / "queries.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def load_small(folder, **kwargs):
    return amazon_scientific.load(folder, **({"num_negatives": 2, "max_bad_fraction": 0.5} | kwargs))


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=1))


def same_table(first, second):
    assert (first.task, first.user_ids, first.queries) == (second.task, second.user_ids, second.queries)
    for name in ("history", "offsets", "target", "negatives"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


@needs_shared
def test_real_tables_have_the_published_row_counts(amazon):
    assert amazon.row_counts() == EXPECTED_ROWS
    assert len(amazon.items) == 4344
    assert amazon.card["interactions"] == 58492
    assert amazon.quarantined == []


@needs_shared
def test_real_tables_have_no_leaks(amazon):
    found = check_leaks(amazon)
    assert found["train"] <= found["valid"] <= found["test"] <= 4344
    assert found["targets never in train"] == {"valid": 82, "test": 146}


def test_an_item_taken_again_is_left_out(raw):
    edit(raw / "Scientific.inter.json", lambda users: users.update(u9=[0, 1, 0, 2, 1]))
    dataset = load_small(raw)
    assert dataset.card["quarantined"] == {"event: the user took the item before": 2}
    row = dataset.table("test", "rec").user_ids.index("u9")
    assert [dataset.items[n].item_id for n in dataset.table("test", "rec").history_of(row)] == ["0", "1"]


@needs_shared
def test_real_histories_are_what_precedes_the_target(amazon):
    events = json.loads((RAW / "Scientific.inter.json").read_text())
    numbers = {item_id: number for number, item_id in enumerate(amazon.item_ids())}
    for split, left in (("test", 1), ("valid", 2)):
        table = amazon.table(split, "rec")
        for row in range(0, len(table), 501):
            taken = [numbers[str(item)] for item in events[table.user_ids[row]]]
            assert table.history_of(row).tolist() == taken[:-left]
            assert table.target[row] == taken[-left]


@needs_shared
def test_real_negatives_are_untouched_items_that_do_not_share_the_query(amazon):
    events = json.loads((RAW / "Scientific.inter.json").read_text())
    query_of = dict(line.split("\t")[::2] for line in (RAW / "queries.tsv").read_text().splitlines()[1:])
    ids = amazon.item_ids()
    for task in ("rec", "src"):
        table = amazon.table("test", task)
        assert table.negatives.shape == (len(table), 99)
        for row in range(0, len(table), 307):
            drawn = [ids[number] for number in table.negatives[row]]
            assert len(set(drawn)) == 99
            assert not set(drawn) & {str(item) for item in events[table.user_ids[row]]}
            if task == "src":
                assert all(query_of[item] != table.queries[row] for item in drawn)


@needs_shared
def test_real_rankers_without_a_model_reach_their_known_hit_rates(amazon):
    found = simple_rankers(amazon, {task: amazon.table("test", task) for task in amazon.tasks}, samples=0)
    for task in amazon.tasks:
        assert found["popularity"][task]["hit@10"] == pytest.approx(0.272, abs=0.015)
        # What is popular in the task itself is the better guess.
        assert found["popularity, same task"][task]["ndcg@10"] > found["popularity"][task]["ndcg@10"] + 0.005
    assert found["co-occurrence"]["rec"]["hit@10"] == pytest.approx(0.385, abs=0.015)
    assert found["BM25"]["src"]["hit@10"] == pytest.approx(0.682, abs=0.015)
    assert found["BM25, stemmed"]["src"]["hit@10"] == pytest.approx(0.838, abs=0.015)  # queries are plural
    # An item's queries are all the same here: a log of them gives the answer away.
    assert found["BM25, titles and queries"]["src"]["hit@10"] > 0.98
    assert set(found["co-occurrence"]) == {"rec"}
    assert set(found["BM25"]) == {"src"}


def test_a_user_gives_test_valid_and_train_rows_in_order():
    tables = leave_one_out({"ann": [Event(0), Event(1, "one"), Event(2), Event(3, "three")]}, list("abcdefg"), 0, 2)
    assert tables["train", "rec"].target.tolist() == [1]
    assert tables["valid", "rec"].history_of(0).tolist() == [0, 1]
    assert tables["test", "src"].queries == ["three"]
    assert len(tables["valid", "src"]) == 0
    assert tables["train", "src"].negatives is None


def test_negatives_do_not_depend_on_the_order_of_the_files(raw):
    first = load_small(raw)
    for name in ("Scientific.item.json", "Scientific.inter.json"):
        path = raw / name
        path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    second = load_small(raw)

    def negatives(dataset):
        table = dataset.table("test", "src")
        ids = dataset.item_ids()
        return {u: [ids[n] for n in row] for u, row in zip(table.user_ids, table.negatives, strict=True)}

    assert negatives(first) == negatives(second)
    assert negatives(first) != negatives(load_small(raw, seed=1))


def test_negatives_are_uniform_over_what_is_left():
    sampler = NegativeSampler([str(n) for n in range(20)], seed=0)
    counts = np.bincount(np.concatenate([sampler.draw(str(n), [0, 1, 2, 3], 4) for n in range(4000)]), minlength=20)
    assert counts[:4].sum() == 0
    # 4000 draws of 4 of 16: mean 1000, standard deviation 27.
    assert np.all(np.abs(counts[4:] - 1000) < 5 * 27)


def test_too_few_items_for_the_negatives_is_an_error():
    with pytest.raises(ValueError, match="3 negatives are needed, but only 2 of 4 items"):
        NegativeSampler(list("abcd"), 0).draw("test/rec/ann", [0, 1], 3)


def test_items_without_text_and_events_with_unknown_items_are_left_out_and_counted(raw):
    edit(raw / "Scientific.item.json", lambda items: items["9"].update(title=" "))
    edit(raw / "Scientific.inter.json", lambda users: users.update(u9=[0, 1, 2, 9, 777]))
    dataset = load_small(raw)
    assert dataset.card["quarantined"] == {
        "item: it has no title": 1,
        "query: its item is not in the catalogue": 1,
        "event: its item is not in the catalogue": 2,
    }
    row = dataset.table("test", "rec").user_ids.index("u9")
    assert [dataset.items[n].item_id for n in dataset.table("test", "rec").history_of(row)] == ["0", "1"]
    assert {"kind": "event", "id": "user u9", "reason": "its item is not in the catalogue", "detail": "item 777"} in (
        dataset.quarantined
    )


def test_malformed_entries_of_a_json_file_cost_only_themselves(raw):
    path = raw / "Scientific.item.json"
    path.write_text(path.read_text().replace('"title": "tool 4"', '"title": tool 4'))
    (raw / "Scientific.inter.json").write_text('{"u0": [0, 1, 2], "u1": [5, 6, , 7], "u2": [6, 7, 8], "u3": "none"}')
    dataset = load_small(raw)
    assert dataset.item_ids() == ["0", "1", "2", "3", "5", "6", "7", "8", "9"]
    assert dataset.table("test", "rec").user_ids == ["u0", "u2"]
    counts = dataset.card["quarantined"]
    assert counts["item: it is malformed JSON"] == 1
    assert counts["user: it is malformed JSON"] == 1
    assert counts["user: it is not a list of items"] == 1


def test_users_with_too_few_events_are_left_out(raw):
    edit(raw / "Scientific.inter.json", lambda users: users.update(new=[1, 2]))
    dataset = load_small(raw)
    assert "new" not in dataset.table("test", "rec").user_ids
    assert dataset.card["quarantined"] == {"user: it has fewer than 3 events": 1}


def test_more_bad_rows_than_allowed_is_one_error_that_names_the_first(raw):
    edit(raw / "Scientific.item.json", lambda items: items["3"].update(title=""))
    with pytest.raises(ValueError, match=r"(?s)item\.json: 1 of 10 rows of kind 'item'.*'3': it has no title"):
        load_small(raw, max_bad_fraction=0.05)
    with pytest.raises(ValueError, match="max_bad_fraction must lie between 0 and 1"):
        load_small(raw, max_bad_fraction=2)


@pytest.mark.parametrize("name", ["Scientific.item.json", "Scientific.inter.json", "queries.tsv"])
def test_a_missing_file_is_named(raw, name):
    (raw / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_small(raw)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_small(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_a_file_that_is_cut_off_is_an_error(raw, keep):
    path = raw / "Scientific.item.json"
    text = path.read_text()
    path.write_text(text[: int(len(text) * keep)])
    with pytest.raises(ValueError, match="is cut off"):
        load_small(raw)
    path.write_text(text[: text.rindex("}")].rstrip())
    with pytest.raises(ValueError, match="is cut off"):
        load_small(raw)


def test_a_file_of_another_kind_is_an_error(raw):
    (raw / "Scientific.inter.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="must hold one JSON object"):
        load_small(raw)
    (raw / "Scientific.inter.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8"):
        load_small(raw)


def test_a_query_file_without_its_columns_is_an_error(raw):
    (raw / "queries.tsv").write_text("item\tother\n0\tx\n")
    with pytest.raises(ValueError, match="query_noroot"):
        load_small(raw)


def test_a_query_line_with_missing_cells_is_left_out(raw):
    path = raw / "queries.tsv"
    path.write_text(path.read_text().replace("4\troot tool 1\ttool 1", "4\ttool 1"))
    assert load_small(raw).card["quarantined"] == {"query: the number of columns is wrong": 1}


def test_names_and_titles_that_are_no_text_are_left_out_and_counted(raw):
    edit(raw / "Scientific.item.json", lambda items: items["9"].update(title="tool \ud800"))
    edit(raw / "Scientific.item.json", lambda items: items["8"].update(brand="\udce9"))
    edit(raw / "Scientific.inter.json", lambda users: users.update({"u\udfff": [0, 1, 2, 3]}))
    dataset = load_small(raw)
    assert dataset.card["quarantined"] == {
        "item: its id, title or brand is no Unicode text": 2,
        "query: its item is not in the catalogue": 2,
        "user: its name is no Unicode text": 1,
    }
    assert set(dataset.table("test", "rec").user_ids) == {"u0", "u1", "u2", "u3"}
    storage.save(dataset, raw / "out")


def test_an_empty_or_unknown_table_is_an_error(raw):
    (raw / "queries.tsv").write_text("item\tquery_hem\tquery_noroot\n")
    dataset = load_small(raw)
    with pytest.raises(ValueError, match="table train/src is empty"):
        dataset.table("train", "src")
    with pytest.raises(ValueError, match="no table train/chat; it has train/rec"):
        dataset.table("train", "chat")


def test_parts_of_a_table_must_agree():
    table = Table.from_rows("rec", [Row("ann", [1], 2)])
    with pytest.raises(ValueError, match="user_ids describes 0 rows, target has 1"):
        Table("rec", [], table.history, table.offsets, table.target, [""])
    with pytest.raises(ValueError, match="same number of negatives"):
        Table.from_rows("rec", [Row("a", [1], 2, "", [0]), Row("b", [1], 2)])


def test_taking_rows_keeps_their_histories():
    table = Table.from_rows("rec", [Row("a", [1, 2], 3), Row("b", [], 4), Row("c", [5], 6)])
    taken = table.take([2, 0, 1])
    assert [taken.history_of(row).tolist() for row in range(3)] == [[5], [1, 2], []]
    assert taken.user_ids == ["c", "a", "b"]
    with pytest.raises(ValueError, match="has no negatives"):
        table.candidates()


def test_a_stored_dataset_reads_back_the_same(raw, tmp_path):
    edit(raw / "Scientific.inter.json", lambda users: users.update(new=[1, 2]))
    dataset = load_small(raw)
    for _ in range(2):  # the second time over the first
        storage.save(dataset, tmp_path / "prepared")
    loaded = storage.load(tmp_path / "prepared")
    assert loaded.items == dataset.items
    assert loaded.quarantined == dataset.quarantined
    assert loaded.tasks == ("rec", "src")
    assert loaded.card["rows"] == dataset.row_counts()
    for key, table in dataset.tables.items():
        same_table(table, loaded.tables[key])
    assert [path.name for path in tmp_path.glob(".prepared*")] == []


def test_tables_longer_than_a_record_read_back_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(array_records, "BLOCK", 7)
    rows = [Row(f"u{n}", list(range(n % 4)), n % 5, f"naïve {n}", [0, 1]) for n in range(30)]
    tables = {("train", "src"): Table.from_rows("src", rows), ("test", "src"): Table.from_rows("src", [])}
    storage.save(Dataset("x", [Item(str(n), "t") for n in range(5)], tables), tmp_path / "d")
    loaded = storage.load(tmp_path / "d")
    for key, table in tables.items():
        same_table(table, loaded.tables[key])


def test_an_unfinished_or_damaged_dataset_is_an_error(raw, tmp_path):
    with pytest.raises(FileNotFoundError, match="gems-jax prepare"):
        storage.load(tmp_path / "nothing")
    folder = storage.save(load_small(raw), tmp_path / "prepared")
    shard = next(folder.rglob("*train_rec.array_record*"))
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged"):
        storage.load(folder)
    shutil.rmtree(folder / "tables")
    with pytest.raises(ValueError, match="is damaged"):
        storage.load(folder)
    (folder / "items.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"items\.jsonl is damaged"):
        storage.load(folder)
    (folder / "card.json").write_text('{"format_version": 0}')
    with pytest.raises(ValueError, match="format version"):
        storage.load(folder)


def test_flipped_bits_are_found_and_older_datasets_load_with_a_notice(raw, tmp_path):
    folder = storage.save(load_small(raw), tmp_path / "prepared")
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert any(name.endswith("dataset_info.json") for name in names)
    for name in names:
        whole = (folder / name).read_bytes()
        for place in {len(whole) // 3, len(whole) * 4 // 5}:
            if whole:
                (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
                with pytest.raises(ValueError, match=r"damaged|is not of format version"):
                    storage.load(folder)
        (folder / name).write_bytes(whole)
    (folder / "checksums.json").unlink()
    with pytest.warns(UserWarning, match=r"no checksums\.json, since an older version prepared it"):
        assert storage.load(folder).items == load_small(raw).items


def test_nothing_half_written_stays_behind(raw, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    dataset = load_small(raw)
    monkeypatch.setattr(storage, "write_tables", fail)
    place = tmp_path / "out"
    with pytest.raises(OSError, match="disk full"):
        storage.save(dataset, place / "prepared")
    assert list(place.iterdir()) == []


def test_a_folder_with_other_files_is_not_overwritten(raw, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    dataset = load_small(raw)
    with pytest.raises(ValueError, match="something other than a prepared dataset"):
        storage.save(dataset, tmp_path / "mine")
    with pytest.raises(ValueError, match="is a file"):
        storage.save(dataset, tmp_path / "mine" / "letter.txt")


def test_preparing_twice_reads_what_is_there_and_other_settings_are_refused(raw, tmp_path_factory):
    lines = []
    out = tmp_path_factory.mktemp("other") / "out"

    def run(**kwargs):
        lines.clear()
        return prepare("amazon_scientific", out, path=raw, num_negatives=2, progress=lines.append, **kwargs)

    first = run()
    assert "done in" in lines[-1]
    again = run()
    assert "is prepared already" in lines[0]
    same_table(first.table("test", "src"), again.table("test", "src"))
    with pytest.raises(ValueError, match="holds another dataset than the one asked for: seed: 0 there, 1 here"):
        run(seed=1)
    edit(raw / "Scientific.inter.json", lambda users: users.update(u9=[7, 8, 9]))
    with pytest.raises(ValueError, match=r"the raw file Scientific\.inter\.json has changed since"):
        run()
    shutil.rmtree(raw)
    run()
    assert "is prepared already" in lines[0]
    shutil.rmtree(out)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        run()


def test_settings_that_do_not_fit_the_source_are_errors(tmp_path, raw):
    with pytest.raises(ValueError, match="unknown data source 'ebay'; use one of marketplace"):
        prepare("ebay", tmp_path / "a")
    with pytest.raises(ValueError, match=r"needs data\.path"):
        prepare("amazon_scientific", tmp_path / "a")
    with pytest.raises(ValueError, match="reads no files"):
        prepare("marketplace", tmp_path / "a", path=raw)
    assert not (tmp_path / "a").exists()


def test_an_empty_split_is_an_error_before_anything_is_written(raw, tmp_path):
    (raw / "queries.tsv").write_text("item\tquery_hem\tquery_noroot\n")
    with pytest.raises(ValueError, match="table train/src is empty"):
        prepare("amazon_scientific", tmp_path / "a", path=raw, num_negatives=2, progress=None)
    assert not (tmp_path / "a").exists()


def test_writing_a_dataset_leaves_the_root_logger_as_it_was(tmp_path):
    program = f"""
import logging
from gems_jax.data.prepare import prepare
prepare("marketplace", {str(tmp_path / "out")!r}, num_users=5, num_negatives=2, progress=None)
logging.warning("still heard")
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr.strip() == "WARNING:root:still heard"


def test_importing_the_data_package_imports_no_heavy_library():
    modules = "gems_jax.data.prepare, gems_jax.data.batching.pipeline, gems_jax.data.text.small_tokenizer"
    program = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"tensorflow_datasets", "grain", "transformers", "tokenizers", "bm25s"}
