"""Tables as a tensorflow-datasets builder of array-record shards, without TensorFlow."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import Table

# Rows a record: decoding a record costs far more than the numbers in it.
BLOCK = 1024
VERSION = "1.0.0"


def write_tables(name: str, tables: Mapping[tuple[str, str], Table], folder: Path) -> None:
    """Writes a tensorflow-datasets builder of the dataset's name, with a split ``<split>_<task>`` for each table.

    Read it with ``tfds.builder_from_directory(folder / name / "1.0.0", file_format="array_record").as_data_source()``;
    an element is up to 1,024 rows.

    Args:
      name: of the dataset.
      tables: ``(split, task)`` to table; empty ones are not written.
      folder: where the builder's folder goes.
    """
    import tensorflow_datasets as tfds

    def flat(dtype: type) -> Any:
        # Bytes: numbers one by one cost fifty times as much, and float64 would become float32.
        return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")

    features = tfds.features.FeaturesDict(
        {
            "task": tfds.features.Text(),
            "user_id": tfds.features.Sequence(tfds.features.Text()),
            "history": flat(np.int32),
            "history_length": flat(np.int32),
            "target": flat(np.int32),
            "query": tfds.features.Sequence(tfds.features.Text()),
            "negatives": flat(np.int32),
            "num_negatives": np.int32,
            "time": flat(np.float64),
        }
    )
    splits = {f"{split}_{task}": table for (split, task), table in tables.items() if len(table)}
    if not splits:
        raise ValueError("the dataset has no rows at all; check the raw data and the quarantine")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version(VERSION)
        # None: there are no downloads, hence no checksums to look for beside the builder's source file (the
        # search needs a package that tensorflow-datasets does not install).
        code_path = None

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(_blocks(splits[split]))

    Builder.name = re.sub(r"\W+", "_", name.lower())
    try:
        with _quiet():
            Builder(data_dir=folder, file_format="array_record").download_and_prepare(file_format="array_record")
    finally:
        # The class outlives this call, the tables need not.
        splits.clear()
    shutil.rmtree(folder / "downloads", ignore_errors=True)


def join_tables(shards: Sequence[Path], folder: Path) -> None:
    """Makes one builder of the tables that `write_tables` wrote in shards; their files become those of it.

    Args:
      shards: folders that `write_tables` wrote to, in the order of the rows; they stay.
      folder: where the builder's folder goes.
    """
    import tensorflow_datasets as tfds

    directories = [next(shard.glob(f"*/{VERSION}")) for shard in shards]
    builders = [tfds.builder_from_directory(directory, file_format="array_record") for directory in directories]
    target = folder / directories[0].parent.name / VERSION
    target.mkdir(parents=True)
    splits = []
    # In the order of the first shard that has them.
    for name in dict.fromkeys(name for builder in builders for name in builder.info.splits):
        split_infos = [builder.info.splits[name] for builder in builders if name in builder.info.splits]
        lengths = [length for split in split_infos for length in split.shard_lengths]
        whole = split_infos[0].replace(shard_lengths=lengths, num_bytes=sum(split.num_bytes for split in split_infos))
        template = whole.filename_template.replace(data_dir=target)
        splits.append(whole.replace(filename_template=template))
        paths = [path for split in split_infos for path in split.filepaths]
        for number, path in enumerate(paths):
            _link(Path(path), Path(template.sharded_filepath(shard_index=number, num_shards=len(paths))))
    info = builders[0].info
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)


def read_tables(folder: Path, keys: list[tuple[str, ...]], num_items: int) -> dict[tuple[str, str], Table]:
    """The tables that `write_tables` wrote; those it left out are empty.

    Raises:
      ValueError: the folder is damaged, or names items that there are not.
    """
    import tensorflow_datasets as tfds

    try:
        directory = next(folder.glob(f"*/{VERSION}"))
        builder = tfds.builder_from_directory(directory, file_format="array_record")
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


def _blocks(table: Table) -> Iterator[dict[str, Any]]:
    """A table in records of up to `BLOCK` rows, ragged parts as flat values with lengths."""
    for first in range(0, len(table), BLOCK):
        part = table.take(np.arange(first, min(first + BLOCK, len(table))))
        negatives = np.zeros((len(part), 0), np.int32) if part.negatives is None else part.negatives
        yield {
            "task": part.task,
            "user_id": part.user_ids,
            "history": part.history,
            "history_length": np.diff(part.offsets).astype(np.int32),
            "target": part.target,
            "query": part.queries,
            "negatives": negatives.reshape(-1),
            "num_negatives": negatives.shape[1],
            "time": np.zeros(0) if part.time is None else part.time,
        }


def _join(task: str, blocks: list[dict[str, Any]]) -> Table:
    def flat(name: str, dtype: Any) -> np.ndarray:
        parts = [np.asarray(block[name], dtype) for block in blocks]
        return np.concatenate(parts) if parts else np.zeros(0, dtype)

    def words(name: str) -> list[str]:
        # One string for all rows that have it.
        known: dict[bytes, str] = {}
        return [
            known.get(value) or known.setdefault(value, value.decode("utf-8"))
            for block in blocks
            for value in block[name]
        ]

    target = flat("target", np.int32)
    num_negatives = int(blocks[0]["num_negatives"]) if blocks else 0
    negatives = flat("negatives", np.int32).reshape(len(target), num_negatives) if num_negatives else None
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(flat("history_length", np.int64))])
    time = flat("time", np.float64)
    return Table(
        task=task,
        user_ids=words("user_id"),
        history=flat("history", np.int32),
        offsets=offsets,
        target=target,
        queries=words("query"),
        negatives=negatives,
        time=time if len(time) else None,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the writer's own lines: they speak of downloads, of which there are none."""
    from absl import logging as absl_logging

    level = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    # Whoever logs first gives the root logger a handler, which would keep the stream of that moment.
    handlers = list(logging.root.handlers)
    try:
        with contextlib.ExitStack() as stack:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        absl_logging.set_verbosity(level)
        for handler in set(logging.root.handlers) - set(handlers):
            logging.root.removeHandler(handler)
