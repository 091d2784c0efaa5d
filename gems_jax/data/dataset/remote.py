"""Prepared datasets on object stores (``gs://``, ``s3://``): a copy on this machine, brought there and back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gems_jax.staging import as_path, files_in, whole_folder

# It comes last and goes first: a folder without it is not whole.
CARD = "card.json"


def local_path(url: str | Path, name: str = "data") -> Path:
    """Where this machine keeps its copy: in ``XDG_CACHE_HOME`` (``~/.cache``), one folder for each address."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "gems_jax" / hashlib.sha256(str(url).rstrip("/").encode()).hexdigest()[:16] / name


def exists(url: str | Path) -> bool:
    """Whether a prepared dataset is there, whole; also of local paths."""
    return bool((as_path(url) / CARD).exists())


def bring(url: str | Path, local: Path, say: Callable[[str], None]) -> None:
    """Makes the copy on this machine what is at the address; nothing where that is nothing, or the same already.

    Args:
      url: of a prepared dataset.
      local: its folder here.
      say: takes a line.
    """
    remote_folder = as_path(url)
    if not exists(url) or _card(remote_folder) == _card(local):
        return
    say(f"data: copying {url} to {local}")
    try:
        with whole_folder(local) as temporary:
            for name, file in files_in(remote_folder):
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(file.read_bytes())
    except OSError:
        # Another process of this machine was first.
        if _card(remote_folder) != _card(local):
            raise


def send(local: Path, url: str | Path, say: Callable[[str], None]) -> None:
    """Makes what is at an address the prepared dataset on this machine; nothing where it is that already.

    The copy appears whole: the card, without which it is no dataset, is removed first and written last.
    """
    remote_folder = as_path(url)
    if exists(url) and _card(remote_folder) == _card(local):
        return
    say(f"data: copying {local} to {url}")
    if exists(url):
        (remote_folder / CARD).unlink()
    local_files = dict(files_in(local))
    for name, file in files_in(remote_folder) if remote_folder.exists() else ():
        if name not in local_files:
            file.unlink()
    for name in sorted(local_files, key=lambda name: name == CARD):
        target = remote_folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(local_files[name].read_bytes())


def _card(folder: Any) -> bytes | None:
    card = folder / CARD
    return card.read_bytes() if card.exists() else None
