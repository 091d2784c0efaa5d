"""Ranks the rows of evaluation tables with a model, and measures the rankings."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from gems_jax.data.batching.pipeline import gather_inputs
from gems_jax.data.batching.prompts import EncodedTable
from gems_jax.data.dataset.tables import Table
from gems_jax.evaluation.ranking_summary import shuffled_candidates, summarise
from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.groups import groups_of
from gems_jax.ranking.rank_items import rank_items
from gems_jax.ranking.ties import Ties, ties_of

# Items of each row that are kept: the deepest cut-off of the metrics.
RANKED = 20


class _Ranked(NamedTuple):
    """What a search found: item numbers ``[R, k]``, their scores, rows whose target is among its results, ties."""

    ids: np.ndarray
    scores: np.ndarray
    found: np.ndarray
    ties: Ties | None


def rank_table(
    model: Any,
    items: ItemIndex,
    table: Table,
    encoded: EncodedTable,
    *,
    k: int = RANKED,
    beams: int = 20,
    vocabulary: Literal["full", "items"] = "full",
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks each row's target among its negatives, or among the whole catalogue where it has none.

    Args:
      model: a ``gems_jax.models.T5`` or ``Decoder``, grown to the items.
      items: identifiers of the N items.
      table: R rows.
      encoded: the same rows as tokens.
      k: number of results a row.
      beams: as in ``rank_items``.
      vocabulary: as in ``rank_items``.
      batch_size: rows a pass.
      seed: of the order of the candidates, which decides ties.
      progress: shows rows done, rate and time left.

    Returns:
      Item numbers int32 ``[R, k]``, best first, and scores float32 ``[R, k]``.

    Raises:
      ValueError: if the table and its tokens have different numbers of rows, or the model gives nan.
    """
    ranked = _ranked(model, items, table, encoded, k, k, beams, vocabulary, batch_size, seed, progress)
    return ranked.ids, ranked.scores


def _ranked(
    model: Any,
    items: ItemIndex,
    table: Table,
    encoded: EncodedTable,
    k: int,
    results: int,
    beams: int,
    vocabulary: Literal["full", "items"],
    batch_size: int,
    seed: int,
    progress: bool,
) -> _Ranked:
    """`rank_table` by a search for ``results`` items, or identifiers where several items share one: k are kept."""
    if len(table) != len(encoded):
        raise ValueError(
            f"task {table.task!r}: the table has {len(table)} rows and its tokens {len(encoded)}: "
            "encode this very table"
        )
    candidates = None
    if table.negatives is not None:
        candidates = np.take_along_axis(table.candidates(), shuffled_candidates(table, seed), axis=1)
    groups = groups_of(items) if items.shared else None
    of, among = items, candidates
    if groups is not None:
        of, among = groups.index, None if candidates is None else groups.among(candidates)
    ids = np.empty((len(table), results), np.int32)
    scores = np.empty((len(table), results), np.float32)
    config = model.config
    batch_size = min(batch_size, len(table))
    what = f"ranking {table.task}" + (", all items" if candidates is None else "")
    with tqdm(total=len(table), desc=what, unit="row", disable=not progress) as bar:
        for rows, length in _rows_by_length(encoded.lengths(), batch_size):
            real = rows >= 0
            input_ids, attention_mask = gather_inputs(encoded, rows, length, config.pad_token_id)
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            # Rows that fill the last batch rank the candidates of row 0 and are thrown away.
            allowed = None if among is None else among[np.maximum(rows, 0)]
            ranked, values = rank_items(model, inputs, of, allowed, results, beams, vocabulary=vocabulary)
            ids[rows[real]], scores[rows[real]] = np.asarray(ranked)[real], np.asarray(values)[real]
            bar.update(int(real.sum()))
    if np.isnan(scores).any():
        raise ValueError(
            f"task {table.task!r}: the model gives scores that are not numbers; its weights hold nan or inf: "
            "go back to an earlier checkpoint"
        )
    if groups is None:
        return _Ranked(ids[:, :k], scores[:, :k], (ids == table.target[:, None]).any(axis=1), None)
    ties = ties_of(ids, table.target, groups, candidates)
    return _Ranked(*groups.listed(ids, scores, candidates, k), ties.ahead >= 0, ties)


