"""Training by epochs until validation rows are ranked no better."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gems_jax.data.dataset.tables import Table
from gems_jax.neural_rankers.kept import Keep

# Rows that are scored at once.
ROWS = 256


class Scores(Protocol):
    """Scores of some rows' candidates, or of all items: a `gems_jax.evaluation.non_neural.Scorer`."""

    def __call__(self, rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray: ...


def train_epochs(
    params: Any,
    epoch: Callable[[Any, Callable[[jax.Array], None]], Any],
    measure: Callable[[Any], float],
    *,
    epochs: int,
    patience: int,
    steps: int,
    what: str,
    rate_field: str,
    keep: Keep | None = None,
    progress: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Trains until the measure has not risen for some epochs.

    Args:
      params: at the start.
      epoch: of parameters, and of what is called with the loss of each step: gives those of an epoch later.
      measure: of parameters, larger is better.
      epochs: most of them.
      patience: epochs without a better measure, after which it ends.
      steps: of an epoch.
      what: is trained, in words.
      rate_field: of the configuration, which has the learning rate.
      keep: where the result is kept, and read from where it was made in the same way; ``None``: nowhere.
      progress: shows beforehand how much there is to do; steps done, rate, the time left if no epoch is spared, the
        loss and the measure.

    Returns:
      The parameters of the best epoch, and ``"epochs"``, ``"steps"``, ``"best_epoch"`` and ``"valid_ndcg@10"``.

    Raises:
      ValueError: the loss of an epoch is not finite.
    """
    if keep is not None and (found := keep.read(params)) is not None:
        if progress:
            print(f"evaluate: {what} in {keep.folder}, trained before on the same rows", flush=True)
        return found
    if progress:
        print(
            f"evaluate: {what} is trained, at most {epochs * steps:,} steps (epochs of {steps:,}), until ndcg@10 of "
            f"validation rows has not risen for {patience} epochs",
            flush=True,
        )
    best, best_epoch, best_params = -math.inf, 0, params
    with tqdm(total=epochs * steps, desc=what, unit="step", mininterval=1.0, disable=not progress) as bar:
        for number in range(1, epochs + 1):
            losses: list[jax.Array] = []

            def note(loss: jax.Array, losses: list[jax.Array] = losses) -> None:
                if losses:
                    losses[-1].block_until_ready()  # else the bar would count what waits for the device
                losses.append(loss)
                bar.update()

            params = epoch(params, note)
            loss = float(jnp.mean(jnp.stack(losses)))
            if not math.isfinite(loss):
                raise ValueError(f"{what}: training diverged by step {number * steps:,}: lower {rate_field}")
            value = measure(params)
            bar.set_postfix(loss=f"{loss:.3f}", ndcg=f"{value:.4f}")
            if value > best:
                # The next epoch may take the memory of these.
                best, best_epoch, best_params = value, number, jax.tree.map(jnp.copy, params)
            if number - best_epoch >= patience:
                break
    course = {"epochs": number, "steps": number * steps, "best_epoch": best_epoch, "valid_ndcg@10": best}
    if keep is not None:
        keep.write(best_params, course)
    return best_params, course


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
