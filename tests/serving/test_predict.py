"""Files of requests: any format in, answers in their order, bad rows set aside, and the same bytes after a kill."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import shop
from pyarrow import parquet
from shop import Shop

from gems_jax.data.dataset.tables import Item
from gems_jax.serving import prediction_files
from gems_jax.serving.answer_lines import AnswerLines, number_texts
from gems_jax.serving.answers import Found
from gems_jax.serving.catalogue import Catalogue
from gems_jax.serving.predict import predict
from gems_jax.serving.request_files import read_requests
from gems_jax.serving.requests import Request
from gems_jax.staging import as_path

REQUESTS = [
    {"id": "first", "user": "ann", "k": 2},
    {"history": ["B1", "B2"], "query": "red shoe", "k": 3},
    {"user": "nobody"},
    {"id": 7, "user": "bob", "deny": ["B3"], "k": 4, "allow": ["B1", "B3", "B5"]},
    {"user": "bob", "task": "src"},
    {"history": [], "query": "shoe", "k": 1},
]


class Echo:
    """Answers without a model: with the items that a request may choose from or leaves out."""

    def __init__(self, kill_at=None):
        self.catalogue = Catalogue(shop.dataset(), shop.TEMPLATES)
        self.parts, self.kill_at = 0, kill_at

    def send(self, rankings):
        return rankings

    def receive(self, rankings):
        self.parts += 1
        if self.parts == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        lists = [one.listed.tolist() for one in rankings]
        return [Found(items, [-0.1 * item for item in items], [False] * len(items)) for items in lists]


def write_lines(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_requests_are_answered_in_their_order_and_bad_ones_set_aside_with_the_reason(tmp_path):
    requests = write_lines(
        tmp_path / "requests.jsonl", [*REQUESTS[:2], "{oops\n", *REQUESTS[2:], '{"user": "\\ud800"}\n']
    )
    engine = Shop().engine
    done = predict(engine, requests, tmp_path / "out.jsonl", part=3)
    assert (done.answered, dict(done.left_out)) == (4, {"it is malformed JSON": 1, "user": 2, "query": 1})
    answers = lines(tmp_path / "out.jsonl")
    assert [(answer["row"], answer.get("id"), len(answer["items"])) for answer in answers] == [
        (1, "first", 2), (2, None, 3), (5, 7, 2), (7, None, 1),
    ]  # fmt: skip
    by_hand = engine.rank([Request.of(REQUESTS[1])])[0].as_json()["items"]
    assert [item["item_id"] for item in answers[1]["items"]] == [item["item_id"] for item in by_hand]
    left_out = lines(tmp_path / "out.jsonl.quarantine.jsonl")
    assert [row["row"] for row in left_out] == [3, 4, 6, 8]
    assert "no user 'nobody'" in left_out[1]["reason"]
    assert left_out[1]["detail"].startswith('{"id": null, "task": null, "user": "nobody"')
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.jsonl",
        "out.jsonl.quarantine.jsonl",
        "requests.jsonl",
    ]


def test_csv_and_parquet_hold_the_same_requests_as_json_lines(tmp_path):
    rows = [REQUESTS[number] for number in (0, 1, 3)]
    as_lines = write_lines(tmp_path / "r.jsonl", rows)
    cells = ["first,ann,,,2,,", ',,"[""B1"", ""B2""]",red shoe,3,,', "7,bob,,,4,B1 B3;B5,B3"]
    (tmp_path / "r.csv").write_text("\n".join(["id,user,history,query,k,allow,deny", *cells, ""]))
    names = ("id", "user", "history", "query", "k", "allow", "deny")
    table = [{name: row.get(name) for name in names} | {"id": str(row.get("id", ""))} for row in rows]
    parquet.write_table(pa.Table.from_pylist(table), tmp_path / "r.parquet")
    for path in (as_lines, tmp_path / "r.csv", tmp_path / "r.parquet"):
        predict(Echo(), path, path.with_name(f"{path.name}.out.jsonl"))
    wanted = [answer["items"] for answer in lines(as_lines.with_name("r.jsonl.out.jsonl"))]
    for path in (tmp_path / "r.csv", tmp_path / "r.parquet"):
        assert [answer["items"] for answer in lines(path.with_name(f"{path.name}.out.jsonl"))] == wanted, path
    predict(Echo(), as_lines, tmp_path / "out.parquet")
    found = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["items"] for row in found] == wanted
    assert [row["id"] for row in found] == ["first", None, "7"]


def test_lines_are_those_of_json_dumps_whatever_titles_ids_notes_and_scores_hold():
    titles = ('a "red"\nlamp\\ {x}', "\u706f \U0001f642", "")
    items = [Item(f"B{n}", title) for n, title in enumerate(titles)]
    known = [False, True, False]
    scores = [-1.1920928955078125e-07, float("-inf"), -12.0]
    of_rows = [Found([0], scores[:1], known[:1]), Found([2, 0, 1], scores, known, ('"cut"',)), Found([], [], [])]
    heads = [(1, 'x"'), (2, None), (3, 7)]
    wanted = [
        json.dumps({"row": row} | ({} if name is None else {"id": name}) | found.answer(items).as_json())
        for (row, name), found in zip(heads, of_rows, strict=True)
    ]
    assert AnswerLines(items).of(heads, of_rows) == wanted


def test_scores_of_any_size_are_written_as_json_dumps_writes_them():
    random = np.random.default_rng(0)
    sizes = 10.0 ** random.uniform(-20, 20, 5_000)
    exact = [0.0, -0.0, 1e-4, 9.999e-5, 1e9, 999999999.5, 1e16, 5e-324, float("inf"), float("nan")]
    numbers = [*exact, *sizes, *np.float32(-sizes).tolist(), *np.round(random.normal(0, 9, 5_000), 2), *range(9)]
    values = [float(number) for number in numbers]
    assert number_texts(values) == [json.dumps(value) for value in values]


def test_a_file_is_answered_with_the_bytes_of_its_requests_ranked_together(tmp_path):
    engine = Shop().engine
    users = [{"user": "ann"}, {"history": ["B1", "B2", "B1"]}, {"user": "bob", "k": 9}, {"user": "ann", "deny": ["B0"]}]
    searches = [{"query": text} for text in ("red shoe", "red shoe", "\u706f", "</s> red", "red " * 30)]
    searches += [
        {"user": "bob", "query": "shoe", "allow": ["B1", "B3", "B5"]},
        {"history": [], "query": "shoe", "k": 1},
    ]
    requests = [one | {"id": name} for name, one in enumerate([*users, *searches])]
    written = write_lines(tmp_path / "r.jsonl", requests)
    answers = engine.rank([Request.of({k: v for k, v in one.items() if k != "id"}) for one in requests])
    wanted = "".join(
        json.dumps({"row": name + 1, "id": name} | answer.as_json()) + "\n" for name, answer in enumerate(answers)
    )
    assert sum(bool(answer.notes) for answer in answers) == 2
    for again in ("first.jsonl", "second.jsonl"):
        predict(engine, written, tmp_path / again)
        assert (tmp_path / again).read_text() == wanted


KILLED = """
import sys
from gems_jax.staging import as_path
from test_predict import Echo, predict
predict(Echo(kill_at=int(sys.argv[3])), as_path(sys.argv[1]), as_path(sys.argv[2]), part=2)
"""


def killed(requests, out, part):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    command = [sys.executable, "-c", KILLED, str(requests), str(out), str(part)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, name, monkeypatch):
    requests = write_lines(tmp_path / "r.jsonl", REQUESTS)
    whole = tmp_path / "whole"
    whole.mkdir()
    predict(Echo(), requests, whole / name, part=2)
    out = tmp_path / name
    if name == "out.jsonl":
        killed(requests, out, 2)
    else:  # killed before the files have their names
        monkeypatch.setattr(prediction_files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict(Echo(), requests, out, part=2)
        monkeypatch.undo()
    assert not out.exists()
    half = tmp_path / f".{name}.part"
    if half.exists():
        with half.open("a") as file:
            file.write('{"row": 99, "items": [{"item')  # of a part that was cut short
    engine = Echo()
    done = predict(engine, requests, out, part=2)
    assert engine.parts == (2 if name == "out.jsonl" else 3)
    assert (done.answered, done.left_out.total()) == (4, 2)
    for path in (name, f"{name}.quarantine.jsonl"):
        assert (tmp_path / path).read_bytes() == (whole / path).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_what_was_begun_with_other_requests_or_another_model_is_not_gone_on_with(tmp_path):
    requests = write_lines(tmp_path / "r.jsonl", REQUESTS)

    class Stopped(Echo):
        def receive(self, rankings):
            if self.parts:
                raise KeyboardInterrupt
            return super().receive(rankings)

    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        predict(Stopped(), requests, out, "step 8", part=2)
    with pytest.raises(ValueError, match=r"begun with another value of model: remove .*\.out\.jsonl\.state\.json"):
        predict(Echo(), requests, out, "step 9", part=2)
    write_lines(requests, REQUESTS[1:])
    with pytest.raises(ValueError, match="another value of requests"):
        predict(Echo(), requests, out, "step 8", part=2)


def test_the_next_part_is_on_its_way_before_answers_are_waited_for(tmp_path):
    order = []

    class Noted(Echo):
        def send(self, rankings):
            order.append("send")
            return super().send(rankings)

        def receive(self, rankings):
            order.append("receive")
            return super().receive(rankings)

    requests = write_lines(tmp_path / "r.jsonl", REQUESTS)
    predict(Noted(), requests, tmp_path / "out.jsonl", part=2)
    assert order == ["send", "send", "receive", "send", "receive", "receive"]


def test_files_that_cannot_be_are_named_before_any_work(tmp_path):
    requests = write_lines(tmp_path / "r.jsonl", [{"user": "nobody"}])
    (tmp_path / "there.jsonl").write_text("")
    for path, out, said in (
        (tmp_path / "no.jsonl", "out.jsonl", "does not exist"),
        (requests, "there.jsonl", "is there already"),
        (requests, "out.csv", "must end in .jsonl or .parquet"),
        (requests, "no/out.jsonl", "there is no folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            predict(None, path, tmp_path / out)
    with pytest.raises(ValueError, match="none of the 1 rows .*quarantine.jsonl has the reason"):
        predict(Echo(), requests, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(ValueError, match="the column 'qeury', which no request has"):
        list(read_requests(write_lines(tmp_path / "typo.jsonl", [{"user": "ann", "qeury": "red"}])))


@pytest.fixture
def store(bucket, request):
    return bucket / request.node.name.partition("[")[0]


def test_a_killed_run_on_an_object_store_goes_on_to_the_bytes_of_one_here(tmp_path, store, faults):
    requests = write_lines(tmp_path / "r.jsonl", REQUESTS)
    (store / "r.jsonl").write_bytes(requests.read_bytes())
    for name in ("out.jsonl", "out.parquet"):
        predict(Echo(), requests, tmp_path / name, part=2)
    out = store / "out.jsonl"
    killed(store / "r.jsonl", out, 2)
    assert store.names() == [".out.jsonl.parts/00000000.answers", ".out.jsonl.state.json", "r.jsonl"]
    (store / ".out.jsonl.parts" / "00000001.answers").write_text('{"row": 99}\n')  # of a part that was cut short
    engine = Echo()
    faults.next += ["503 Slow Down", "cut"]
    done = predict(engine, store / "r.jsonl", out, part=2)
    assert engine.parts == 2
    assert (done.answered, done.left_out.total()) == (4, 2)
    predict(Echo(), store / "r.jsonl", store / "out.parquet", part=2)
    names = [f"{name}{more}" for name in ("out.jsonl", "out.parquet") for more in ("", ".quarantine.jsonl")]
    assert store.names() == sorted([*names, "r.jsonl"])
    for name in names:
        assert (store / name).read_bytes() == (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=f"--out {out} is there already: remove it"):
        predict(engine, store / "r.jsonl", out)


def test_answers_on_a_store_that_fails_are_gone_on_with_and_an_error_names_the_address(
    tmp_path, store, faults, monkeypatch
):
    requests = write_lines(tmp_path / "r.jsonl", REQUESTS)
    out = store / "out.jsonl"
    with pytest.raises(FileNotFoundError, match=f"--requests {store}/none.jsonl does not exist"):
        predict(Echo(), store / "none.jsonl", out)
    with pytest.raises(OSError, match="s3://nowhere/out.jsonl cannot be listed .*NoSuchBucket"):
        predict(Echo(), requests, as_path("s3://nowhere/out.jsonl"))

    class Failing(Echo):
        def receive(self, rankings):
            faults.next += ["503 Slow Down"] * 100 if self.parts else []
            return super().receive(rankings)

    with pytest.raises(OSError, match=f"{store}/.out.jsonl.parts/00000001.answers cannot be written"):
        predict(Failing(), requests, out, "step 9", part=2)
    faults.next.clear()
    assert not out.exists()
    with pytest.raises(ValueError, match=f"{out} was begun with another value of model: remove {store}/.out.jsonl.st"):
        predict(Echo(), requests, out, "step 8", part=2)
    state = (store / ".out.jsonl.state.json").read_text()
    (store / ".out.jsonl.state.json").write_text(state[:-9])
    with pytest.raises(ValueError, match=rf"{store}/.out.jsonl.state.json is damaged"):
        predict(Echo(), requests, out, "step 9", part=2)
    (store / ".out.jsonl.state.json").write_text(state)
    monkeypatch.setattr("gems_jax.serving.stored_predictions.LARGEST", 10)
    with pytest.raises(ValueError, match=f"--out {out} would have more than 10 bytes, which a store takes at once"):
        predict(Echo(), requests, out, "step 9", part=2)
    monkeypatch.undo()
    engine = Echo()
    assert predict(engine, requests, out, "step 9", part=2).answered == 4
    assert engine.parts == 2
    predict(Echo(), requests, tmp_path / "out.jsonl", "step 9", part=2)
    assert out.read_bytes() == (tmp_path / "out.jsonl").read_bytes()
