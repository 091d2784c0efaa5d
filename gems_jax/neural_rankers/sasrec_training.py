"""Trains SASRec on a run's training rows, until its rankings of validation rows get no better."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from gems_jax.config.rankers import SasrecConfig
from gems_jax.data.dataset.tables import Table
from gems_jax.neural_rankers.epochs import ROWS, Scores, catalogue_ndcg, product_scores, train_epochs
from gems_jax.neural_rankers.kept import Keep
from gems_jax.neural_rankers.sasrec import SasRec, cross_entropy
from gems_jax.neural_rankers.sequences import histories, training_sequences

# Shortest sequence that a program is compiled for.
_SHORTEST = 8


class Trained(NamedTuple):
    """A trained model.

    Attributes:
      model: with the weights of its best epoch.
      facts: its settings, and ``"epochs"``, ``"steps"``, ``"best_epoch"``, ``"valid_ndcg@10"``, ``"sequences"``,
        ``"transitions"`` and ``"parameters"``; JSON values.
    """

    model: SasRec
    facts: dict[str, Any]


def train_sasrec(
    training: Table,
    valid: Table,
    num_items: int,
    options: SasrecConfig,
    progress: bool = False,
    keep: Keep | None = None,
) -> Trained:
    """Trains with Adam until ndcg@10 of validation rows, among the whole catalogue, gets no better.

    Args:
      training: training rows.
      valid: validation rows; their targets choose the epoch and train nothing.
      num_items: N.
      options: sizes and the course of training; the same give the same weights.
      progress: shows steps done, the loss, the metric and the time left.
      keep: where the result is kept, and found again.

    Raises:
      ValueError: training diverges, there are no training or validation rows, or the heads do not divide the width.
    """
    if options.width % options.heads:
        raise ValueError(f"SASRec's width {options.width} must be divisible by its {options.heads} heads")
    if not len(valid):
        raise ValueError("SASRec needs validation rows, which say when to stop")
    inputs, targets = training_sequences(training, options.max_length, num_items)
    if not len(inputs):
        raise ValueError("SASRec needs training rows with histories")
    rngs = nnx.Rngs(options.seed)
    model = SasRec(num_items, options.width, options.layers, options.heads, options.max_length, rngs)
    graphdef, params = nnx.split(model)
    opt_state, key, step = _adam(options).init(params), jax.random.key(options.seed), 0

    rng = np.random.default_rng(options.seed)

    program = dataclasses.replace(options, seed=0)  # what the program of an update depends on

    def epoch(params: Any, note: Any) -> Any:
        nonlocal opt_state, step
        for of_batch in _batches(inputs, targets, options.batch_size, rng):
            its_key = jax.random.fold_in(key, step)
            params, opt_state, loss = _update(graphdef, program, params, opt_state, *of_batch, its_key)
            note(loss)
            step += 1
        return params

    def measure(params: Any) -> float:
        return catalogue_ndcg(sasrec_scorer(nnx.merge(graphdef, params), valid, options.max_length), valid)

    params, course = train_epochs(
        params,
        epoch,
        measure,
        epochs=options.epochs,
        patience=options.patience,
        steps=sum(1 for _ in _batches(inputs, targets, options.batch_size, np.random.default_rng(0))),
        what="SASRec",
        rate_field="evaluate.sasrec.learning_rate",
        keep=keep,
        progress=progress,
    )
    facts = (
        dataclasses.asdict(options)
        | course
        | {
            "sequences": len(inputs),
            "transitions": int((targets >= 0).sum()),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        }
    )
    return Trained(nnx.merge(graphdef, params), facts)


def sasrec_scorer(model: SasRec, table: Table, max_length: int) -> Scores:
    """Scores of items after the rows' histories, a `gems_jax.evaluation.non_neural.Scorer`.

    Args:
      model: of N items.
      table: rows, whose histories are read.
      max_length: newest items that are read.
    """
    graphdef, params = nnx.split(model)
    weights = np.asarray(model.items[...])

    def score(rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
        padded = np.zeros(-(-len(rows) // ROWS) * ROWS, np.int64)
        padded[: len(rows)] = rows
        parts = [_last(graphdef, params, histories(table, part, max_length)) for part in padded.reshape(-1, ROWS)]
        states = np.concatenate([np.asarray(part) for part in parts])[: len(rows)]
        return product_scores(states, weights, candidates)

    return score


def _adam(options: SasrecConfig) -> optax.GradientTransformation:
    return optax.adam(options.learning_rate, b2=0.98)


# Compiled once for all epochs, and for all seeds.
@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _update(
    graphdef: Any,
    options: SasrecConfig,
    params: Any,
    opt_state: Any,
    inputs: jax.Array,
    targets: jax.Array,
    key: jax.Array,
) -> Any:
    loss_of = lambda p: cross_entropy(nnx.merge(graphdef, p), inputs, targets, options.dropout, key)  # noqa: E731
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt_state = _adam(options).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


@functools.partial(jax.jit, static_argnums=0)
def _last(graphdef: Any, params: Any, sequences: jax.Array) -> jax.Array:
    """States behind the last item, ``[r, d]``."""
    return nnx.merge(graphdef, params).states(sequences)[:, -1]


def _batches(
    inputs: np.ndarray, targets: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All sequences once, in batches of one length each, a power of two; the last of a length is filled with none."""
    lengths = (inputs >= 0).sum(axis=1)
    most = inputs.shape[1]
    widths = np.minimum(most, np.maximum(_SHORTEST, 2 ** np.ceil(np.log2(lengths)).astype(int)))
    batches = []
    for width in np.unique(widths).tolist():
        rows = rng.permutation(np.flatnonzero(widths == width))
        batches += [(rows[start : start + size], width) for start in range(0, len(rows), size)]
    for number in rng.permutation(len(batches)).tolist():
        rows, width = batches[number]
        made = []
        for whole in (inputs, targets):
            part = np.full((size, width), -1, np.int32)
            part[: len(rows)] = whole[rows, most - width :]
            made.append(part)
        yield made[0], made[1]
