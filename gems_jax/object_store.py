"""Objects on Google's and Amazon's stores: read, written whole, listed and removed, tried again where a store fails."""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from gems_jax import google_store

SCHEMES = ("gs", "s3")
# Tries behind the first one, each later than the one before; about half a minute in all.
RETRIES = {"max_retries": 6, "initial_delay": "0.5s", "max_delay": "8s"}
# Seconds without a byte, and to connect, after which a try has failed.
_STALLED = {
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "30",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "30",
}
# Bytes that are asked for at once, and those that one object may have where it is written in one request.
_PART = 64 * 2**20
LARGEST = 5 * 2**30
# What names the credentials.
_CREDENTIALS = {"gs": "GOOGLE_APPLICATION_CREDENTIALS", "s3": "AWS_ACCESS_KEY_ID"}
# Objects that are copied at the same time.
_THREADS = 4


class StorePath:
    """An object on a store, or all those whose names begin with it: what the package uses of a ``Path``.

    There are no folders on a store: making one does nothing, and one is there while something is in it. An object
    appears whole or not at all, and is never changed in place.

    Credentials and endpoint are those of the environment: ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY`` or the
    files that ``AWS_PROFILE`` and others name, ``AWS_REGION``, ``AWS_ENDPOINT_URL``; for ``gs://`` Google's default
    credentials.

    Args:
      address: ``gs://bucket/name`` or ``s3://bucket/name``.

    Raises:
      ValueError: it is no such address.
      FileNotFoundError: from reading what is not there.
      OSError: from everything, if the store refuses or goes on failing; it names the address.

    Example:
      >>> path = StorePath("s3://bucket/runs") / "one" / "config.yaml"
      >>> str(path), path.name, str(path.parent)
      ('s3://bucket/runs/one/config.yaml', 'config.yaml', 's3://bucket/runs/one')
    """

    def __init__(self, address: "str | StorePath"):
        scheme, _, rest = str(address).partition("://")
        self.bucket, *names = [part for part in rest.split("/") if part] or [""]
        if scheme not in SCHEMES or rest[:1] in ("", "/") or {".", ".."} & {self.bucket, *names}:
            raise ValueError(f"{address} is no address on an object store: write gs://BUCKET/NAME or s3://BUCKET/NAME")
        self.scheme, self.key = scheme, "/".join(names)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: "str | os.PathLike[str]") -> "StorePath":
        return StorePath(f"{self}/{os.fspath(name)}")

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return Path(self.name).suffix

    @property
    def parent(self) -> "StorePath":
        """The address without its last part."""
        return StorePath(f"{self.scheme}://{self.bucket}/{self.key.rpartition('/')[0]}")

    def with_name(self, name: str) -> "StorePath":
        """The address with another last part."""
        return self.parent / name

    def exists(self) -> bool:
        """Whether there is such an object, or one whose name goes on behind it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return bool(self.key) and self.key in self._keys(self.key, self.key + "\0")

    def is_dir(self) -> bool:
        """Whether there is an object whose name goes on behind this one and a slash."""
        return bool(self.names())

    def names(self) -> list[str]:
        """Names of all objects below this one, relative to it, sorted."""
        first = self.key and self.key + "/"
        # "0" comes behind "/".
        keys = self._keys(first, first and self.key + "0")
        return sorted(name for key in keys if (name := key[len(first) :]) and not name.endswith("/"))

    def iterdir(self) -> Iterator["StorePath"]:
        """The objects below this one, and the first parts of those below these."""
        for name in dict.fromkeys(name.partition("/")[0] for name in self.names()):
            yield self / name

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """What is below this one under names of a pattern, which may have a star in each part."""
        folder, _, last = pattern.rpartition("/")
        for parent in [*self.glob(folder)] if folder else [self]:
            yield from (path for path in parent.iterdir() if fnmatchcase(path.name, last))

    def read_bytes(self) -> bytes:
        """The object."""
        result = self._tried("read", lambda store: store.read(self.key).result())
        if result.state != "value":
            raise FileNotFoundError(f"{self} does not exist")
        return bytes(result.value)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> int:
        """Makes the object of these bytes; one that was there is replaced when all of them have come."""
        if len(data) > LARGEST:
            raise OSError(f"{self} would have {len(data):,} bytes; a store takes {LARGEST:,} at once: make it of parts")
        self._tried("written", lambda store: store.write(self.key, data).result())
        return len(data)

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        """Makes the object of a text."""
        return self.write_bytes(text.encode(encoding))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(f"{self} does not exist")
        self._tried("removed", lambda store: store.write(self.key, None).result())

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: stores have no folders."""

    def rmtree(self, missing_ok: bool = False) -> None:
        """Removes all objects below this one."""
        self.remove(self.names())

    def remove(self, names: list[str]) -> None:
        """Removes objects below this one."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: (self / name).unlink(missing_ok=True), names))

    def download(self, target: Path, size: int | None = None) -> None:
        """Copies the object to a file on this machine, which appears whole.

        Args:
          target: of the file.
          size: bytes that the object has, where that is known: a large one is then read a part at a time.

        Raises:
          OSError: the object is of another size, or was replaced meanwhile.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with unfinished.open("wb") as file:
                if size is None or size <= _PART:
                    file.write(self.read_bytes())
                else:
                    self._download_parts(file, size)
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)

    def _download_parts(self, file: BinaryIO, size: int) -> None:
        first = None
        for start in range(0, size, _PART):
            part = slice(start, min(start + _PART, size))
            result = self._tried("read", functools.partial(_read, key=self.key, byte_range=part))
            if result.state != "value":
                raise FileNotFoundError(f"{self} does not exist")
            first = result.stamp.generation if first is None else first
            if result.stamp.generation != first:
                raise OSError(f"{self} was replaced while it was read: start again")
            file.write(result.value)

    def download_all(self, names: Iterable[str], target: Path, sizes: Mapping[str, int] | None = None) -> None:
        """Copies objects below this one to a folder on this machine, each whole.

        Args:
          names: relative to this one.
          target: the folder.
          sizes: bytes of some of them, see `download`.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: (self / name).download(target / name, (sizes or {}).get(name)), names))

    def upload_all(self, source: Path, names: Iterable[str]) -> None:
        """Copies files of a folder on this machine to below this one, each whole, in any order."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: (self / name).write_bytes((source / name).read_bytes()), names))

    def _keys(self, first: str, end: str) -> list[str]:
        found = self._listed(first, end)
        if self.scheme == "gs" and not found:
            self._tried("listed", lambda store: google_store.check_empty(store, first, self.bucket, RETRIES))
            found = self._listed(first, end)  # which may have been refused for a moment alone
        return found

    def _listed(self, first: str, end: str) -> list[str]:
        import tensorstore

        keys = tensorstore.KvStore.KeyRange(first.encode(), end.encode())
        listed = [key.decode() for key in self._tried("listed", lambda store: store.list(keys).result())]
        # Servers of Google's protocol are about that know no bounds of a list.
        return [key for key in listed if key >= first and (not end or key < end)]

    def _tried(self, what: str, call: Callable[[Any], Any]) -> Any:
        try:
            return call(_opened(self.scheme, self.bucket, _settings()))
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise OSError(f"{self} cannot be {what} ({_reason(error, self.scheme)}") from None


