"""TIGER: the next item's identifier, generated from the identifiers of the items before it (arXiv 2305.05065).

A T5 with random weights over codes alone. Other than in the paper, codes are of residual k-means, no two items share
theirs, so that there is no code that counts, and there is no token for the user.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from gems_jax.config.rankers import TigerConfig
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.dataset.tables import Table
from gems_jax.identifiers.reassignment import check_enough
from gems_jax.identifiers.residual_kmeans import rkmeans
from gems_jax.items.tokens import ItemIndex
from gems_jax.models import T5, T5Config
from gems_jax.models.layer_stack import unstacked
from gems_jax.neural_rankers.epochs import ROWS, Scores, catalogue_ndcg, train_epochs
from gems_jax.neural_rankers.kept import Keep
from gems_jax.neural_rankers.sequences import histories, training_sequences
from gems_jax.ranking.rank_items import rank_items

# Tokens with a role, which also begins an answer; codes follow.
_PAD, _END, _CODES = 0, 1, 2
# Items of a history that programs of training and of ranking are compiled for at least: the search takes longer to
# compile, and its decoder more time than the encoder.
_TRAINED, _RANKED = 2, 8
# Share of the steps in which the learning rate rises.
_WARMUP = 0.05


class TrainedTiger(NamedTuple):
    """A trained model and the identifiers that it generates.

    Attributes:
      model: with the weights of its best epoch.
      items: identifiers of the N items.
      facts: its settings, and ``"moved"`` (items whose identifier another had first), ``"epochs"``, ``"steps"``,
        ``"best_epoch"``, ``"valid_ndcg@10"``, ``"transitions"`` and ``"parameters"``; JSON values.
    """

    model: T5
    items: ItemIndex
    facts: dict[str, Any]


def identifiers_of(
    vectors: np.ndarray, options: TigerConfig, removed: Collection[int] = ()
) -> tuple[ItemIndex, dict[str, Any]]:
    """Identifiers of items by residual k-means of their vectors; code ``c`` of level ``l`` is token ``2 + l K + c``.

    Args:
      vectors: float ``[N, d]``.
      options: with ``levels`` and ``codebook_size`` K.
      removed: items that are not generated.

    Returns:
      The identifiers, and the number of items, ``"moved"``, whose identifier another had first.

    Raises:
      ValueError: there are more items than identifiers.

    Example:
      >>> vectors = np.random.default_rng(0).normal(size=(9, 2))
      >>> identifiers_of(vectors, TigerConfig(levels=2, codebook_size=3))[0].token_ids.shape
      (9, 2)
    """
    levels, size = options.levels, options.codebook_size
    check_enough(len(vectors), levels, size, "evaluate.tiger")
    apart, moved = rkmeans(vectors, levels, size, options.seed).without_collisions(vectors)
    tokens = _CODES + size * np.arange(levels) + apart.codes
    return ItemIndex(tokens, frozenset(removed)), {"moved": moved.moved}


def train_tiger(
    vectors: np.ndarray,
    training: Table,
    valid: Table,
    options: TigerConfig,
    removed: Collection[int] = (),
    progress: bool = False,
    keep: Keep | None = None,
) -> TrainedTiger:
    """Trains with Adam until ndcg@10 of validation rows, found by beam search in the whole catalogue, gets no better.

    ``-1 / (L + 1) sum_l log p(c_l | history, c_<l)`` over all tokens, c_{L+1} the end token, its mean over each user's
    transitions once. The learning rate rises in the first twentieth of all ``epochs`` and falls to 0 by a cosine.

    Args:
      vectors: float ``[N, d]`` of the items' texts.
      training: training rows.
      valid: validation rows, of which ``valid_rows`` choose the epoch; they train nothing.
      options: sizes and the course of training; the same give the same weights.
      removed: items that are not generated.
      progress: shows steps done, the loss, the metric and the time left.
      keep: where the weights are kept, and found again.

    Raises:
      ValueError: there are no training or validation rows, the heads do not divide the width, there are more items
        than identifiers, or training diverges.
    """
    if options.width % options.heads:
        raise ValueError(f"TIGER's width {options.width} must be divisible by its {options.heads} heads")
    if not len(valid):
        raise ValueError("TIGER needs validation rows, which say when to stop")
    contexts, targets = _transitions(training, options.max_length, len(vectors))
    if not len(contexts):
        raise ValueError("TIGER needs training rows with histories")
    items, facts = identifiers_of(vectors, options, removed)
    model = T5.create(_shape(options), jax.random.key(options.seed))
    graphdef, params = nnx.split(model, nnx.Param)
    opt_state, key, steps = _ADAM.init(params), jax.random.key(options.seed), 0
    rng = np.random.default_rng(options.seed)
    some = valid.take(np.sort(rng.permutation(len(valid))[: options.valid_rows]))
    a_pass = len(list(_batches(contexts, options.batch_size, _TRAINED, rng)))
    warmup = max(1, round(_WARMUP * a_pass * options.epochs))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, warmup, max(a_pass * options.epochs, warmup + 1)
    )

    def epoch(params: Any, note: Any) -> Any:
        nonlocal opt_state, steps
        for rows, width in _batches(contexts, options.batch_size, _TRAINED, rng):
            batch = _batch(contexts, targets, items, rows, width)
            its_key = jax.random.fold_in(key, steps)
            params, opt_state, loss = _update(graphdef, params, opt_state, batch, rate(steps + 1), its_key)
            note(loss)
            steps += 1
        return params

    def measure(params: Any) -> float:
        trained = TrainedTiger(nnx.merge(graphdef, params), items, {})
        return catalogue_ndcg(tiger_scorer(trained, some, options), some)

    params, course = train_epochs(
        params,
        epoch,
        measure,
        epochs=options.epochs,
        patience=options.patience,
        steps=a_pass,
        what="TIGER",
        rate_field="evaluate.tiger.learning_rate",
        keep=keep,
        progress=progress,
    )
    facts = dataclasses.asdict(options) | facts | course
    facts |= {"transitions": len(targets)}
    facts |= {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}
    return TrainedTiger(nnx.merge(graphdef, params), items, facts)


def tiger_scorer(trained: TrainedTiger, table: Table, options: TigerConfig, progress: bool = False) -> Scores:
    """Scores of the items that a beam search finds, a `gems_jax.evaluation.non_neural.Scorer`.

    As `gems_jax.ranking.rank_items` has them, along the trie of the catalogue or of each row's candidates; ``-inf`` for
    items that the search did not end with.

    Args:
      trained: of N items.
      table: rows, whose histories are read.
      options: with ``max_length`` and ``beams``.
      progress: shows rows done and the time left.
    """
    model, items = unstacked(trained.model), trained.items

    def score(rows: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
        contexts = histories(table, rows, options.max_length)
        shape = (len(rows), items.num_items) if candidates is None else candidates.shape
        found = np.full(shape, -np.inf, np.float32)
        with tqdm(total=len(rows), desc="TIGER ranks", unit="row", mininterval=1.0, disable=not progress) as bar:
            for part, width in _batches(contexts, ROWS, _RANKED):
                inputs = _inputs(contexts[np.maximum(part, 0)], items, width)
                real = part[part >= 0]
                # Rows that fill a batch are row 0 again, and are thrown away.
                among = None if candidates is None else candidates[np.maximum(part, 0)]
                ranked = rank_items(model, inputs, items, among, options.beams, options.beams)
                ids, values = (np.asarray(side)[part >= 0] for side in ranked)
                scores = np.full((len(real), items.num_items + 1), -np.inf, np.float32)
                np.put_along_axis(scores, ids, values, axis=1)  # -1, which no item is, goes to the last column
                scores = scores[:, :-1]
                found[real] = scores if candidates is None else np.take_along_axis(scores, candidates[real], axis=1)
                bar.update(len(real))
        return found

    return score


_ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98))


def _shape(options: TigerConfig) -> T5Config:
    return T5Config(
        vocab_size=_CODES + options.levels * options.codebook_size,
        d_model=options.width,
        d_kv=options.width // options.heads,
        d_ff=4 * options.width,
        num_layers=options.layers,
        num_decoder_layers=options.layers,
        num_heads=options.heads,
        feed_forward="relu",
        dropout_rate=options.dropout,
        pad_token_id=_PAD,
        eos_token_id=_END,
        decoder_start_token_id=_PAD,
    )


def _transitions(training: Table, length: int, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """What stands before each transition, int32 ``[R, length]`` as of `histories`, and the next item ``[R]``."""
    inputs, targets = training_sequences(training, length, num_items)
    row, place = np.nonzero(targets >= 0)
    column = place[:, None] - np.arange(length - 1, -1, -1)
    return np.where(column >= 0, inputs[row[:, None], np.maximum(column, 0)], -1), targets[row, place]


def _batches(
    contexts: np.ndarray, size: int, shortest: int, rng: np.random.Generator | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """All rows once, in batches of one width, a power of two of items; -1 fills the last of a width.

    In random order; without ``rng`` in that of their lengths.
    """
    lengths = (contexts >= 0).sum(axis=1)
    rounded = 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    widths = np.clip(rounded, min(shortest, contexts.shape[1]), contexts.shape[1])
    batches = []
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width)
        rows = rows if rng is None else rng.permutation(rows)
        rows = np.pad(rows, (0, -len(rows) % size), constant_values=-1)
        batches += [(part, width) for part in rows.reshape(-1, size)]
    for number in range(len(batches)) if rng is None else rng.permutation(len(batches)).tolist():
        yield batches[number]


def _inputs(contexts: np.ndarray, items: ItemIndex, width: int) -> dict[str, np.ndarray]:
    """Identifiers of the newest items and the end token behind them, padded on the left."""
    newest = contexts[:, contexts.shape[1] - width :]
    real = np.repeat(newest >= 0, items.token_ids.shape[1], axis=1)
    ids = np.where(real, items.token_ids[newest].reshape(real.shape), _PAD)
    behind = ((0, 0), (0, 1))
    return {
        "input_ids": np.pad(ids, behind, constant_values=_END).astype(np.int32),
        "attention_mask": np.pad(real, behind, constant_values=True).astype(np.int32),
    }


def _batch(
    contexts: np.ndarray, targets: np.ndarray, items: ItemIndex, rows: np.ndarray, width: int
) -> dict[str, np.ndarray]:
    """A batch of the encoder-decoder's layout; rows of -1 do not count."""
    labels = np.pad(items.token_ids[targets[rows]], ((0, 0), (0, 1)), constant_values=_END)
    read = _inputs(contexts[rows], items, width)
    batch = LAYOUTS[T5.layout].join(
        read["input_ids"], read["attention_mask"], labels, np.ones_like(labels, bool), pad=_PAD, start=_PAD
    )
    return batch | {"counted": rows >= 0}


# Compiled once for each width, for all epochs and seeds.
@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _update(graphdef: Any, params: Any, opt_state: Any, batch: Any, rate: jax.Array, key: jax.Array) -> Any:
    def loss_of(params: Any) -> jax.Array:
        model = nnx.merge(graphdef, params)
        losses = model.token_losses(model.batch_hidden(batch, key), batch["labels"]).mean(axis=1)
        return jnp.sum(losses * batch["counted"]) / jnp.maximum(batch["counted"].sum(), 1)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt_state = _ADAM.update(grads, opt_state, params)
    return optax.apply_updates(params, jax.tree.map(lambda update: -rate * update, updates)), opt_state, loss
