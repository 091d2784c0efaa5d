"""Identifiers on file: a JSON object of items and their codes as tokens, as others publish it; codebooks beside it."""

import dataclasses
import json
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.checksums import check_written
from gems_jax.identifiers.checks import MOST_LEVELS, MOST_SIZE
from gems_jax.identifiers.codes import Identifiers
from gems_jax.identifiers.residual_vae import LatentEncoder
from gems_jax.items.tokens import read_identifiers

CODES, CODEBOOKS = "identifiers.json", "codebooks.npz"
# Codes are written with a name of their level and a number.
_TOKEN = re.compile(r"<([^<>\d]+|[^<>]*\D)(\d{1,9})>")


def load(path: str | os.PathLike[str]) -> Identifiers:
    """Reads identifiers as they are published, or a folder that ``gems-jax identify`` made; nothing is unpickled.

    Args:
      path: JSON file, ``{"0": ["<a_113>", "<b_148>", ...], ...}``: an object of item id to one token a level, each with
        the level's name and a number; as a list or in one string. Or a folder of such an ``identifiers.json`` and
        ``codebooks.npz``.

    Returns:
      `Identifiers` of the items in the file's order, with ``item_ids`` and ``level_names``. Those of a file have no
      codebooks, and items may share all codes: `Identifiers.report` says how many do.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such object, too large or damaged, an item stands there twice, or has another number of
        levels, another level's token or a number out of range.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "codes.json"
      >>> _ = path.write_text('{"B01": ["<a_1>", "<b_20>"], "B02": "<a_1><b_3>"}')
      >>> load(path).codes.tolist(), load(path).item_ids
      ([[1, 20], [1, 3]], ('B01', 'B02'))
    """
    if Path(path).is_dir():
        return _load_folder(Path(path))
    return _load_codes(path)


def write_codes(folder: Path, ids: Identifiers, item_ids: Sequence[str]) -> None:
    """Writes codes and codebooks into a folder, for `load`.

    Args:
      folder: of files.
      ids: with codebooks.
      item_ids: of the N items.
    """
    assert ids.codebooks is not None
    tokens = dict(zip(item_ids, map(list, ids.tokens()), strict=True))
    (folder / CODES).write_text(json.dumps(tokens, ensure_ascii=False) + "\n", encoding="utf-8")
    arrays: dict[str, Any] = {"codebooks": ids.codebooks}
    if isinstance(ids.encoder, LatentEncoder):
        encoder = ids.encoder
        arrays |= {"mean": encoder.mean, "scale": np.float64(encoder.scale)}
        for number, (kernel, bias) in enumerate(zip(encoder.kernels, encoder.biases, strict=True)):
            arrays |= {f"kernel.{number}": kernel, f"bias.{number}": bias}
    np.savez(folder / CODEBOOKS, **arrays)


def _load_folder(folder: Path) -> Identifiers:
    for name in (CODES, CODEBOOKS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no identifiers in {folder}: {name} is missing; make them by gems-jax identify")
        check_written(folder, name, "make the identifiers again by gems-jax identify")
    ids = _load_codes(folder / CODES)
    try:
        # Opened here: np.load leaves a file that is no archive open.
        with open(folder / CODEBOOKS, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            books, encoder = arrays["codebooks"], None
            if "mean" in arrays:
                layers = range(sum(name.startswith("kernel.") for name in arrays))
                kernels, biases = (tuple(arrays[f"{kind}.{n}"] for n in layers) for kind in ("kernel", "bias"))
                encoder = LatentEncoder(kernels, biases, arrays["mean"], float(arrays["scale"]))
        if books.ndim != 3 or len(books) != ids.codes.shape[1] or ids.codes.max() >= books.shape[1]:
            raise ValueError(f"codebooks of shape {books.shape} do not go with {CODES}")
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder / CODEBOOKS} is damaged ({error}); make it again by gems-jax identify") from error
    return dataclasses.replace(ids, codebooks=books, encoder=encoder)


def _load_codes(path: str | os.PathLike[str]) -> Identifiers:
    tokens_of = read_identifiers(path)
    names: list[str] = []
    codes = []
    for item_id, tokens in tokens_of.items():
        found = [_TOKEN.fullmatch(token) for token in tokens]
        levels = [match.group(1) if match else "" for match in found]
        names = names or levels
        if not all(levels) or levels != names or len(set(names)) < len(names):
            raise ValueError(
                f"{path}: item {item_id!r} has {list(tokens)}: expected a token a level, each with the level's name "
                "and a number, the same levels for all items, such as ['<a_12>', '<b_7>']"
            )
        codes.append([int(match.group(2)) for match in found if match])
    array = np.array(codes, np.int64)
    if len(names) > MOST_LEVELS or array.max() >= MOST_SIZE:
        raise ValueError(
            f"{path} has {len(names)} levels and codes up to {array.max()}: at most {MOST_LEVELS} levels and codes "
            f"below {MOST_SIZE:,} are read"
        )
    return Identifiers(array.astype(np.int32), item_ids=tuple(tokens_of), level_names=tuple(names))
