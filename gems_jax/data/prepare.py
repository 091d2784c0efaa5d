"""From a raw source to a prepared dataset on disk, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gems_jax.data import amazon_scientific, marketplace, storage
from gems_jax.data.negatives import NUM_NEGATIVES
from gems_jax.data.tables import Dataset

SOURCES = ("marketplace", "amazon_scientific")


def prepare(
    name: str,
    out_dir: str | Path,
    *,
    path: str | Path | None = None,
    seed: int = 0,
    num_negatives: int = NUM_NEGATIVES,
    num_users: int = marketplace.NUM_USERS,
    max_bad_fraction: float = 0.05,
    progress: Callable[[str], None] | None = print,
) -> Dataset:
    """The prepared dataset in `out_dir`: read if it is finished and made with the same settings, else made.

    Args:
        name: `"marketplace"` (made from the seed) or `"amazon_scientific"` (raw files under `path`).
        out_dir: folder of the prepared dataset.
        path: folder of the raw files.
        seed: of negatives and of the marketplace.
        num_negatives: per row of valid and test.
        num_users: of the marketplace.
        max_bad_fraction: largest share of raw rows of a kind that may be left out.
        progress: takes each line a person should see; None for silence.

    Raises:
        ValueError: the source is unknown, settings do not fit it, or raw data cannot be used.
        FileNotFoundError: a raw file is missing.
    """
    say = progress or (lambda line: None)
    settings = _settings(name, path, seed, num_negatives, num_users, max_bad_fraction)
    if storage.is_complete(out_dir):
        dataset = storage.load(out_dir)
        made_with = dataset.card.get("settings")
        if path is not None and isinstance(made_with, dict) and not Path(path).exists():
            settings["raw"] = made_with.get("raw")  # raw files may go once they are prepared
        if made_with == settings:
            say(f"data: {out_dir} is prepared already ({_size(dataset)})")
            return dataset
        say(f"data: {out_dir} was prepared with other settings; making it again")
    begin = time.perf_counter()
    say(f"data: reading {name}" + (f" from {path}" if path is not None else ""))
    if name == "marketplace":
        dataset = marketplace.load(seed, num_users, num_negatives)
    else:
        assert path is not None
        dataset = amazon_scientific.load(path, seed, num_negatives, max_bad_fraction)
    for reason, count in dataset.card["quarantined"].items():
        say(f"data: left out {count:,} ({reason})")
    dataset.card["settings"] = settings
    for task in dataset.tasks:
        for split in ("train", "valid", "test"):
            dataset.table(split, task)  # an empty one is an error here, before anything is written
    say(f"data: writing {_size(dataset)} to {out_dir}")
    storage.save(dataset, out_dir)
    say(f"data: done in {time.perf_counter() - begin:.1f} s")
    return dataset


def _settings(
    name: str, path: str | Path | None, seed: int, num_negatives: int, num_users: int, max_bad_fraction: float
) -> dict[str, Any]:
    """What decides the content, checked; settings of another source do not count."""
    if name not in SOURCES:
        raise ValueError(f"unknown data source {name!r}; use one of {', '.join(SOURCES)}")
    common = {"name": name, "seed": seed, "num_negatives": num_negatives}
    if name == "marketplace":
        if path is not None:
            raise ValueError(f"the marketplace is made from a seed and reads no files, but data.path is {str(path)!r}")
        return common | {"num_users": num_users}
    if path is None:
        raise ValueError(f"{name} needs data.path, the folder of its raw files")
    files = sorted(file for file in Path(path).glob("*") if file.name in amazon_scientific.FILES)
    # Sizes and times of change: edited raw files are prepared again.
    raw = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    return common | {"path": str(Path(path).resolve()), "max_bad_fraction": max_bad_fraction, "raw": raw}


def _size(dataset: Dataset) -> str:
    counts = dataset.row_counts()
    rows = ", ".join(f"{split} " + " / ".join(f"{n:,}" for n in tasks.values()) for split, tasks in counts.items())
    return f"{len(dataset.items):,} items; rows {' / '.join(dataset.tasks)}: {rows}"
