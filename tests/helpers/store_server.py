"""A store of objects on this machine, which speaks Amazon's protocol and fails when it is told to."""

import contextlib
import logging
import os
import socket
import threading
import time
import urllib.request
from unittest import mock

from gems_jax import object_store
from gems_jax.object_store import StorePath

SECRET = "a-secret-that-nobody-is-told"


class Faults:
    """An application in front of the store: what the next requests meet, and what was asked.

    Args:
      app: of the store.
    """

    def __init__(self, app):
        self._app = app
        self.next, self.asked = [], []

    def __call__(self, environment, start):
        self.asked.append((environment["REQUEST_METHOD"], environment["PATH_INFO"]))
        fault = self.next.pop(0) if self.next else None
        if fault == "slow":
            time.sleep(1.5)
        elif fault == "cut":
            environment["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        elif fault == "half":
            start("200 OK", [("Content-Length", "100"), ("ETag", '"x"')])
            return [b"half of it"]
        elif fault is not None:
            start(fault, [])
            return [b"<Error><Code>Told</Code><Message>so</Message></Error>"]
        return self._app(environment, start)


@contextlib.contextmanager
def asked_at(settings):
    """An environment whose store is asked a few times in quick succession, and is silent after a second."""
    settings = settings | {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "1"}
    retries = {"max_retries": 3, "initial_delay": "0.01s", "max_delay": "0.02s"}
    with mock.patch.dict(os.environ, settings), mock.patch.object(object_store, "RETRIES", retries):
        yield


@contextlib.contextmanager
def store_server():
    """Serves a bucket and sets the environment for it; gives the faults and the bucket."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faults, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    try:
        with asked_at(settings | {"AWS_ENDPOINT_URL": url}):
            urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
            faults.asked.clear()
            yield faults, StorePath("s3://bucket")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def put(folder, there):
    """Copies a folder to a store."""
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    there.upload_all(folder, names)