def _rows_by_length(lengths: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of each batch, short inputs first, -1 filling the last one, and the length the batch is padded to.

    Lengths are powers of two: little padding, and few programs to compile.
    """
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        longest = int(lengths[rows].max())
        padding = np.full(batch_size - len(rows), -1)
        yield np.concatenate([rows, padding]), max(8, 1 << (longest - 1).bit_length())


def evaluate_ranking(
    model: Any,
    items: ItemIndex,
    tables: Mapping[str, Table],
    encoded: Mapping[str, EncodedTable],
    *,
    k: int = RANKED,
    beams: int = 20,
    vocabulary: Literal["full", "items"] = "full",
    batch_size: int = 64,
    samples: int = 1000,
    seed: int = 0,
    save_to: str | os.PathLike[str] | None = None,
    new: Mapping[str, np.ndarray] | None = None,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Ranks and measures every task.

    Args:
      model: a ``gems_jax.models.T5`` or ``Decoder``, grown to the items.
      items: identifiers of the N items.
      tables: task to its R rows.
      encoded: task to the same rows as tokens.
      k: number of results a row that are kept; metrics at cut-offs above it are left out.
      beams: as in ``rank_items``.
      vocabulary: as in ``rank_items``: what training normalised over.
      batch_size: rows a pass.
      samples: bootstrap resamples for the intervals; 0 leaves them out.
      seed: of the order of the candidates and of the resamples.
      save_to: folder for what was found in each row, ``ranking_<task>.npz`` with ``user_ids``, ``target``,
        ``items`` ``[R, k]``, ``scores`` ``[R, k]`` and ``rank`` (from 1, 0 where not among the first k); where items
        share identifiers ``ahead`` and ``tied``, see `gems_jax.ranking.ties.Ties`. Two such folders are compared with
        `gems_jax.evaluation.compare_runs.compare_runs`.
      new: task to the rows that are measured apart as well, bool ``[R]``, see ``summarise``.
      progress: shows rows done, rate and time left.

    Returns:
      Task to its metrics, as made by ``summarise``, with the width of the search, ``"beams"``, and the share of rows
      whose target was not among the items that it ended with, ``"off_beam"``: no cut-off could find those. Where items
      share identifiers a search ends with ``beams`` identifiers.

    Raises:
      ValueError: if a task has a table and no tokens, or the other way round.
    """
    if set(tables) != set(encoded):
        raise ValueError(f"tables are given for {sorted(tables)}, tokens for {sorted(encoded)}: both must agree")
    results = {}
    for task, table in tables.items():
        ids, scores, found, ties = _ranked(
            model, items, table, encoded[task], k, max(k, beams), beams, vocabulary, batch_size, seed, progress
        )
        if save_to is not None:
            save_rankings(Path(save_to) / f"ranking_{task}.npz", table, ids, scores, ties)
        candidates = items.num_items - len(items.removed) if table.negatives is None else None
        results[task] = summarise(
            table, ids, samples=samples, seed=seed, candidates=candidates, new=(new or {}).get(task), ties=ties
        )
        results[task] |= {"beams": beams, "off_beam": float(1 - found.mean())}
    return results


def load_rankings(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads what ``evaluate_ranking`` has saved of a task.

    Args:
      path: a ``ranking_<task>.npz``.

    Returns:
      ``user_ids``, ``target``, ``items``, ``scores`` and ``rank``, a row each, and where items share identifiers
      ``ahead`` and ``tied``.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no rankings there; evaluate the run first")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def save_rankings(path: Path, table: Table, ids: np.ndarray, scores: np.ndarray, ties: Ties | None = None) -> None:
    """Writes what was found in each row, whole or not at all; ``np.load`` reads it without pickles.

    Args:
      path: file to write; its folder is made.
      table: R rows.
      ids: item numbers ``[R, k]``, best first.
      scores: their scores ``[R, k]``.
      ties: of items that share identifiers; they are kept, too, as ``ahead`` and ``tied``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hits = ids == table.target[:, None]
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez_compressed(
            unfinished,
            user_ids=np.asarray(table.user_ids, dtype=np.str_),
            target=table.target,
            items=ids,
            scores=scores,
            rank=np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int32),
            **({} if ties is None else ties._asdict()),
        )
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
