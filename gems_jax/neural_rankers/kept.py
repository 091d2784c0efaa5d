"""Trained rankers in a folder, so that what was trained on the same rows in the same way is not trained again."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gems_jax.checksums import damage, write_checksums
from gems_jax.data.dataset.tables import Table
from gems_jax.staging import whole_folder
from gems_jax.version import __version__

_WEIGHTS, _FACTS = "weights.npz", "facts.json"


@dataclasses.dataclass(frozen=True)
class Keep:
    """Where a trained ranker is kept, and what it was made of.

    Args:
      folder: of this ranker of this task.
      made_of: a digest of all that decides its weights, as of `made_of`.
    """

    folder: Path
    made_of: str

    def read(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The kept parameters and their course; ``None`` where there are none, of other inputs, or damaged.

        Args:
          like: parameters of the same shapes.
        """
        if not (self.folder / _FACTS).is_file():
            return None
        wrong = damage(self.folder)
        if wrong is not None:
            print(f"evaluate: {self.folder} is damaged ({wrong}): it is made again")
            return None
        facts = json.loads((self.folder / _FACTS).read_text(encoding="utf-8"))
        if facts["made_of"] != self.made_of:
            print(f"evaluate: {self.folder} was trained on other rows, texts or settings: it is made again")
            return None
        leaves, tree = jax.tree.flatten(like)
        with np.load(self.folder / _WEIGHTS, allow_pickle=False) as arrays:
            kept = [arrays[str(number)] for number in range(len(arrays.files))]
        if [leaf.shape for leaf in kept] != [leaf.shape for leaf in leaves]:
            print(f"evaluate: {self.folder} holds weights of other shapes: it is made again")
            return None
        return jax.tree.unflatten(tree, kept), facts["course"]

    def write(self, params: Any, course: dict[str, Any]) -> None:
        """Keeps trained parameters and how training went; the folder appears whole."""
        with whole_folder(self.folder) as fresh:
            arrays: dict[str, Any] = {str(n): np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(params))}
            np.savez(fresh / _WEIGHTS, **arrays)
            facts = {"made_of": self.made_of, "course": course}
            (fresh / _FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            write_checksums(fresh)


def made_of(options: Any, tables: Iterable[Table], num_items: int, vectors: Iterable[np.ndarray] = ()) -> str:
    """A digest of what decides a trained ranker: settings, rows, size of the catalogue, vectors of texts, version.

    Args:
      options: a dataclass of JSON values.
      tables: training and validation rows; negatives and times decide nothing.
      num_items: N.
      vectors: of the texts that are read.

    Example:
      >>> from gems_jax.config.rankers import SasrecConfig
      >>> from gems_jax.data.dataset.tables import Row
      >>> rows = Table.from_rows("rec", [Row("ann", [0], 1)])
      >>> digest = made_of(SasrecConfig(), [rows], 3)
      >>> digest == made_of(SasrecConfig(), [rows], 3), digest == made_of(SasrecConfig(width=8), [rows], 3)
      (True, False)
    """
    digest = hashlib.sha256(json.dumps([__version__, num_items, dataclasses.asdict(options)]).encode())
    for table in tables:
        digest.update(json.dumps([table.task, table.user_ids, table.queries]).encode())
        for array in (table.history, table.offsets, table.target):
            digest.update(np.ascontiguousarray(array, np.int64).tobytes())
    for array in vectors:
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
