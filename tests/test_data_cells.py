"""Cells and pickles from strangers: read as data, never run."""

import ast
import collections
import datetime
import json
import math
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gems_jax.data.cells import parse_cell
from gems_jax.data.plain_pickle import load_plain

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300)
@given(plain)
def test_what_json_and_python_write_reads_back(value):
    assert parse_cell(json.dumps(value)) == value
    written = repr(value)
    assert parse_cell(written) == ast.literal_eval(written)


def test_numpys_way_of_printing_needs_no_commas():
    assert parse_cell(str(np.arange(500))) == list(range(500))
    assert parse_cell("[ 1.5 -2.  nan]")[:2] == [1.5, -2.0]
    details = np.asarray([{"note_idx": 1, "page_time": math.nan, "note": "it's"}, {"note_idx": 2, "page_time": 0.5}])
    first, second = parse_cell(str(details))
    assert math.isnan(first.pop("page_time"))
    assert [first, second] == [{"note_idx": 1, "note": "it's"}, {"note_idx": 2, "page_time": 0.5}]


def test_nan_inside_text_stays_text():
    assert parse_cell("[{'a': 'nan', 'b': 'None } {', 'c': None, 'd': True}]") == [
        {"a": "nan", "b": "None } {", "c": None, "d": True}
    ]
    assert math.isnan(parse_cell("{'a': nan}")["a"])
    assert parse_cell("[-inf, 1e3, -7, ('x', 2)]") == [-math.inf, 1000.0, -7, ["x", 2]]
    assert parse_cell(r"'a\n\'b\u00e9'") == "a\n'bé"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "open('x')", "[1, 2", "{'a': 1", "{'a'}", "{'a' 1}", "{'a': 1 'b': 2}",
        "1 + 1", "[x for x in y]", "", "[1] [2]", "lambda: 0", "'open", "array([1, 2])", "[1, 2, ...]", "}",
    ],
)  # fmt: skip
def test_anything_but_a_value_is_an_error(text):
    with pytest.raises(ValueError, match=r"at character|it ends"):
        parse_cell(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 50 + "]" * 50, "{'a':" * 5000 + "1" + "}" * 5000])
def test_deep_nesting_is_an_error_and_no_crash(text):
    with pytest.raises(ValueError, match="nested more than 16 deep"):
        parse_cell(text)


def written(tmp_path, value, protocol=pickle.DEFAULT_PROTOCOL):
    path = tmp_path / "table.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_are_imported_in_every_protocol(tmp_path, protocol):
    value = {
        0: {"user_id": 3, "item_list": ["1", "2"], "query": "naïve", "timestamp": math.inf, "none": None},
        1: collections.OrderedDict(a=(1, 2.5, True), b={1, 2}, c=frozenset("x")),
        2: collections.defaultdict(list, {"x": [1]}),
    }
    assert load_plain(written(tmp_path, value, protocol)) == value


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


class Evaluates:
    def __reduce__(self):
        return eval, ("open('ran', 'w')",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Runs(), "posix.system"),
        (Evaluates(), "builtins.eval"),
        ([{"a": Runs()}], "posix.system"),
        (np.arange(3), r"numpy\S*\._reconstruct"),
        (np.int64(3), r"numpy\S*\.scalar"),
        (datetime.date(2024, 1, 1), "datetime.date"),
        (getattr, "builtins.getattr"),
        (collections.Counter("ab"), "collections.Counter"),
        (bytearray(3), "builtins.bytearray"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_everything_else_is_refused_by_name_and_never_run(tmp_path, monkeypatch, value, name, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"table\.pkl cannot be imported: it names {name}, which is not a plain"):
        load_plain(written(tmp_path, value, protocol))
    assert not (tmp_path / "ran").exists()


def test_dotted_names_and_registered_codes_are_no_way_around(tmp_path):
    for code in (
        b"cbuiltins\nlist.__class__\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x0elist.__init__.x\x93.",
        b"\x82\x01.",
        b"P17\n.",
    ):
        (tmp_path / "x.pkl").write_bytes(code)
        with pytest.raises(ValueError, match="cannot be imported"):
            load_plain(tmp_path / "x.pkl")


def test_damaged_and_missing_pickles_are_named(tmp_path):
    path = written(tmp_path, list(range(1000)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"table\.pkl cannot be imported"):
        load_plain(path)
    path.write_text("no pickle")
    with pytest.raises(ValueError, match=r"table\.pkl cannot be imported"):
        load_plain(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pkl does not exist"):
        load_plain(tmp_path / "nowhere.pkl")
