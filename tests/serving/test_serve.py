"""The service over loopback, by a real client: what it answers, refuses and counts, and that it loses no request."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import shop
from serving_client import Client, Echo, serving

from gems_jax.serving.http.limits import Limits
from gems_jax.serving.http.server import Server, read_token
from gems_jax.serving.requests import Request

ANN = {"user": "ann", "k": 3}


def test_answers_are_those_of_the_engine_and_no_call_compiles_a_program():
    engine = shop.Shop().engine
    cold = {"history": ["B1", "B2"], "k": 2, "deny": ["B3"]}
    calls = [
        ("/v1/recommend", ANN, Request("rec", user="ann", k=3)),
        ("/v1/recommend", cold, Request.of(cold)),
        ("/v1/search", ANN | {"query": "red shoe"}, Request("src", user="ann", query="red shoe", k=3)),
        ("/v1/search", {"query": "shoe", "k": 4}, Request("src", query="shoe", k=4)),
        ("/v1/rank", ANN | {"task": "rec", "allow": ["B0", "B5"]}, Request("rec", user="ann", k=3, allow=("B0", "B5"))),
    ]  # fmt: skip

    def agrees(found, request):
        (wanted,) = engine.rank([request])
        assert [item["item_id"] for item in found["items"]] == [item.item_id for item in wanted.items]
        for item, other in zip(found["items"], wanted.items, strict=True):
            assert (item["title"], item["known"]) == (other.title, other.known)
            assert item["score"] == pytest.approx(other.score, abs=1e-5)

    with serving(lambda: engine) as client:
        before = client.metric("gems_jax_compilations_total")
        for path, body, request in calls:
            status, _, found = client("POST", path, body)
            assert status == 200, found
            agrees(found, request)
        several = [body for path, body, _ in calls if path == "/v1/search"] * 3
        status, _, found = client("POST", "/v1/search", {"requests": several})
        assert (status, len(found["answers"])) == (200, 6)
        for answer, request in zip(found["answers"], [calls[2][2], calls[3][2]] * 3, strict=True):
            agrees(answer, request)
        with ThreadPoolExecutor(8) as pool:
            assert {status for status, *_ in pool.map(lambda call: client("POST", *call[:2]), calls * 4)} == {200}
        assert client.metric("gems_jax_compilations_total") == before
        assert client.metric("gems_jax_batch_size_count") > 0
        assert client("GET", "/v1/items/B3")[2] == {"item_id": "B3", "title": "thing 3", "text": ""}
        assert client("GET", "/v1/items/B99")[0] == 404
        assert client("GET", "/healthz")[2] == {"alive": True}
        description = client("GET", "/openapi.json")[2]
        assert {"/v1/recommend", "/v1/search", "/v1/rank", "/v1/reload", "/readyz"} <= set(description["paths"])
        assert description["components"]["schemas"]["Search"]["required"] == ["query"]
        assert "<code>POST /v1/search</code>" in client("GET", "/docs")[2]


def test_a_bad_call_is_refused_by_the_name_of_its_field():
    refused = [
        ("/v1/recommend", {"user": "nobody"}, ["user"], "no user 'nobody'"),
        ("/v1/recommend", {"history": ["B1", "x"]}, ["history"], "no item 'x'"),
        ("/v1/recommend", {}, ["user"], "give a user"),
        ("/v1/recommend", ANN | {"k": 5}, ["k"], "less than or equal to 4"),
        ("/v1/recommend", ANN | {"k": "3"}, ["k"], "integer"),
        ("/v1/recommend", ANN | {"query": "red"}, ["query"], "not permitted"),
        ("/v1/search", ANN, ["query"], "required"),
        ("/v1/search", ANN | {"query": " "}, ["query"], "the query is empty"),
        ("/v1/search", ANN | {"query": "x" * 2001}, ["query"], "at most 2000"),
        ("/v1/search", ANN | {"query": "\ud800"}, ["query"], ""),
        ("/v1/rank", ANN | {"task": "chat"}, ["task"], "never tuned for task 'chat'"),
        ("/v1/recommend", {"requests": [ANN, {"user": "nobody"}]}, ["requests", 1, "user"], "no user 'nobody'"),
        ("/v1/recommend", {"requests": [ANN] * 257}, ["requests"], "at most 256"),
        ("/v1/recommend", [ANN], [], "valid dictionary"),
    ]
    with serving(Echo) as client:
        for path, body, place, why in refused:
            status, _, found = client("POST", path, body)
            assert status == 422, (body, found)
            assert [one["loc"][: len(place)] for one in found["detail"]][0] == place
            assert why in found["detail"][0]["msg"]
        for body, headers, status in (
            (b"{oops", {}, 400),
            (b"[" * 100_000, {}, 400),
            (b"{}", {"Content-Type": "text/plain"}, 415),
            (b"x" * (1 << 20) + b"x", {}, 413),
            (b"{}", {"Content-Length": "9" * 15}, 413),
            (iter([b"x" * (1 << 16)] * 17), {}, 413),  # without a length
        ):
            assert client("POST", "/v1/recommend", body, headers)[0] == status
        assert client("GET", "/v1/recommend")[0] == 405
        assert client("GET", "/nothing")[0] == 404
        assert client("POST", "/v1/recommend", ANN)[0] == 200


def test_who_has_no_token_learns_nothing_but_that_the_service_lives(tmp_path):
    with serving(Echo, token="secret") as client:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer "}):
            for method, path in (("POST", "/v1/recommend"), ("GET", "/v1/items/B1"), ("GET", "/metrics")):
                status, headers, _ = client(method, path, ANN if method == "POST" else None, given)
                assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert client("POST", "/v1/recommend", ANN, {"Authorization": "Bearer secret"})[0] == 200
        assert client("GET", "/healthz")[0] == client("GET", "/readyz")[0] == 200
    (tmp_path / "token").write_text("secret\n")
    assert read_token(str(tmp_path / "token")) == "secret"
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ValueError, match="one word"):
        read_token(str(tmp_path / "token"))
    with pytest.raises(FileNotFoundError, match="write the token"):
        read_token(str(tmp_path / "no"))


def test_requests_that_come_together_are_ranked_together_and_those_for_whom_there_is_no_room_come_again():
    engine = Echo()
    with serving(lambda: engine, max_queue=4) as client, ThreadPoolExecutor(8) as pool:
        engine.gate.clear()
        first = pool.submit(client, "POST", "/v1/recommend", ANN)
        client.until(lambda: engine.batches == [1])
        others = [pool.submit(client, "POST", "/v1/recommend", ANN) for _ in range(4)]
        client.until(lambda: client.metric("gems_jax_waiting") == 4)
        status, headers, found = client("POST", "/v1/recommend", ANN)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "4 requests wait, and 4 may" in found["detail"]
        engine.gate.set()
        assert {future.result(60)[0] for future in (first, *others)} == {200}
    assert engine.batches == [1, 3, 1]


def test_a_slow_answer_is_given_up_by_itself_and_what_nobody_waits_for_is_not_ranked():
    engine = Echo()
    with serving(lambda: engine, timeout=1.0) as client, ThreadPoolExecutor(4) as pool:
        engine.gate.clear()
        slow = [pool.submit(client, "POST", "/v1/recommend", ANN)]
        client.until(lambda: engine.batches == [1])
        slow += [pool.submit(client, "POST", "/v1/recommend", ANN) for _ in range(2)]
        assert [future.result(60)[0] for future in slow] == [504, 504, 504]
        engine.gate.set()
        assert client("POST", "/v1/recommend", ANN)[0] == 200
    assert engine.batches == [1, 1]


def test_a_request_that_fails_takes_no_other_with_it():
    engine = Echo()
    with serving(lambda: engine) as client, ThreadPoolExecutor(4) as pool:
        engine.gate.clear()
        first = pool.submit(client, "POST", "/v1/search", {"query": "good"})
        client.until(lambda: engine.batches == [1])
        bad = pool.submit(client, "POST", "/v1/search", {"query": "poison"})
        good = pool.submit(client, "POST", "/v1/search", {"query": "good"})
        client.until(lambda: client.metric("gems_jax_waiting") == 2)
        engine.gate.set()
        assert [future.result(60)[0] for future in (first, bad, good)] == [200, 500, 200]
        assert bad.result()[2] == {"detail": "this query is poison"}


def test_a_new_model_takes_over_without_a_lost_request_and_one_that_cannot_be_loaded_does_not():
    engines = iter([Echo("old"), Echo("new"), ValueError("checkpoint 9 is damaged")])
    loading, go = threading.Event(), threading.Event()

    def load():
        engine = next(engines)
        loading.set()
        if isinstance(engine, Exception):
            raise engine
        assert engine.name == "old" or go.wait(60)
        return engine

    with serving(load) as client, ThreadPoolExecutor(8) as pool:
        loading.clear()
        answers, done = [], threading.Event()

        def ask():
            while not done.is_set():
                sent = time.monotonic()
                answer = client("POST", "/v1/search", {"query": "lamp"})
                answers.append((sent, time.monotonic(), *answer))

        asking = [pool.submit(ask) for _ in range(3)]
        reload = pool.submit(client, "POST", "/v1/reload", {})
        assert loading.wait(60)
        assert client("POST", "/v1/reload", {})[0] == 409
        assert client("POST", "/v1/search", {"query": "lamp"})[2]["items"][0]["title"] == "old lamp"
        go.set()
        status, _, said = reload.result(60)
        told = time.monotonic()
        assert (status, said) == (200, {"reloaded": True, "items": 12, "edited": ""})
        assert client("POST", "/v1/search", {"query": "lamp"})[2]["items"][0]["title"] == "new lamp"
        status, _, found = client("POST", "/v1/reload", {})
        assert (status, found["detail"]) == (500, "checkpoint 9 is damaged")
        assert client("POST", "/v1/search", {"query": "lamp"})[2]["items"][0]["title"] == "new lamp"
        done.set()
        assert all(future.result(60) is None for future in asking)
        assert {status for _, _, status, _, _ in answers} == {200}
        titles = [found["items"][0]["title"] for *_, found in answers]
        assert set(titles) <= {"old lamp", "new lamp"}
        # The threads may put down their answers in another order, but who asks after a new one came gets a new one.
        came = min([told] + [at for (_, at, *_), title in zip(answers, titles, strict=True) if title == "new lamp"])
        assert all(sent < came for (sent, *_), title in zip(answers, titles, strict=True) if title == "old lamp")


def test_a_model_that_cannot_be_loaded_ends_the_service():
    def load():
        raise ValueError("checkpoint 9 is damaged")

    server = Server(load, Limits(), port=0)
    with pytest.raises(ValueError, match="checkpoint 9 is damaged"):
        server.run()


PROCESS = """
import signal, sys
from serving_client import Echo, Limits, Server
signal.signal(signal.SIGTERM, lambda *_: None)
made = []
def load():
    made.append(Echo(f"model {len(made)}", seconds=1.0))
    return made[-1]
server = Server(load, Limits(batch_size=2, max_k=4), port=0)
print(server.url, flush=True)
server.run()
print("drained", flush=True)
"""


def test_a_process_reloads_on_sighup_and_answers_what_was_asked_before_sigterm():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROCESS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process, ThreadPoolExecutor(8) as pool:
        try:
            client = Client(type("", (), {"url": process.stdout.readline().strip()}))
            client.until(lambda: client("GET", "/readyz")[0] == 200)
            process.send_signal(signal.SIGHUP)
            title = lambda: client("POST", "/v1/search", {"query": "lamp"})[2]["items"][0]["title"]  # noqa: E731
            client.until(lambda: title() == "model 1 lamp")
            asked = [pool.submit(client, "POST", "/v1/search", {"query": "lamp"}) for _ in range(5)]
            client.until(lambda: client.metric("gems_jax_waiting") >= 1)
            process.send_signal(signal.SIGTERM)
            assert {future.result(60)[0] for future in asked} == {200}
            assert process.wait(60) == 0
            assert process.stdout.read() == "drained\n"
        finally:
            process.kill()
