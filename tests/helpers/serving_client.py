"""A service over loopback with an engine that needs no model, and a client that calls it."""

import contextlib
import http.client
import json
import threading
import time

import shop

from gems_jax.serving.answers import Answer, RankedItem
from gems_jax.serving.catalogue import Catalogue
from gems_jax.serving.http.limits import Limits
from gems_jax.serving.http.server import Server


class Echo:
    """An engine without a model: it answers with its name when its gate is open.

    Args:
      name: the only item's title.
      seconds: that a batch takes.

    Attributes:
      base: as of an `Engine`.
    """

    def __init__(self, name="first", seconds=0.0):
        self.catalogue = Catalogue(shop.dataset(), shop.TEMPLATES)
        self.name, self.seconds = name, seconds
        self.gate, self.batches, self.base = threading.Event(), [], None
        self.gate.set()

    def warm_up(self):
        return 0

    def answer(self, rankings):
        self.batches.append(len(rankings))
        assert self.gate.wait(60)
        time.sleep(self.seconds)
        if any(one.query == "poison" for one in rankings):
            raise ValueError("this query is poison")
        return [Answer((RankedItem("B0", f"{self.name} {one.query}", -1.0, False),)) for one in rankings]


class Client:
    """Calls a server; each call has a connection of its own."""

    def __init__(self, server):
        self.host, self.port = server.url.removeprefix("http://").split(":")

    def __call__(self, method, path, body=None, headers=None):
        """Status, headers and content, JSON as values."""
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=120)
        with contextlib.closing(connection):
            sent = json.dumps(body).encode() if isinstance(body, dict | list) else body
            connection.request(method, path, sent, {"Content-Type": "application/json"} | (headers or {}))
            answer = connection.getresponse()
            content = answer.read().decode()
            is_json = (answer.getheader("content-type") or "").startswith("application/json")
            return answer.status, answer.headers, json.loads(content) if is_json else content

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    def metric(self, name):
        lines = self("GET", "/metrics")[2].splitlines()
        return {float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")}.pop()


@contextlib.contextmanager
def serving(load, token=None, **limits):
    server = Server(load, Limits(**({"batch_size": 3, "max_k": 4} | limits)), port=0, token=token)
    thread = threading.Thread(target=server.run)
    thread.start()
    client = Client(server)
    try:
        client.until(lambda: client("GET", "/readyz")[0] == 200)
        yield client
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()