def _read(store: Any, key: str, byte_range: slice) -> Any:
    return store.read(key, byte_range=byte_range).result()


def _settings() -> tuple[tuple[str, str], ...]:
    amazon = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID")
    names = (*amazon, google_store.EMULATOR)
    return tuple((name, os.environ[name]) for name in names if os.environ.get(name))


@functools.lru_cache(maxsize=64)
def _opened(scheme: str, bucket: str, settings: tuple[tuple[str, str], ...]) -> Any:
    """A bucket, by tensorstore, which the checkpoints are written by, too."""
    for name, value in _STALLED.items():
        os.environ.setdefault(name, value)
    import tensorstore

    if scheme == "gs":
        return google_store.open_bucket(bucket, RETRIES)
    given = dict(settings)
    context: dict[str, Any] = {"s3_request_retries": RETRIES}
    if "AWS_ACCESS_KEY_ID" in given:  # otherwise files and the machine's role are looked for
        context["aws_credentials"] = {"type": "environment"}
    endpoint = given.get("AWS_ENDPOINT_URL_S3") or given.get("AWS_ENDPOINT_URL")
    region = given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION")
    optional = {name: value for name, value in (("endpoint", endpoint), ("aws_region", region)) if value}
    return tensorstore.KvStore.open({"driver": "s3", "bucket": bucket, "context": context, **optional}).result()


def said_by(error: Exception) -> str:
    """What an error says, without what TensorStore adds to it.

    Example:
      >>> said_by(ValueError("NOT_FOUND: no [http_response_code='404']"))
      'NOT_FOUND: no'
    """
    return re.sub(r"\s*\[[\w-]+='.*", "", str(error), flags=re.DOTALL).strip() or type(error).__name__


def _reason(error: Exception, scheme: str) -> str:
    """What a store has said, without what it was asked, and what to do about it; behind an opened bracket."""
    text, said = str(error), said_by(error)
    if "All" in text and "retry attempts failed" in text:
        return f"{said}): start again when the store answers"
    unknown = "http_response_code='401'" in text or re.search("AccessKey|Signature|Token|UNAUTHENTICATED", said)
    if unknown or "credentials" in text:
        return f"{said}): look at the credentials in the environment, such as {_CREDENTIALS[scheme]}"
    if "PERMISSION_DENIED" in text:
        return f"{said}): these credentials are not allowed to"
    return f"{said}): look at the address"
