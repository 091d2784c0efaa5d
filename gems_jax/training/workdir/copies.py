"""Work directories on object stores: commands on a run read a copy on this machine, and send what they write."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gems_jax.checksums import NAME as SUMS
from gems_jax.checksums import damage
from gems_jax.data.dataset.remote import local_path
from gems_jax.object_store import StorePath
from gems_jax.staging import is_remote, whole_folder
from gems_jax.training.workdir import assets, edits
from gems_jax.training.workdir.lock import WorkdirLock

CONFIG = "config.yaml"
# What commands on a tuned run read beside its checkpoints.
_FILES = (CONFIG, assets.NAME, edits.NAME, "metrics.jsonl")
# What `evaluate` writes.
_EVALUATION = re.compile(r"eval\.json|report\.html|(catalogue/)?ranking_[^/]+\.npz")


def opened(workdir: str | os.PathLike[str] | StorePath, which: str | None = "last") -> Path:
    """The folder on this machine that a tuned run is read from: its own, or a copy of what is on the store now.

    A copy has the newest intact checkpoint, and the best one where it is asked for; what it has already is not
    copied again.

    Args:
      workdir: of the run, here or on a store.
      which: ``"last"`` or ``"best"`` checkpoint; ``None``: there must be one, but it is not copied.

    Raises:
      FileNotFoundError: it is no work directory, or holds no checkpoint.
      ValueError: no checkpoint is intact.
      OSError: the store fails.

    Example:
      >>> opened("runs/demo/gems")
      PosixPath('runs/demo/gems')
    """
    if not is_remote(workdir):
        return Path(str(workdir))
    store, folder = StorePath(str(workdir)), copy_of(workdir)
    with _alone(folder):
        names = store.names()
        if CONFIG not in names:
            raise FileNotFoundError(f"{store} is no work directory (no {CONFIG}); run gems-jax train first")
        _bring_files(store, folder, names, _FILES)
        _bring_checkpoints(store / "checkpoints", folder / "checkpoints", names, which)
    return folder


def copy_of(workdir: str | os.PathLike[str] | StorePath) -> Path:
    """Where this machine keeps its copy of a work directory on a store."""
    return local_path(str(workdir), "run")


def config_file(workdir: str | os.PathLike[str] | StorePath) -> Path:
    """The ``config.yaml`` of a work directory; of one on a store a copy, which is as it is there now."""
    if not is_remote(workdir):
        return Path(str(workdir)) / CONFIG
    store, folder = StorePath(str(workdir)), copy_of(workdir)
    with _alone(folder):
        _bring_files(store, folder, [CONFIG] if (store / CONFIG).is_file() else [], [CONFIG])
    return folder / CONFIG


def bring_checkpoints(store: StorePath, folder: Path) -> None:
    """Makes a folder on this machine hold the checkpoints that are whole on a store, for a run to go on from."""
    files = whole_checkpoints(store.names())
    for step, names in files.items():
        _bring_checkpoint(store / step, folder / step, names)
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name not in files:
            shutil.rmtree(entry)


def send_checkpoints(folder: Path, store: StorePath) -> None:
    """Makes a store hold the checkpoints that are in a folder on this machine.

    The checksums of a checkpoint come last and go first: without them it is none.
    """
    there = store.names()
    steps = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    for path in steps:
        names = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
        sums = store / path.name / SUMS
        if f"{path.name}/{SUMS}" in there:
            if sums.read_bytes() == (path / SUMS).read_bytes():
                continue
            sums.unlink()
        old = {name.removeprefix(f"{path.name}/") for name in there if name.startswith(f"{path.name}/")}
        (store / path.name).remove(sorted(old - {*names, SUMS}))
        (store / path.name).upload_all(path, [name for name in names if name != SUMS])
        (store / path.name).upload_all(path, [SUMS])
    kept = {path.name for path in steps}
    gone = [name for name in there if name.partition("/")[0] not in kept]
    store.remove([name for name in gone if name.endswith(f"/{SUMS}")])
    store.remove([name for name in gone if not name.endswith(f"/{SUMS}")])


@contextlib.contextmanager
def editing(workdir: str | os.PathLike[str] | StorePath) -> Iterator[Path]:
    """Holds the lock of a work directory; the edits of its catalogue that are made in the folder are kept.

    Args:
      workdir: of the run, here or on a store.

    Raises:
      ValueError: another process holds the lock.
      OSError: nothing can be written there.
    """
    if not is_remote(workdir):
        with WorkdirLock(Path(str(workdir))):
            yield Path(str(workdir))
        return
    store: Any = StorePath(str(workdir))
    with WorkdirLock(store), tempfile.TemporaryDirectory(prefix="edited-") as temporary:
        folder = Path(temporary) / store.name
        _bring_files(store, folder, store.names(), _FILES)
        yield folder
        if (folder / edits.NAME).is_file():
            store.upload_all(folder, [edits.NAME])
        else:
            (store / edits.NAME).unlink(missing_ok=True)


def evaluated(workdir: str | os.PathLike[str] | StorePath) -> Path:
    """The folder on this machine that a run's evaluation is read from: its own, or a copy of what is on the store."""
    if not is_remote(workdir):
        return Path(str(workdir))
    store, folder = StorePath(str(workdir)), local_path(str(workdir), "evaluation")
    with _alone(folder), whole_folder(folder) as fresh:
        store.download_all([name for name in store.names() if _EVALUATION.fullmatch(name)], fresh)
    return folder


