"""Prepared datasets on disk: array-record shards written and read by tensorflow-datasets, without TensorFlow.

A prepared folder holds `items.jsonl` (the catalogue in the order of item numbers), `card.json` (how it was
made, and the sign that it is complete), `quarantine.jsonl` and `tables/`, a tensorflow-datasets folder with
one split a table.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.tables import Dataset, Item, Table
from gems_jax.staging import fresh_folder

FORMAT_VERSION = 1
CARD = "card.json"
ITEMS = "items.jsonl"
QUARANTINE = "quarantine.jsonl"
TABLES = "tables"
# Rows a record: decoding a record costs far more than the numbers in it.
BLOCK = 1024
_BUILDER = "rows"


def is_complete(folder: str | Path) -> bool:
    """Whether a folder holds a finished dataset (the card comes with the rename at the end)."""
    return (Path(folder) / CARD).is_file()


def save(dataset: Dataset, folder: str | Path) -> Path:
    """Write a dataset to a temporary folder beside its place and rename it there; a folder in its place goes.

    Args:
        dataset: what to write.
        folder: its place.

    Returns:
        The folder.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a prepared dataset is a folder, name another place")
    if folder.is_dir() and any(folder.iterdir()) and not is_complete(folder):
        raise ValueError(f"{folder} holds something other than a prepared dataset; name an empty or a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = fresh_folder(folder)
    try:
        _write_lines(temporary / ITEMS, (vars(item) for item in dataset.items))
        _write_lines(temporary / QUARANTINE, dataset.quarantined)
        _write_tables(dataset.tables, temporary / TABLES)
        card = {
            "format_version": FORMAT_VERSION,
            **dataset.card,
            "tables": ["/".join(key) for key in dataset.tables],
        }
        (temporary / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def load(folder: str | Path) -> Dataset:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: there is no finished dataset.
        ValueError: a part of it is damaged or of another format version.
    """
    folder = Path(folder)
    if not is_complete(folder):
        raise FileNotFoundError(f"{folder} holds no prepared dataset ({CARD} is missing); run gems-jax prepare first")
    card = _read_json(folder / CARD)
    if not isinstance(card, dict) or card.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{folder / CARD} is not of format version {FORMAT_VERSION}; remove the folder, prepare again")
    try:
        items = [Item(**entry) for entry in _read_lines(folder / ITEMS)]
    except TypeError as error:
        raise ValueError(f"{folder / ITEMS} is damaged ({error}); remove {folder} and prepare again") from None
    keys = [tuple(name.split("/")) for name in card.pop("tables")]
    tables = _read_tables(folder / TABLES, keys, len(items))
    del card["format_version"]
    return Dataset(str(card.get("name", folder.name)), items, tables, card, list(_read_lines(folder / QUARANTINE)))


def _write_lines(path: Path, entries: Any) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove the folder and prepare again") from None


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove the folder and prepare again") from None


def _blocks(table: Table) -> Iterator[dict[str, Any]]:
    """A table in records of up to `BLOCK` rows, ragged parts as flat values with lengths."""
    for first in range(0, len(table), BLOCK):
        part = table.take(np.arange(first, min(first + BLOCK, len(table))))
        negatives = np.zeros((len(part), 0), np.int32) if part.negatives is None else part.negatives
        yield {
            "task": part.task,
            "user_id": part.user_ids,
            "history": part.history,
            "history_length": np.diff(part.offsets),
            "target": part.target,
            "query": part.queries,
            "negatives": negatives.reshape(-1),
            "num_negatives": negatives.shape[1],
        }


def _write_tables(tables: dict[tuple[str, str], Table], folder: Path) -> None:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "task": tfds.features.Text(),
            "user_id": tfds.features.Sequence(tfds.features.Text()),
            "history": tfds.features.Sequence(np.int32),
            "history_length": tfds.features.Sequence(np.int32),
            "target": tfds.features.Sequence(np.int32),
            "query": tfds.features.Sequence(tfds.features.Text()),
            "negatives": tfds.features.Sequence(np.int32),
            "num_negatives": np.int32,
        }
    )
    splits = {f"{split}_{task}": list(_blocks(table)) for (split, task), table in tables.items() if len(table)}
    if not splits:
        raise ValueError("the dataset has no rows at all; check the raw data and the quarantine")

    class Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = _BUILDER
        VERSION = tfds.core.Version("1.0.0")
        # None: there are no downloads, hence no checksums to look for beside the builder's source file (the
        # search needs a package that tensorflow-datasets does not install).
        code_path = None

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(name) for name in splits}

        def _generate_examples(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(splits[name])

    with _quiet():
        Rows(data_dir=folder, file_format="array_record").download_and_prepare(file_format="array_record")
    shutil.rmtree(folder / "downloads", ignore_errors=True)


def _read_tables(folder: Path, keys: list[tuple[str, ...]], num_items: int) -> dict[tuple[str, str], Table]:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder / _BUILDER / "1.0.0", file_format="array_record")
        stored = set(builder.info.splits)
        tables = {}
        for split, task in keys:
            name = f"{split}_{task}"
            blocks = list(builder.as_data_source(split=name)) if name in stored else []
            tables[split, task] = _join(task, blocks)
    except Exception as error:  # every reader below has errors of its own
        raise ValueError(f"{folder} is damaged ({error}); remove {folder.parent} and prepare again") from error
    for (split, task), table in tables.items():
        for numbers in (table.history, table.target, table.negatives):
            if numbers is not None and numbers.size and not 0 <= numbers.min() <= numbers.max() < num_items:
                raise ValueError(
                    f"{folder}: table {split}/{task} has item numbers outside 0..{num_items - 1}; prepare again"
                )
    return tables


def _join(task: str, blocks: list[dict[str, Any]]) -> Table:
    def flat(name: str, dtype: Any) -> np.ndarray:
        parts = [np.asarray(block[name], dtype) for block in blocks]
        return np.concatenate(parts) if parts else np.zeros(0, dtype)

    def words(name: str) -> list[str]:
        return [value.decode("utf-8") for block in blocks for value in block[name]]

    target = flat("target", np.int32)
    num_negatives = int(blocks[0]["num_negatives"]) if blocks else 0
    negatives = flat("negatives", np.int32).reshape(len(target), num_negatives) if num_negatives else None
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(flat("history_length", np.int64))])
    return Table(task, words("user_id"), flat("history", np.int32), offsets, target, words("query"), negatives)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the writer's own lines: they speak of downloads, of which there are none."""
    from absl import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.ExitStack() as stack:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        logging.set_verbosity(level)
