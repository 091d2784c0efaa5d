"""Rows without times: nothing of what came later gets into a history without a word, and unread columns are said."""

import pytest
from raw_tables import load, log, ready, rows_of, write_rows
from tiny import gems_jax

from gems_jax.data.raw.unread_columns import columns_of_times
from gems_jax.training.proposal.data import find_data

SAID = "rows have no times and are taken to be in the order of time as they stand in the files"


def shop(**more):
    """Rows of no task column; of each ``more`` a column."""
    rows = [{name: row[name] for name in ("user_id", "target", "query")} for row in log()]
    return [row | {name: value(number) for name, value in more.items()} for number, row in enumerate(rows)]


def date(number):
    return f"2024-05-{1 + (7 * number) % 28:02}"


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_times_in_a_column_that_is_not_read_stop_the_preparation_until_one_says_what_they_are(tmp_path, ending):
    files = ready(tmp_path, ending, shop(moment=date))
    way_out = (
        r"'moment' looks like times \(the first: 2024-05-01\).*files.columns: {timestamp: 'moment'}.*timestamp: ''}"
    )
    with pytest.raises(ValueError, match=way_out):
        load(tmp_path, files)
    assert not (tmp_path / "out").exists()
    timed = load(tmp_path, files | {"columns": {"timestamp": "moment"}})
    assert not any(SAID in remark for remark in timed.card["remarks"])
    in_order = load(tmp_path, files | {"columns": {"timestamp": ""}})
    assert f"60 {SAID}, as files.columns: {{timestamp: ''}} says" in in_order.card["remarks"]
    assert rows_of(timed) != rows_of(in_order)


def test_rows_that_nothing_puts_in_order_are_told_by_the_preparation_and_in_the_card(tmp_path):
    lines = []
    dataset = load(tmp_path, ready(tmp_path, rows=shop(price=lambda number: 9.5 + number)), progress=lines.append)
    (said,) = [remark for remark in dataset.card["remarks"] if SAID in remark]
    assert said.startswith(f"60 {SAID}; if they are not, histories hold what came later, and metrics mean nothing")
    assert f"data: {said}" in lines
    assert "columns that are not read: price; files that have them: 1" in dataset.card["remarks"]


def test_a_configuration_says_that_no_column_holds_the_times_of_rows(tmp_path, capsys):
    ready(tmp_path, rows=shop(moment=date))
    text = "data: {name: table, path: ., dir: out, num_negatives: 3, files: {columns: {timestamp: %s}}}\n"
    for column, read in (("''", False), ("moment", True)):
        (tmp_path / "shop.yaml").write_text(text % column)
        assert gems_jax("prepare", "--config", tmp_path / "shop.yaml", "--data.dir", tmp_path / column) == 0
        assert (SAID in capsys.readouterr().out) == (not read)


def test_rows_with_histories_and_splits_of_their_own_need_no_times(tmp_path):
    rows = [
        {"user_id": "u", "target": f"i{n}", "split": split, "history": ["i9", "i8"], "moment": date(n)}
        for n, split in enumerate(("train", "valid", "test"))
    ]
    dataset = load(tmp_path, ready(tmp_path, ".jsonl", rows), preprocessing={"cold_items": True})
    assert not any(SAID in remark for remark in dataset.card["remarks"])


def test_what_people_typed_in_a_column_that_is_not_read_is_told(tmp_path):
    rows = [{("typed" if name == "query" else name): value for name, value in row.items()} for row in shop()]
    dataset = load(tmp_path, ready(tmp_path, rows=rows))
    assert any("'typed' is called like what people typed and is not read" in said for said in dataset.card["remarks"])
    read = load(tmp_path, ready(tmp_path, rows=rows) | {"columns": {"query": "typed"}})
    assert not any("called like what people typed" in said for said in read.card["remarks"])


def test_rows_without_words_in_a_log_with_queries_are_told_to_be_recommendations(tmp_path):
    said = "30 rows have no query and, without a column of tasks, are 'rec', not 'src'"
    assert any(said in remark for remark in load(tmp_path, ready(tmp_path, rows=shop())).card["remarks"])
    rows = [row | {"query": row["query"] if n else " "} for n, row in enumerate(log()) if row["query"]]
    dataset = load(tmp_path, ready(tmp_path, rows=rows), max_bad_fraction=0.1)
    assert dataset.card["quarantined"] == {"row: the query is empty": 1}
    assert not any("without a column of tasks" in remark for remark in dataset.card["remarks"])


@pytest.mark.parametrize(
    ("cells", "are"),
    [
        (["01/05/2024", "05/01/2024"], True),  # whose day and month cannot be told apart
        ([1_714_521_600, 1_714_600_000], True),
        ([1_714_521_600_000, 1_714_600_000_000], True),
        ([20240501, 20240502], True),
        ([None, "2024-05-01", "2024-05-02"], True),
        ([12, 13], False),
        (["12.50", "13.00"], False),
        (["2024-05-01", "2024-05-01"], False),  # all the same: the day of the export
        (["red", "2024-05-01"], False),
        ([None, None], False),
        ([["2024-05-01"], ["2024-05-02"]], False),
    ],
)
def test_columns_of_times_are_known_by_their_cells(cells, are):
    assert ("other" in columns_of_times({"other": cells})) == are


def test_init_takes_times_by_their_name_and_stops_where_only_their_cells_tell(tmp_path):
    write_rows(tmp_path / "log.csv", shop(when=date, born=date))
    found = find_data(str(tmp_path / "log.csv"), None, {"user_id": "user_id", "target": "target"})
    assert found.fields["files"]["columns"] == {"timestamp": "when"}
    write_rows(tmp_path / "log.csv", shop(moment=date))
    with pytest.raises(ValueError, match=r"'moment' looks like times.*--columns '{\"timestamp\": \"moment\"}'"):
        find_data(str(tmp_path / "log.csv"), None, {})
    (tmp_path / "notes.md").write_text("no table, and no reason to stop")
    found = find_data(str(tmp_path / "log.csv"), None, {"timestamp": ""})
    assert found.fields["files"]["columns"] == {"timestamp": ""}
    write_rows(tmp_path / "searches.csv", shop())
    with pytest.raises(ValueError, match="2 tables have a column of users.*are made one file first"):
        find_data(str(tmp_path), None, {})
    write_rows(tmp_path / "log.csv", [{"who": "ann", "what": "cup"}])
    with pytest.raises(ValueError, match=r'"timestamp": "...", "query": "..."'):
        find_data(str(tmp_path / "log.csv"), None, {})