def send_evaluation(folder: Path, workdir: str | os.PathLike[str] | StorePath) -> None:
    """Makes the evaluation in a folder on this machine that of a work directory on a store.

    Nothing where the work directory is the folder. ``eval.json`` and ``config.yaml`` come last, and an evaluation that
    was there goes first: one that was interrupted is none.
    """
    if not is_remote(workdir):
        return
    store = StorePath(str(workdir))
    store.remove([name for name in store.names() if _EVALUATION.fullmatch(name)])
    mine = sorted(str(path.relative_to(folder)) for path in [*folder.glob("*"), *folder.glob("catalogue/*")])
    store.upload_all(folder, [name for name in mine if _EVALUATION.fullmatch(name) and name != "eval.json"])
    store.upload_all(folder, ["eval.json"])
    store.upload_all(folder, [CONFIG])


def _bring_files(store: StorePath, folder: Path, names: Iterable[str], wanted: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        if name in names:
            (store / name).download(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _bring_checkpoints(store: StorePath, folder: Path, names: Iterable[str], which: str | None) -> None:
    """Makes a folder hold the newest intact checkpoint of a store, and the best one if that is wanted."""
    inside = [name.removeprefix("checkpoints/") for name in names if name.startswith("checkpoints/")]
    files = whole_checkpoints(inside)
    steps = sorted(files, key=int, reverse=True)
    if not steps:
        raise FileNotFoundError(f"{store.parent} holds no checkpoint yet; run gems-jax train until it has saved one")
    if which is None:
        return
    folder.mkdir(exist_ok=True)
    bad: dict[str, str] = {}
    for step in steps:
        wrong = _bring_checkpoint(store / step, folder / step, files[step])
        if wrong is None:
            break
        bad[step] = wrong
    else:
        listed = "; ".join(f"{store / each}: {wrong}" for each, wrong in bad.items())
        raise ValueError(f"no intact checkpoint in {store} ({listed}); remove the damaged ones, and train again")
    for each, wrong in bad.items():
        warnings.warn(f"checkpoint {store / each} is damaged ({wrong}); using that of step {step}", stacklevel=3)
    kept = {step}
    if which == "best" and (best := _best_of(folder / step)) in files and best not in kept:
        wrong = _bring_checkpoint(store / best, folder / best, files[best])
        if wrong is not None:
            raise ValueError(f"the best checkpoint {store / best} is damaged ({wrong}); take evaluate.checkpoint last")
        kept.add(best)
    for entry in folder.iterdir():
        if entry.name not in kept:
            shutil.rmtree(entry)


def whole_checkpoints(names: Iterable[str]) -> dict[str, list[str]]:
    """Step to its files, of the checkpoints that were written to their ends.

    Args:
      names: of all files of the checkpoints of a run.
    """
    files: dict[str, list[str]] = {}
    for name in names:
        step, _, rest = name.partition("/")
        if step.isdigit() and rest:
            files.setdefault(step, []).append(rest)
    return {step: inside for step, inside in files.items() if SUMS in inside}


def _bring_checkpoint(store: StorePath, folder: Path, names: list[str]) -> str | None:
    """Says what is wrong with a checkpoint that was copied; ``None``: nothing is."""
    sums = (store / SUMS).read_bytes()
    if (folder / SUMS).is_file() and (folder / SUMS).read_bytes() == sums and damage(folder) is None:
        return None
    print(f"run: copying {store} to {folder}", file=sys.stderr)
    with whole_folder(folder) as fresh:
        store.download_all(names, fresh, _sizes(sums))
        return damage(fresh)


def _sizes(sums: bytes) -> dict[str, int]:
    """Bytes of each file that a checkpoint has sums of."""
    try:
        return {str(name): int(entry["bytes"]) for name, entry in json.loads(sums).items()}
    except (ValueError, TypeError, KeyError, AttributeError):  # which is found to be damaged
        return {}


def _best_of(checkpoint: Path) -> str:
    """The step of the best checkpoint, as another one has it."""
    try:
        return str(json.loads((checkpoint / "data" / "metadata").read_text(encoding="utf-8"))["best"]["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time changes a copy."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
