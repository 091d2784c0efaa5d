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

from gems_jax.data.raw.cells import parse_cell
from gems_jax.data.raw.plain_pickle import load_plain

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


def nested(kind, depth=40):
    found = kind(["a"])
    for _ in range(depth):
        found = kind([found, found])
    return found


def code_of(*operations):
    """A pickle of a dictionary whose only key is what the operations leave."""
    return b"\x80\x04}(" + b"".join(operations) + b"K\x01u."


# The pair of the memo's last object with itself, and what is memoised of it: by its operation, or behind a detour.
PAIRS = [b"h%c\x86" % n for n in range(40)]
BOMBS = {
    "a tuple": (pickle.dumps([{"user_id": nested(tuple)}]), "refers to earlier tuples or sets more than 16 times"),
    "a tuple as protocol 0": (pickle.dumps([nested(tuple)], 0), "refers to earlier tuples or sets more than 16 times"),
    "a list": (pickle.dumps([{"user_id": nested(list)}]), "written out it has more than 67,108,864 bytes"),
    "a key": (code_of(b"K\x01\x85\x94", *(pair + b"\x94" for pair in PAIRS)), "more than 16 times"),
    "a key, hidden": (code_of(b"K\x01\x85\x94", *(pair + b"K\x010\x94" for pair in PAIRS)), "more than 16 times"),
    "a key, copied": (code_of(b"K\x01\x85", b"2\x86" * 40), "copies from its stack"),
    "a long text": (pickle.dumps([["x" * 10**6] * 300]), "written out it has more than 200,"),
    "copies": (
        b"\x80\x02(]q\x00(" + b"K\x01" * 10**5 + b"ecbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85R" * 500 + b"l.",
        "copies containers over and over",
    ),
    "a memo": (b"\x80\x04K\x01r\xff\xff\xff\x7f.", "numbers its object 1 as 2,147,483,647"),
    "a frame": (b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"K\x01.", "is cut off"),
    "bytes": (b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"K\x01.", "only 3 remain"),
    "a number": (pickle.dumps([2**5000]), "a whole number of 5,001 bits"),
    "digits": (b"L" + b"9" * 10_000 + b"L\n.", "Exceeds the limit"),
    "depth": (b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".", "nested more than 64 deep"),
    "itself": (b"\x80\x02]q\x00h\x00a.", "nested more than 64 deep"),
    "nothing": (b"", "it is empty"),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_what_is_small_in_a_pickle_and_large_in_memory_is_refused(tmp_path, name):
    content, message = BOMBS[name]
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.pkl cannot be imported: .*{message}"):
        load_plain(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_rows_that_share_their_lists_and_texts_are_read(tmp_path, protocol):
    history, pair = [1, 2, 3], ("a", "b")
    value = {n: {"user_id": n, "item_list": history, "his_task": ["rec"] * 3, n: {n, -n}} for n in range(200)}
    value[-1] = [(pair, n) for n in range(10)]
    assert load_plain(written(tmp_path, value, protocol)) == value


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
