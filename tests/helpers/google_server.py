"""A store of objects on this machine, which speaks Google's protocol and fails when it is told to."""

import contextlib
import functools
import json
import logging
import socket
import threading
import time
from http.server import ThreadingHTTPServer
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.storage import Storage
from store_server import Faults, asked_at

from gems_jax.object_store import StorePath


def _error(code, message):
    """What Google says with a status that is an error."""
    error = {"code": code, "message": message, "errors": [{"domain": "global", "reason": "told", "message": message}]}
    return json.dumps({"error": error}).encode()


class _Storage(Storage):
    """In memory, and nothing is written there of what all of it is with every object."""

    def _write_config_to_file(self):
        pass


class _Router(emulator.Router):
    """One request at a time, for the storage is made for one thread; an upload of nothing is one."""

    _one = threading.Lock()

    def handle(self, method):
        with self._one, mock.patch.object(emulator, "_read_data", self._data):
            super().handle(method)

    @staticmethod
    def _data(handler, query, read=emulator._read_data):
        data = read(handler, query)
        return b"" if data is None and query.get("uploadType") == ["media"] else data


class _Handler(emulator.RequestHandler):
    """The emulator's behind faults, with what it leaves out and clients ask for.

    These are bodies of answers that say what is not there, generations of objects, and writes on condition of one.
    """

    def __init__(self, faults, *args):
        self._faults, self._body = faults, b""
        super().__init__(*args)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # who has asked is gone
            super().handle()

    def parse_request(self):
        if not super().parse_request():
            return False
        self._faults.asked.append((self.command, self.path))
        fault = self._faults.next.pop(0) if self._faults.next else None
        if fault == "slow":
            time.sleep(1.5)
        elif fault == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "half":
            self._answer(200, "OK", b"half of it" + bytes(90), len(b"half of it"))
        elif fault is not None:
            self._answer(int(fault[:3]), fault[4:], _error(int(fault[:3]), fault[4:]))
        elif self._generation() not in self._query().get("ifGenerationMatch", [self._generation()]):
            self._answer(412, "Precondition Failed", _error(412, "conditionNotMet"))
        else:
            return True
        return fault in ("slow", "cut")

    def _answer(self, code, phrase, body, sent=None):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        super().send_response(code, phrase)
        self.send_header("Content-Length", str(len(body)))
        super().end_headers()
        self.wfile.write(body[:sent])

    def _query(self):
        return parse_qs(urlsplit(self.path).query)

    def _generation(self):
        """Of the object that is asked for, as the store has it; none has generation 0."""
        bucket, _, name = urlsplit(self.path).path.partition("/b/")[2].partition("/o")
        name = unquote(name.removeprefix("/")) or self._query().get("name", [""])[0]
        return self.storage.objects.get(bucket, {}).get(name, {}).get("generation", "0")

    def send_response(self, code, message=None):
        there = urlsplit(self.path).path.partition("/b/")[2].partition("/")[0] in self.storage.buckets
        self._body = _error(404, "No such object" if there else "The specified bucket does not exist.")
        self._body = self._body if code == 404 else b""
        super().send_response(code, message)
        self.send_header("X-Goog-Generation", self._generation())

    def send_header(self, keyword, value):
        super().send_header(keyword, str(len(self._body)) if self._body and keyword == "Content-Length" else value)

    def end_headers(self):
        super().end_headers()
        self.wfile.write(self._body)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections beyond it are lost, and waited for


@contextlib.contextmanager
def google_server(port=0):
    """Serves a bucket and sets the environment for it; gives the faults and the bucket."""
    for name in ("gcp_storage_emulator", "api.object", "api.bucket"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    faults, storage = Faults(None), _Storage(use_memory_fs=True)
    create_bucket("bucket", storage)
    server = _Server(("127.0.0.1", port), functools.partial(_Handler, faults, storage))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    settings = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.server_port}"}
    try:
        with asked_at(settings), mock.patch.object(emulator, "Router", _Router):
            yield faults, StorePath("gs://bucket")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
