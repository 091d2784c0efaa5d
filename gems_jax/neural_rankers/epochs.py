"""Training by epochs until validation rows are ranked no better."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gems_jax.data.dataset.tables import Table

# Rows that are scored at once.
ROWS = 256


class Scores(Protocol):
    """Scores of some rows' candidates, or of all items: a `gems_jax.evaluation.non_neural.Scorer`."""

    def __call__(self, rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray: ...


def train_epochs(
    params: Any,
    epoch: Callable[[Any], tuple[Any, float]],
    measure: Callable[[Any], float],
    *,
    epochs: int,
    patience: int,
    what: str,
    progress: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Trains until the measure has not risen for some epochs.

    Args:
      params: at the start.
      epoch: gives the parameters of an epoch later, and its mean loss.
      measure: of parameters, larger is better.
      epochs: most of them.
      patience: epochs without a better measure, after which it ends.
      what: is trained, for the bar.
      progress: shows epochs done, the loss, the measure and the time left.

    Returns:
      The parameters of the best epoch, and ``"epochs"``, ``"best_epoch"`` and ``"valid_ndcg@10"``.
    """
    best, best_epoch, best_params = -math.inf, 0, params
    with tqdm(total=epochs, desc=what, unit="epoch", disable=not progress) as bar:
        for number in range(1, epochs + 1):
            params, loss = epoch(params)
            value = measure(params)
            bar.set_postfix(loss=f"{loss:.3f}", ndcg=f"{value:.4f}")
            bar.update()
            if value > best:
                # The next epoch may take the memory of these.
                best, best_epoch, best_params = value, number, jax.tree.map(jnp.copy, params)
            if number - best_epoch >= patience:
                break
    return best_params, {"epochs": number, "best_epoch": best_epoch, "valid_ndcg@10": best}


def catalogue_ndcg(scorer: Scores, valid: Table) -> float:
    """ndcg@10 of rows among the whole catalogue; an item with the target's score stands before it.

    Args:
      scorer: of the table's rows.
      valid: R rows.
    """
    gains: list[float] = []
    for start in range(0, len(valid), ROWS):
        rows = np.arange(start, min(start + ROWS, len(valid)))
        scores = scorer(rows, None)
        right = scores[np.arange(len(rows)), valid.target[rows]]
        place = (scores >= right[:, None]).sum(axis=1)
        gains += [1 / math.log2(1 + p) if p <= 10 else 0.0 for p in place.tolist()]
    return float(np.mean(gains))


def product_scores(states: np.ndarray, items: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
    """Products of each row's state with its candidates' vectors, or with all items'.

    Args:
      states: float32 ``[r, d]``.
      items: float32 ``[N, d]``.
      candidates: item numbers ``[r, C]``; ``None``: all.

    Returns:
      float32 ``[r, C]`` or ``[r, N]``.
    """
    if candidates is None:
        return states @ items.T
    return np.stack([items[of_row] @ state for of_row, state in zip(candidates, states, strict=True)])
