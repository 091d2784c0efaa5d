"""Where the checkpoints of a run on an object store are written: there, or in a folder of this machine that is sent."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax

from gems_jax.checksums import COMMITTED
from gems_jax.checksums import NAME as SUMS
from gems_jax.data.dataset.remote import local_path
from gems_jax.object_store import StorePath
from gems_jax.training.workdir.copies import bring_checkpoints, whole_checkpoints


def for_orbax(store: StorePath) -> Path:
    """A folder on Google's store as orbax writes it, by etils and gcsfs.

    Orbax takes a checkpoint without its own mark for one that was interrupted, and removes it. One that has its
    checksums is whole, be it that it was copied there from elsewhere, and gets the mark.

    Raises:
      ValueError: the package for that is missing.
    """
    check_package(store, "--workdir")
    from etils import epath

    if jax.process_index() == 0:
        for step, names in whole_checkpoints(store.names()).items():
            parts = sorted({name.partition("/")[0] for name in names if "/" in name})
            for mark in (COMMITTED, *(f"{part}/{COMMITTED}" for part in parts)):
                if mark not in names:
                    (store / step / mark).write_text(json.dumps({"whole": step}))
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("whole checkpoints are marked")
    remote_path: Any = epath.Path(str(store))
    return remote_path


def check_package(workdir: Any, what: str) -> None:
    """Checks that checkpoints can be written where a run lies: on Google's store by a package that not all need.

    Args:
      workdir: here or on an object store.
      what: the option that it is of, for the message.

    Raises:
      ValueError: the package is not installed.

    Example:
      >>> check_package("runs/demo", "--workdir")
    """
    if str(workdir).startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise ValueError(
            f"{what} {workdir}: training writes to Google's store by the package gcsfs, which is not installed: "
            'pip install "gems-jax[train,gcs]" (in a checkout: pip install ".[train,gcs]")'
        )


def whole_steps(store: StorePath) -> list[int]:
    """Steps of the checkpoints that were written to their ends."""
    return sorted(map(int, whole_checkpoints(store.names())))


def move(source: StorePath, target: StorePath) -> None:
    """Gives a checkpoint another name; one that was interrupted is none at its old place, or still is all of it."""
    names = source.names()
    for name in names:
        (target / name).write_bytes((source / name).read_bytes())
    source.remove([SUMS])
    source.remove(names)
    from etils.epath import backend

    backend.fsspec_backend.fs(str(source)).invalidate_cache()  # which orbax will ask


def brought(store: StorePath) -> Path:
    """A folder on this machine with the checkpoints of a store that orbax does not write to.

    Raises:
      ValueError: several processes would write there.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"{store}: several processes write one checkpoint together, to gs:// or to a file system that all of them "
            "share: choose such a --workdir"
        )
    folder = local_path(str(store), "checkpoints")
    bring_checkpoints(store, folder)
    return folder
