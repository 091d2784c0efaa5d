"""Tables as tokens on disk: encoded once, then memory-mapped by every run of the same inputs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gems_jax.checksums import write_checksums
from gems_jax.data.batching.encoded_table import FORMAT_VERSION, META, EncodedTable, open_encoded
from gems_jax.data.batching.prompts import encode_table, item_rows, parse_template
from gems_jax.data.batching.wording import TITLES
from gems_jax.data.dataset.tables import Table
from gems_jax.staging import fresh_folder, is_remote

if TYPE_CHECKING:
    from gems_jax.models.family import Layout

_TEXTS = 65_536


def encode_once(
    table: Table,
    tokenizer: Any,
    item_token_ids: Any,
    template: str,
    max_length: int,
    folder: str | Path,
    layout: Layout = "encoder_decoder",
    titles: Sequence[str] | None = None,
) -> EncodedTable:
    """The `encode_table` of the same arguments, from files in a folder if they are there, else written there first.

    The files' folder is named by a fingerprint of all inputs: rows, tokenizer, item tokens, template, length, layout,
    titles. It appears when it is whole; processes that write it at the same time write the same.

    Args:
      table: ``R`` rows.
      tokenizer: a Hugging Face tokenizer.
      item_token_ids: see `encode_table`.
      template: see `encode_table`.
      max_length: see `encode_table`.
      folder: holds a folder for each encoded table.
      layout: see `encode_table`.
      titles: see `encode_table`.

    Returns:
      The table's tokens, memory-mapped.

    Raises:
      ValueError: as `encode_table`, or what is in the folder is damaged, or it is not on this machine.
    """
    if is_remote(folder):
        raise ValueError(f"tokens cannot be mapped into memory from {folder}; name a folder on this machine's disk")
    name = fingerprint(table, tokenizer, item_token_ids, template, max_length, layout, titles)
    table_folder = Path(folder) / f"{_plain(table.task)}-{name[:20]}"
    if (table_folder / META).is_file():
        return open_encoded(table_folder)
    table_folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = fresh_folder(table_folder)
    try:

        def allocate(count: int) -> np.ndarray:
            return np.lib.format.open_memmap(temporary / "tokens.npy", "w+", np.int32, (count,))

        # An empty file cannot be mapped.
        encoded = encode_table(
            table, tokenizer, item_token_ids, template, max_length, layout, allocate if len(table) else None, titles
        )
        if isinstance(encoded.tokens, np.memmap):
            encoded.tokens.flush()
        else:
            np.save(temporary / "tokens.npy", encoded.tokens)
        np.save(temporary / "offsets.npy", encoded.offsets)
        np.save(temporary / "target_tokens.npy", encoded.target_tokens)
        meta = {
            "format_version": FORMAT_VERSION,
            "task": encoded.task,
            "family": layout,
            "dropped_items": encoded.dropped_items,
            "clipped_queries": encoded.clipped_queries,
        }
        (temporary / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        del encoded
        write_checksums(temporary)
        try:
            os.rename(temporary, table_folder)
        except OSError:
            # Another process was first.
            if not (table_folder / META).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_encoded(table_folder)


def fingerprint(
    table: Table,
    tokenizer: Any,
    item_token_ids: Any,
    template: str,
    max_length: int,
    layout: Layout,
    titles: Sequence[str] | None = None,
) -> str:
    """SHA-256 of all that decides an encoded table's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    settings = [FORMAT_VERSION, table.task, template, max_length, layout, len(table), tokenizer.eos_token_id]
    digest.update(json.dumps(settings).encode())
    for part in _tokenizer_parts(tokenizer):
        digest.update(part)
    for array in (item_rows(item_token_ids), table.history, table.offsets, table.target):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    for start in range(0, len(table), _TEXTS):
        digest.update(json.dumps(table.queries[start : start + _TEXTS]).encode())
    if TITLES in parse_template(template):
        digest.update(json.dumps(titles).encode())
    return digest.hexdigest()


def _tokenizer_parts(tokenizer: Any) -> Iterator[bytes]:
    """Tells what a tokenizer does to a text: by its whole description or, where it has none, by its vocabulary."""
    yield f"{type(tokenizer).__name__} {tokenizer('a')['input_ids']}".encode()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    yield (backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))).encode()


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_." else "_" for letter in name)
