"""Cells that mean something else than they seem to: words for nothing, ids in two spellings, lists, dates, copies."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from raw_tables import load, log, ready, rows_of

from gems_jax.data.dataset.tables import Item
from gems_jax.data.raw.blank import is_blank, without_blanks
from gems_jax.data.raw.columns import as_text, as_words
from gems_jax.data.raw.id_lists import Division, read_lists
from gems_jax.data.raw.ids import KnownIds
from gems_jax.data.raw.times import read_times
from gems_jax.training import stages

ENDINGS = (".csv", ".jsonl", ".parquet")
LISTS = ("target", "history")


def untold():
    """A log in which a row with a query is a search."""
    return [{name: value for name, value in row.items() if name != "task"} for row in log()]


def lists_of(cells, **division):
    """Ids of every cell, None where it is no list, and which cells were divided by a guess."""
    lists = read_lists(cells, Division(**division))
    texts = lists.texts.to_pylist()
    ids = [None if bad else [texts[i] for i in lists.indices[n]] for n, bad in enumerate(lists.bad)]
    return ids, np.flatnonzero(lists.divided).tolist()


def stamp(moment):
    return float(np.datetime64(moment, "s").astype(np.int64))


def seconds(cells, form=None):
    return read_times(cells, form).seconds.tolist()


@pytest.mark.parametrize("ending", ENDINGS)
def test_words_for_nothing_are_missing_in_every_format_and_counted(tmp_path, ending):
    words = ["nan", "None", "NULL", "\\N", "<NA>", "N/A", "\u200b", ""]
    rows = [row if row["query"] else row | {"query": words[n // 2 % len(words)]} for n, row in enumerate(untold())]
    wanted = load(tmp_path, ready(tmp_path, ending, rows=untold()))
    found = load(tmp_path, ready(tmp_path, ending, rows=rows), out="words")
    assert rows_of(found) == rows_of(wanted)
    said = "4 cells of query say 'NULL' and count as missing (files.missing); the first: interactions"
    assert any(line.startswith(said) for line in found.card["remarks"])
    with pytest.raises(ValueError, match="table valid/rec is empty"):  # all but the empty ones are searches
        load(tmp_path, ready(tmp_path, ending, rows=rows, missing=[]), out="kept")


def test_the_words_that_pandas_reads_as_missing_are():
    # `na_values` of pandas.read_csv
    words = [
        *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    ]
    assert as_text(words)[0].null_count == len(words)
    assert as_text(["nan bread", "Nancy", "null and void", "NANDO", "0", "false"])[0].null_count == 0


def test_a_value_that_stands_nearly_everywhere_is_said(tmp_path):
    rows = [row | {"query": row["query"] or "missing"} for row in untold()]
    said = load(tmp_path, ready(tmp_path, rows=rows)).card["remarks"]
    assert "the query 'missing' stands in 30 of 60 rows; if it stands for nothing, list it in files.missing" in said
    assert load(tmp_path, ready(tmp_path)).card["remarks"] == []


def test_text_is_empty_exactly_where_it_has_no_visible_character():
    blank = ["", " \t", "\u200b", "\ufeff\u200e", "\u2060\u00ad", "\u3164", "\ufe0f", "\x00\x1f", "\u2800"]
    visible = ["a\u200b", "\u200d\U0001f469", "水", "\u0301a", "-", "\ufffdx"]
    assert [is_blank(text) for text in blank + visible] == [True] * len(blank) + [False] * len(visible)
    column = pa.array(blank + visible)
    assert without_blanks(column).is_null().to_pylist() == [True] * len(blank) + [False] * len(visible)


def test_text_of_an_item_may_be_a_list_or_a_structure():
    nested = [["made of steel", "", None], {"width": 3.0, "of": ["oak"]}, "plain", None, []]
    assert as_words(nested)[0].to_pylist() == ["made of steel", "width 3 of oak", "plain", None, None]
    assert as_words(pa.array([["a", "b"], None, []]))[0].to_pylist() == ["a b", None, None]


def numbered(spell):
    """The log with whole numbers for ids, users and items spelt by a function."""
    return [row | {"user_id": spell(row["user_id"][1:]), "target": spell(row["target"][1:])} for row in log()]


@pytest.mark.parametrize("spell", [float, "{}.0".format, "{}.00".format])
def test_numbers_are_one_id_however_they_are_written(tmp_path, spell):
    items = "".join(f'{{"item_id": {n}, "title": "thing {n}"}}\n' for n in range(30))
    (tmp_path / "numbers.jsonl").write_text(items)
    tables = []
    for ending in ENDINGS:
        # A half of the rows with decimals, the others without: two months of a log.
        rows = [
            row if n % 2 else other for n, (row, other) in enumerate(zip(numbered(spell), numbered(int), strict=True))
        ]
        if ending == ".parquet":
            rows = numbered(spell)
        files = ready(tmp_path, ending, rows=rows, items=None) | {"items": "numbers.jsonl"}
        dataset = load(tmp_path, files)
        assert {user for table in dataset.tables.values() for user in table.user_ids} == {*map(str, range(6))}
        tables.append(rows_of(dataset))
    assert tables[0] == tables[1] == tables[2]
    wanted = rows_of(load(tmp_path, ready(tmp_path)))
    for key, found in tables[0].items():
        assert [(f"u{user}", f"i{target}") for user, _, target, _, _ in found] == [(r[0], r[2]) for r in wanted[key]]


def test_ids_that_are_no_whole_numbers_keep_their_spelling(tmp_path):
    names = ["007", "7", "1e5", "1.10", "1.1", "1.0", "9007199254740993", "9007199254740992", "0x10", "00", "-3", "+3"]
    rows = [
        {"user_id": f"u{user}", "target": name, "timestamp": 1_700_000_000 + n}
        for user in range(2)
        for n, name in enumerate(names)
    ]
    for ending in (".csv", ".jsonl"):
        dataset = load(tmp_path, ready(tmp_path, ending, rows=rows, items=None) | {"items": None}, num_negatives=0)
        assert sorted(dataset.item_ids()) == sorted(names)


def test_a_query_that_a_left_out_row_names_is_known_by_the_catalogues_spelling(tmp_path):
    # The row without a user is left out; what its query led to is no negative of that query all the same.
    rows = numbered("{}.0".format) + [numbered("{}.0".format)[0] | {"user_id": "", "target": "29.0"}]
    query = next(row["query"] for row in rows if row["query"])
    rows[-1] |= {"query": query, "task": "src"}
    (tmp_path / "numbers.jsonl").write_text("".join(f'{{"item_id": {n}, "title": "thing {n}"}}\n' for n in range(30)))
    files = ready(tmp_path, rows=rows) | {"items": "numbers.jsonl"}
    dataset = load(tmp_path, files, max_bad_fraction=0.1, num_negatives=8)
    against = [row[4] for row in rows_of(dataset)["test", "src"] if row[3] == query]
    assert against
    assert not any("29" in negatives for negatives in against)


@pytest.mark.parametrize("role", LISTS)
@pytest.mark.parametrize("mark", [" ", ",", "|", ";", "'", '"', "[", "(", "{", ", "])
def test_an_id_of_the_catalogue_is_never_divided(role, mark):
    known = KnownIds([f"A{mark}1", f"A{mark}2", "A", "1", f"{mark}B", "12"])
    single = role == "target"
    cells = [f"A{mark}1", f"A{mark}2", "A", f"{mark}B".strip() if mark == " " else f"{mark}B", "12.0"]
    ids, divided = lists_of(cells, known=known, single=single)
    assert ids[:3] == [[f"A{mark}1"], [f"A{mark}2"], ["A"]]
    assert divided == []
    if mark not in (" ", ", "):
        assert ids[3] == [f"{mark}B"]


def test_other_cells_are_divided_where_that_gives_known_ids_and_it_is_counted():
    known = KnownIds(["SKU 1", "SKU 2", "x,y", "z"])
    ids, divided = lists_of(["SKU 1, SKU 2", "SKU 1|x,y|z", "z SKU", "SKU 3"], known=known)
    assert ids == [["SKU 1", "SKU 2"], ["SKU 1", "x,y", "z"], ["z", "SKU"], ["SKU 3"]]
    assert divided == [0, 1, 2]
    # Without a catalogue a target is one id, a history is divided.
    assert lists_of(["sku3 rev3", "b"], single=True) == ([["sku3 rev3"], ["b"]], [])
    assert lists_of(["1 2", "b"]) == ([["1", "2"], ["b"]], [0])


def test_separators_end_the_guessing(tmp_path):
    assert lists_of(["a b|c", "[1, 2]"], separator="|") == ([["a b", "c"], ["[1, 2]"]], [])
    assert lists_of(["a b|c"], separator="") == ([["a b|c"]], [])
    rows = [row | {"target": f"{row['target']} new"} for row in log()]
    said = load(tmp_path, ready(tmp_path, rows=rows) | {"items": None}).card["remarks"]
    assert any("60 cells of target hold spaces, commas" in line and "(files.separators)" in line for line in said)
    files = ready(tmp_path, rows=rows, separators={"target": ""}) | {"items": None}
    assert not any("cells of target" in line for line in load(tmp_path, files).card["remarks"])
    with pytest.raises(ValueError, match=r"files\.separators names 'targt'; roles of lists are target, history"):
        load(tmp_path, files | {"separators": {"targt": "|"}})


def test_dates_of_several_forms_are_the_same_moment():
    forms = ["2023-11-14T23:13:00", "2023/11/14 23:13", "14.11.2023 23:13", "2023-11-15 01:13:00+02:00",
             "2023-11-14 23:13:00 UTC", "20231114231300", "202311142313", "14/Nov/2023:23:13:00 +0000",
             "Tue, 14 Nov 2023 23:13:00 +0000"]  # fmt: skip
    assert [seconds([text])[0] for text in forms] == [stamp("2023-11-14T23:13")] * len(forms)


def test_a_date_that_can_be_read_in_two_ways_is_refused_until_the_options_say_which(tmp_path):
    times = read_times(["05/01/2024", "14/11/2023 23:13", "01-02-2024", "2024-01-05"])
    assert times.unclear.tolist() == [True, True, True, False]
    assert seconds(["05/01/2024"], "%d/%m/%Y") == [stamp("2024-01-05")]
    assert seconds(["05/01/2024"], "%m/%d/%Y") == [stamp("2024-05-01")]
    dates = {row["timestamp"]: f"{1 + n % 28:02}/01/2024" for n, row in enumerate(log())}
    files = ready(tmp_path, rows=[row | {"timestamp": dates[row["timestamp"]]} for row in log()])
    with pytest.raises(ValueError, match=r"60 times the timestamp is a date whose day and month .*files\.time_format"):
        load(tmp_path, files)
    read = load(tmp_path, files | {"time_format": "%d/%m/%Y"}, max_bad_fraction=0.5)
    assert sum(len(table) for table in read.tables.values()) > 30


def test_columns_of_numbers_that_are_dates_are_read_as_dates_and_said(tmp_path):
    days = sorted({row["timestamp"] for row in log()})
    for spell, unit in (
        (lambda day: 20231101 + day % 28 + 100 * (day // 28), "date"),
        (lambda day: 45000 + day, "days"),
    ):
        rows = [row | {"timestamp": spell(days.index(row["timestamp"]))} for row in untold()]
        dataset = load(tmp_path, ready(tmp_path, rows=rows[-20:] if unit == "date" else rows))
        times = np.concatenate([table.time for table in dataset.tables.values()])
        assert times.min() > 1_600_000_000
        assert any("60 timestamps" in line or "20 timestamps" in line for line in dataset.card["remarks"])


def test_rows_that_share_their_time_are_said_with_their_count(tmp_path):
    rows = [row | {"timestamp": 1_700_000_000} for row in log()]
    said = load(tmp_path, ready(tmp_path, rows=rows)).card["remarks"]
    assert any(
        line.startswith("60 rows share their timestamp")
        and "all histories are empty" in line
        and "timestamp: ''" in line
        for line in said
    )
    in_order = load(tmp_path, ready(tmp_path, rows=log()[::-1], columns={"timestamp": ""}))
    found, wanted = (rows_of(dataset) for dataset in (in_order, load(tmp_path, ready(tmp_path))))
    assert {key: sorted(map(str, rows)) for key, rows in found.items()} == {
        key: sorted(map(str, rows)) for key, rows in wanted.items()
    }


def test_copies_of_rows_and_of_catalogue_lines_are_counted_apart(tmp_path):
    wanted = rows_of(load(tmp_path, ready(tmp_path)))
    files = ready(tmp_path, rows=log() * 2)
    with (tmp_path / "items.csv").open("a") as file:
        file.write("i3,thing 3,brand 0\n")
    dataset = load(tmp_path, files)
    assert rows_of(dataset) == wanted
    assert dataset.card["copies"] == {"row": 60, "item": 1}
    assert dataset.card["quarantined"] == {}


def test_too_few_searches_are_said_so(tmp_path):
    rows = [row | {"query": row["query"] if row["timestamp"] > 1_700_000_800 else None} for row in untold()]
    with pytest.raises(ValueError, match=r"table valid/src is empty: no user has 3 searches.*there are 6 by 6 users"):
        load(tmp_path, ready(tmp_path, rows=rows))


def test_a_catalogue_with_other_names_of_columns_is_told_where_to_name_them(tmp_path):
    files = ready(tmp_path)
    text = (tmp_path / "items.csv").read_text()
    (tmp_path / "items.csv").write_text(text.replace("item_id,title", "sku,name", 1))
    with pytest.raises(ValueError, match=r"no column 'item_id' for item_id; it has 'sku'.*in files\.item_columns"):
        load(tmp_path, files)
    assert len(load(tmp_path, files | {"item_columns": {"item_id": "sku", "title": "name"}}).items) == 30
    with pytest.raises(ValueError, match=r"files\.columns.*'item_id'.*files\.item_columns"):
        load(tmp_path, files | {"columns": {"item_id": "sku"}, "item_columns": {"item_id": "sku", "title": "name"}})


def test_an_item_whose_title_has_no_token_is_named_before_training():
    items = [Item("a", "kettle"), Item("b 7", "\u2028"), Item("c", "\u2029")]
    dataset = SimpleNamespace(items=items)
    message = r"no token in the title '\\u2028' of item 'b 7' nor in those of 1 more items.*items\.init to random"
    with pytest.raises(ValueError, match=message):
        stages._check_titles(dataset, [[5], [], []])
    stages._check_titles(dataset, [[5], [6], [7]])


def test_rows_of_items_that_the_catalogue_lost_are_counted_apart_from_unknown_ids(tmp_path):
    rows = [row | {"target": "lost" if n in (3, 4) else "nowhere" if n == 5 else row["target"]}
            for n, row in enumerate(log())]  # fmt: skip
    files = ready(tmp_path, rows=rows)
    items = (tmp_path / "items.csv").read_text()
    (tmp_path / "items.csv").write_text(items + "lost,,without a title\n")
    with pytest.raises(
        ValueError, match=r"(?s)1 of 31 rows of kind 'item'.*\(row 1 of a CSV file is the one below its"
    ):
        load(tmp_path, files)
    card = load(tmp_path, files, max_bad_fraction=0.2).card
    assert card["quarantined"] == {
        "item: it has no title": 1,
        "target: the item was left out of the catalogue (counted among the items)": 2,
        "target: the item is not in the catalogue": 1,
    }
