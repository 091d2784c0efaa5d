"""Codes of items, the codebooks that they are from, and how other embeddings get theirs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from gems_jax.identifiers.checks import check_width, checked_embeddings
from gems_jax.identifiers.kmeans import chunks_of, nearest
from gems_jax.identifiers.measures import in_collisions, use_of_level
from gems_jax.identifiers.reassignment import Reassigned, reassign

# From embeddings to the vectors that codebooks are of, a chunk at a time.
Encoder = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Identifiers:
    """The codes of N items: ``L`` numbers each, from ``L`` codebooks of ``K`` vectors.

    Args:
      codes: int32 ``[N, L]``.
      codebooks: float32 ``[L, K, d]``; ``None`` where a file has codes alone.
      item_ids: of the N items, where a file names them.
      level_names: what the token of a code has before its number; ``None``: ``c1_``, ``c2_``, ...
      encoder: what embeddings go through before they are quantised; ``None``: nothing.
      errors: mean squared distance of the items' vectors from their mean, then from the sums of their first
        1, ..., L codes.

    Example:
      >>> books = np.array([[[0.0], [8.0]], [[-1.0], [1.0]]], np.float32)
      >>> Identifiers(np.array([[0, 1]], np.int32), books).assign(np.array([[7.2], [0.5]])).tolist()
      [[1, 0], [0, 1]]
    """

    codes: np.ndarray
    codebooks: np.ndarray | None = None
    item_ids: tuple[str, ...] | None = None
    level_names: tuple[str, ...] | None = None
    encoder: Encoder | None = None
    errors: tuple[float, ...] = ()

    def tokens(self) -> list[tuple[str, ...]]:
        """The tokens of each item, one a level.

        Example:
          >>> Identifiers(np.array([[4, 17]], np.int32)).tokens()
          [('<c1_4>', '<c2_17>')]
        """
        names = self.level_names or tuple(f"c{level + 1}_" for level in range(self.codes.shape[1]))
        written = [[f"<{name}{code}>" for code in range(int(self.codes.max()) + 1)] for name in names]
        return [tuple(level[code] for level, code in zip(written, row, strict=True)) for row in self.codes.tolist()]

    def assign(self, embeddings: np.ndarray) -> np.ndarray:
        """The codes of embeddings, those of the nearest vectors level by level: int32 ``[n, L]``.

        ``c_l = argmin_k |r_l - C_l[k]|^2``, ``r_1 = x``, ``r_{l + 1} = r_l - C_l[c_l]``. Items may share all codes:
        `gems_jax.identifiers.reassign` separates them.

        Args:
          embeddings: float ``[n, d]``, as those that the codebooks were fitted on.

        Raises:
          ValueError: there are no codebooks, or the embeddings are of another width or not finite.
        """
        if self.codebooks is None:
            raise ValueError("these identifiers were read without codebooks: nothing can be assigned to new items")
        return quantise(self.vectors(embeddings), self.codebooks)

    def vectors(self, embeddings: np.ndarray) -> np.ndarray:
        """What the codebooks quantise: the embeddings, through the encoder where there is one; float32 ``[n, d]``."""
        rows = checked_embeddings(embeddings)
        return rows if self.encoder is None else np.concatenate([self.encoder(chunk) for chunk in chunks_of(rows)])

    def without_collisions(self, embeddings: np.ndarray) -> tuple["Identifiers", Reassigned]:
        """The same with codes that no two items share, and what that took: see `reassign`.

        Args:
          embeddings: of the N items.

        Raises:
          ValueError: there are no codebooks, or more items than codes.
        """
        if self.codebooks is None:
            raise ValueError("these identifiers were read without codebooks: give the codebooks to reassign")
        reassigned = reassign(self.codes, self.vectors(embeddings), self.codebooks)
        errors = (*self.errors[:-1], reassigned.after) if self.errors else ()
        return dataclasses.replace(self, codes=reassigned.codes, errors=errors), reassigned

    def report(self) -> dict[str, Any]:
        """What the codes are like, JSON values only.

        Returns:
          ``items``, ``levels``, ``size`` (K, or the largest code and 1), ``distinct`` identifiers, ``in_collisions``
          (items that share theirs), ``used`` (codes, of each level), ``largest`` (items of the code that most have, of
          each level), ``entropy_bits`` (of each level; at most ``log2 K``) and, where there were embeddings, ``error``:
          the share of their variance that is left after each level.
        """
        count, levels = self.codes.shape
        use = [use_of_level(column) for column in self.codes.T]
        report: dict[str, Any] = {
            "items": count,
            "levels": levels,
            "size": int(self.codes.max()) + 1 if self.codebooks is None else self.codebooks.shape[1],
            "distinct": len(np.unique(self.codes, axis=0)),
            "in_collisions": in_collisions(self.codes),
            "used": [used for used, _, _ in use],
            "largest": [largest for _, largest, _ in use],
            "entropy_bits": [round(entropy, 4) for _, _, entropy in use],
        }
        if self.errors:
            report["error"] = [round(error / max(self.errors[0], 1e-30), 6) for error in self.errors[1:]]
        return report


def quantise(rows: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Codes of rows, those of the nearest vectors level by level: int32 ``[N, L]``.

    Args:
      rows: float ``[N, d]``.
      codebooks: float32 ``[L, K, d]``.
    """
    check_width(rows, codebooks)
    codes = []
    for chunk in chunks_of(rows):
        columns = []
        for book in codebooks:
            columns.append(nearest(chunk, book)[0])
            chunk = chunk - book[columns[-1]]
        codes.append(np.stack(columns, axis=1))
    return np.concatenate(codes)
