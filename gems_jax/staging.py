"""Folders and files that appear whole or not at all, here and on object stores."""

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gems_jax.object_store import StorePath


def is_remote(path: Any) -> bool:
    """Whether a path is on an object store.

    Example:
      >>> is_remote("gs://bucket/run"), is_remote("runs/demo")
      (True, False)
    """
    return "://" in str(path)


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path on this machine as a ``Path``, an address on an object store (``gs://``, ``s3://``) as a `StorePath`.

    Raises:
      ValueError: an address of another kind.

    Example:
      >>> as_path("runs/demo"), str(as_path("gs://bucket") / "run")
      (PosixPath('runs/demo'), 'gs://bucket/run')
    """
    if not is_remote(path):
        return Path(path)
    remote_path: Any = StorePath(str(path))
    return remote_path


def escaped(text: str) -> str:
    """A text as it is, or with what is no UTF-8 in it written out.

    Example:
      >>> escaped("café"), escaped("caf\\udce9")
      ('café', 'caf\\\\udce9')
    """
    return text.encode("utf-8", "backslashreplace").decode()


def check_utf8(path: str | os.PathLike[str], what: str) -> None:
    """Checks that a path, followed to its end, has a name that all can read: checkpoints and reports hold it.

    Args:
      path: here or on an object store.
      what: the option that it is of, for the message.

    Raises:
      ValueError: it holds bytes that are no UTF-8.

    Example:
      >>> check_utf8("runs/café", "--workdir")
    """
    full = str(path) if is_remote(path) else os.path.realpath(path)
    shown = escaped(full)
    if shown != full:
        raise ValueError(f"{what} {shown} is no UTF-8: rename the folder, or choose another")


def check_workdir(path: str | os.PathLike[str], what: str) -> None:
    """Checks that checkpoints which are written in a folder can be read again: `check_utf8`, and no bracket.

    Orbax looks for the files that it is to join by a pattern that begins with the folder: where the name is one itself
    it finds none, and says nothing.

    Args:
      path: here or on an object store.
      what: the option that it is of, for the message.

    Raises:
      ValueError: the name, followed to its end, cannot be used.

    Example:
      >>> check_workdir("/runs/first[1]", "--workdir")
      Traceback (most recent call last):
      ...
      ValueError: --workdir /runs/first[1] has a bracket in its name, and checkpoints ...: ...
    """
    check_utf8(path, what)
    full = str(path) if is_remote(path) else os.path.realpath(path)
    if "[" in full:
        raise ValueError(
            f"{what} {full} has a bracket in its name, and checkpoints written there could not be read again: rename "
            "the folder, or choose another"
        )


def check_writable(path: str | os.PathLike[str] | StorePath, what: str, stores: bool = False) -> None:
    """Checks, before any work, that a folder can be made or written in.

    Args:
      path: of the folder, which may not exist.
      what: the option that it is of, for the message.
      stores: whether it may be on an object store.

    Raises:
      ValueError: it is on an object store, and may not be.
      OSError: there is a file in its way, or nothing may be written there.

    Example:
      >>> check_writable("/dev/null/run", "--workdir")
      Traceback (most recent call last):
      ...
      OSError: --workdir /dev/null/run cannot be written (/dev/null: Not a directory): choose another folder
    """
    if is_remote(path) and stores:
        probe = StorePath(str(path)) / f".try.{os.getpid()}"
        probe.write_bytes(b"try")  # some emulators take no empty objects
        probe.unlink(missing_ok=True)
        return
    if is_remote(path):
        raise ValueError(f"{what} {path} is on an object store: give a folder on this machine, and copy it from there")
    base = Path(os.path.realpath(str(path)))
    while not os.path.lexists(base):
        base = base.parent
    try:
        fresh_folder(base / "try").rmdir()
    except OSError as error:
        raise OSError(f"{what} {path} cannot be written ({base}: {error.strerror}): choose another folder") from None


@contextlib.contextmanager
def brought(file: str | os.PathLike[str] | StorePath) -> Iterator[Path]:
    """A file on this machine: itself, or of an object on a store a copy of the same name, for the time of the block.

    Raises:
      FileNotFoundError: there is no such object.

    Example:
      >>> with brought("requests.jsonl") as file:
      ...     file
      PosixPath('requests.jsonl')
    """
    if not is_remote(file):
        yield Path(str(file))
        return
    there = StorePath(str(file))
    with tempfile.TemporaryDirectory(prefix="brought-") as folder:
        there.download(Path(folder) / there.name)
        yield Path(folder) / there.name


def files_in(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """All files of a folder and those within it: names relative to it, and paths. In order of their names."""
    if isinstance(folder, StorePath):
        yield from ((prefix + name, folder / name) for name in folder.names())
        return
    for entry in sorted(folder.iterdir(), key=lambda entry: str(entry.name)):
        if entry.is_dir():
            yield from files_in(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def fresh_folder(target: Path) -> Path:
    """Makes an empty hidden folder beside ``target``, to be filled and then renamed to it.

    Unlike those of ``tempfile`` it has the permissions that folders have by default: what is renamed is for
    others to read, too.

    Example:
      >>> import tempfile
      >>> folder = fresh_folder(Path(tempfile.mkdtemp()) / "model")
      >>> folder.is_dir(), folder.name.startswith(".model.")
      (True, True)
    """
    for number in itertools.count():
        folder = target.with_name(f".{target.name}.{os.getpid()}.{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


@contextlib.contextmanager
def whole_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A fresh folder to fill; where the block ends well it takes the place of ``target``, else nothing has changed.

    Args:
      target: of the folder; parents are made, a link is followed.

    Example:
      >>> import tempfile
      >>> target = Path(tempfile.mkdtemp()) / "a" / "b"
      >>> with whole_folder(target) as folder:
      ...     _ = (folder / "file").write_text("text")
      ...     target.exists()
      False
      >>> [file.name for file in target.iterdir()]
      ['file']
    """
    real = Path(os.path.realpath(target))
    real.parent.mkdir(parents=True, exist_ok=True)
    fresh = fresh_folder(real)
    try:
        yield fresh
        if real.exists():
            shutil.rmtree(real)
        os.replace(fresh, real)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name beside it and renames it; on object stores, where all do, it appears whole.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a" / "b.txt"
      >>> write_text(path, "text")
      >>> [file.name for file in path.parent.iterdir()]
      ['b.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_text(text)
        return
    # A name of its own: others may write the same file at the same time.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as JSON, a line for each entry."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def remove_folder(folder: Path) -> None:
    """Removes a folder and all in it, as far as that is possible."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    remote_folder: Any = folder
    with contextlib.suppress(OSError):
        remote_folder.rmtree(missing_ok=True)
