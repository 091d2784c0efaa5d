"""A service that runs long, is killed under load, and is ended under load: what its users see.

    OPENBLAS_NUM_THREADS=1 python benchmarks/serve_endurance.py --workdir runs/demo/gems \\
        --out benchmarks/results/serve_endurance.json

``gems-jax serve`` runs as a process of its own. ``--users`` threads, each with a connection of its own, ask one request
after the other; what a request is to be answered with was asked before, one at a time. An answer is right if it has
these items in this order, scores within 1e-3; items whose scores are nearer to each other than 1e-4 may change places.

* ``long``: ``--requests`` requests, or as many as ``--seconds`` let through. The memory of the server is read at the
  start, when all that is made once was made by ``--before`` requests, and with every tenth of the time.
* ``killed``: under the same load the server gets SIGKILL and is started again, twice. Calls that are not answered
  belong to the time between the kill and the first answer of the new process; all others are to be right.
* ``ended``: under the same load the server gets SIGTERM. What it had read is to be answered; then it is gone.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from result_file import circumstances, write
from serve import PATHS, get, memory, task_of

NEAR, ALIKE = 1e-4, 1e-3


class Call(NamedTuple):
    """A call that has ended: when it began and ended, on the clock of this process, and what came of it."""

    begun: float
    ended: float
    what: str


class Service:
    """``gems-jax serve`` at a port of its own."""

    def __init__(self, workdir: Path, batch_size: int):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        options = {"workdir": workdir, "port": self.port, "batch_size": batch_size, "timeout": 120}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._command = [sys.executable, "-m", "gems_jax.cli", "serve", *words]
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        return self.process

    def wait(self) -> None:
        """Until it is ready."""
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended with {self.process.returncode}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if get(self.url, "/readyz")[0] == 200:
                    return
            time.sleep(0.1)


def requests_of(service: Service, count: int) -> list[dict[str, Any]]:
    """Recommendations and searches in turn, for users that the service names and words of titles."""
    users = json.loads(get(service.url, "/v1/users?like=")[1])["users"]
    titles = [item["title"] for item in json.loads(get(service.url, "/v1/items?like=")[1])["items"]]
    pairs = itertools.islice(itertools.cycle(itertools.product(users, titles)), count)
    return [{"user": user} | ({"query": title} if number % 2 else {}) for number, (user, title) in enumerate(pairs)]


def ask(connection: http.client.HTTPConnection, request: dict[str, Any]) -> tuple[int, Any]:
    connection.request("POST", PATHS[task_of(request)], json.dumps(request), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    return answer.status, json.loads(content)


def is_right(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> bool:
    """Whether an answer has the items that it is to have."""
    if len(expected) != len(found):
        return False
    scores = {item["item_id"]: item["score"] for item in expected}
    for ours, theirs in zip(expected, found, strict=True):
        if abs(ours["score"] - theirs["score"]) > ALIKE:
            return False
        if ours["item_id"] != theirs["item_id"]:
            other = scores.get(theirs["item_id"], expected[-1]["score"])
            if abs(other - ours["score"]) > NEAR:
                return False
    return True


class Load:
    """Threads that ask until they are told to stop, or until a number of calls have been made."""

    def __init__(
        self, service: Service, requests: list[dict[str, Any]], expected: list[Any], users: int, most: int | None = None
    ):
        self._service, self._requests, self._expected = service, requests, expected
        self._numbers: Iterator[int] = iter(range(most)) if most is not None else itertools.count()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self.calls: list[Call] = []
        self._threads = [threading.Thread(target=self._user) for _ in range(users)]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> list[Call]:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        return self.calls

    def _user(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=300)
        while not self._stopped.is_set():
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                break
            place = number % len(self._requests)
            begun = time.perf_counter()
            try:
                status, content = ask(connection, self._requests[place])
                what = str(status)
                if status == 200:
                    what = "right" if is_right(self._expected[place], content["items"]) else "wrong"
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                what = type(error).__name__
            self.calls.append(Call(begun, time.perf_counter(), what))
            if what not in ("right", "wrong"):
                time.sleep(0.05)
        connection.close()


def long(service: Service, load: Load, seconds: float, before: int) -> dict[str, Any]:
    """The load until it ends, or for some time."""
    while load.running and len(load.calls) < before:
        time.sleep(0.1)
    begun, first, samples = time.perf_counter(), len(load.calls), [memory(service.process.pid)]
    while load.running and time.perf_counter() - begun < seconds:
        time.sleep(0.2)
        if time.perf_counter() - begun >= len(samples) * seconds / 10:
            samples.append(memory(service.process.pid))
    took, counted = time.perf_counter() - begun, len(load.calls) - first
    calls = load.stop()
    samples.append(memory(service.process.pid))
    cut = statistics.quantiles([call.ended - call.begun for call in calls], n=100, method="inclusive")
    return {
        "requests": len(calls),
        "outcomes": Counter(call.what for call in calls),
        "requests_per_second": counted / took,
        "milliseconds": {f"p{share}": 1e3 * cut[share - 1] for share in (50, 95, 99)},
        "seconds": took,
        "memory_bytes": samples,
    }


def killed(service: Service, load: Load, pause: float) -> dict[str, Any]:
    """SIGKILL and a new process, twice, with some time of load before and after."""
    gaps = []
    for _ in range(2):
        time.sleep(pause)
        at = time.perf_counter()
        service.process.kill()
        service.process.wait()
        service.start()
        service.wait()
        gaps.append((at, time.perf_counter()))
    time.sleep(pause)
    calls = load.stop()
    bad = [call for call in calls if call.what != "right"]
    outside = [call for call in bad if not any(at <= call.ended and call.begun <= until for at, until in gaps)]
    after = sum(call.what == "right" and call.begun > gaps[-1][1] for call in calls)
    return {
        "requests": len(calls),
        "outcomes": Counter(call.what for call in calls),
        "not_right_outside_the_gaps": Counter(call.what for call in outside),
        "right_after_the_last": after,
        "gap_seconds": [until - at for at, until in gaps],
    }


def ended(service: Service, load: Load, pause: float) -> dict[str, Any]:
    """SIGTERM under load."""
    time.sleep(pause)
    at = time.perf_counter()
    service.process.send_signal(signal.SIGTERM)
    code = service.process.wait()
    gone = time.perf_counter()
    time.sleep(0.2)
    calls = load.stop()
    waiting = [call for call in calls if call.begun < at <= call.ended]
    return {
        "exit_code": code,
        "seconds_until_it_was_gone": gone - at,
        "outcomes_before": Counter(call.what for call in calls if call.ended < at),
        "outcomes_of_what_was_asked_before_and_open": Counter(call.what for call in waiting),
        "outcomes_of_what_was_asked_after": Counter(call.what for call in calls if call.begun >= at),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a tuned run")
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--seconds", type=float, default=600, help="most time of the long load")
    parser.add_argument("--before", type=int, default=500, help="requests before memory is read first")
    parser.add_argument("--pause", type=float, default=10, help="seconds of load before and after a kill")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    service = Service(args.workdir, args.batch_size)
    parts: dict[str, Any] = {}
    try:
        service.wait()
        requests = requests_of(service, 100)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=300)) as connection:
            expected = [ask(connection, request)[1]["items"] for request in requests]

        def users(most: int | None = None) -> Load:
            return Load(service, requests, expected, args.users, most)

        for name, part in (
            ("long", lambda: long(service, users(args.requests), args.seconds, args.before)),
            ("killed", lambda: killed(service, users(), args.pause)),
            ("ended", lambda: ended(service, users(), args.pause)),
        ):
            parts[name] = part()
            print(json.dumps({name: parts[name]}), flush=True)
    finally:
        service.process.kill()
        service.process.wait()
    result = {
        **circumstances("jax", "jaxlib", "starlette", "uvicorn", device="cpu"),
        "niceness": os.nice(0),
        "settings": {name: value for name, value in vars(args).items() if name not in ("out", "workdir")},
        **parts,
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
