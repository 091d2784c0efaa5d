"""Prepared datasets on object stores (``gs://``, ``s3://``): a copy on this machine, brought there and back."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gems_jax.staging import as_path, files_in, fresh_folder

# It comes last and goes first: a folder without it is not whole.
CARD = "card.json"


def local_path(url: str | Path) -> Path:
    """Where this machine keeps its copy: in ``XDG_CACHE_HOME`` (``~/.cache``), one place for each address."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "gems_jax" / hashlib.sha256(str(url).rstrip("/").encode()).hexdigest()[:16] / "data"


def exists(url: str | Path) -> bool:
    """Whether a prepared dataset is there, whole; also of local paths."""
    return bool((as_path(url) / CARD).exists())


def bring(url: str | Path, local: Path, say: Callable[[str], None]) -> None:
    """Makes the copy on this machine what is at the address; nothing where that is nothing, or the same already.

    Args:
        url: of a prepared dataset.
        local: its place here.
        say: takes a line.
    """
    place = as_path(url)
    if not exists(url) or _card(place) == _card(local):
        return
    say(f"data: copying {url} to {local}")
    local.parent.mkdir(parents=True, exist_ok=True)
    temporary = fresh_folder(local)
    try:
        for name, file in files_in(place):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(file.read_bytes())
        shutil.rmtree(local, ignore_errors=True)
        os.replace(temporary, local)
    except OSError:
        # Another process of this machine was first.
        if _card(place) != _card(local):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def send(local: Path, url: str | Path, say: Callable[[str], None]) -> None:
    """Makes what is at an address the prepared dataset on this machine; nothing where it is that already.

    What is written appears whole: the card, without which it is no dataset, goes first and comes last.
    """
    place = as_path(url)
    if exists(url) and _card(place) == _card(local):
        return
    say(f"data: copying {local} to {url}")
    if exists(url):
        (place / CARD).unlink()
    found = dict(files_in(local))
    for name, file in files_in(place) if place.exists() else ():
        if name not in found:
            file.unlink()
    for name in sorted(found, key=lambda name: name == CARD):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(found[name].read_bytes())


def _card(folder: Any) -> bytes | None:
    card = folder / CARD
    return card.read_bytes() if card.exists() else None
