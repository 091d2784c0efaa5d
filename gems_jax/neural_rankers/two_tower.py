"""Two towers: queries and items as vectors of their texts, ranked by their cosine.

As the base model reads them, or behind a linear projection for each tower that training queries have taught.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gems_jax.config.rankers import TwoTowerConfig
from gems_jax.data.dataset.tables import Item, Table
from gems_jax.neural_rankers.epochs import Scores, catalogue_ndcg, product_scores, train_epochs
from gems_jax.neural_rankers.kept import Keep

# Added to the logits of pairs that are no negatives.
_HIDDEN = -1e9


class TextTowers:
    """Vectors of items and of queries, each text read once.

    Args:
      read: texts to vectors float32 ``[n, d]``, such as a language model's.
      catalogue: the items.
    """

    def __init__(self, read: Callable[[Sequence[str]], np.ndarray], catalogue: Sequence[Item]):
        self._read = lambda texts: unit(read(texts))
        self._catalogue = catalogue
        self._known: dict[str, np.ndarray] = {}

    @functools.cached_property
    def items(self) -> np.ndarray:
        """float32 ``[N, d]``, of length 1: titles and texts."""
        return self._read([item.search_text for item in self._catalogue])

    def queries(self, table: Table) -> np.ndarray:
        """float32 ``[R, d]``, of length 1."""
        new = list(dict.fromkeys(query for query in table.queries if query not in self._known))
        self._known |= dict(zip(new, self._read(new), strict=True))
        return np.stack([self._known[query] for query in table.queries])


def two_tower_scorer(queries: np.ndarray, items: np.ndarray) -> Scores:
    """Cosines of rows' queries with items, a `gems_jax.evaluation.non_neural.Scorer`.

    Args:
      queries: float32 ``[R, d]``, one of each row.
      items: float32 ``[N, d]``.

    Example:
      >>> scorer = two_tower_scorer(np.array([[2.0, 0.0]], np.float32), np.array([[0, 1], [3, 0]], np.float32))
      >>> scorer(np.array([0]), None).tolist()
      [[0.0, 1.0]]
    """
    queries, items = unit(queries), unit(items)
    return lambda rows, candidates: product_scores(queries[rows], items, candidates)


def in_batch_loss(
    towers: tuple[jax.Array, jax.Array], queries: jax.Array, items: jax.Array, same: jax.Array, temperature: float
) -> jax.Array:
    """``-log softmax(cos(q_i, x_j) / t)_i`` over the items ``j`` of the batch, its mean over the queries ``i``.

    Args:
      towers: projections of queries and of items, ``[d, p]`` each.
      queries: ``[B, d]``.
      items: ``[B, d]``, the right one of each query.
      same: bool ``[B, B]``: item ``j`` is right for query ``i``, too, and no negative of it.
      temperature: t.

    Returns:
      float32 scalar.
    """
    cosines = _unit(queries @ towers[0]) @ _unit(items @ towers[1]).T
    others = same & ~jnp.eye(len(queries), dtype=bool)
    logits = jnp.where(others, _HIDDEN, cosines / temperature)
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=-1)))


def train_two_tower(
    towers: TextTowers,
    training: Table,
    valid: Table,
    options: TwoTowerConfig,
    progress: bool = False,
    keep: Keep | None = None,
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, Any]]:
    """Projections of both towers, by softmax over the items of a batch; they start as the identity.

    Items that training queries with the same words led to are no negatives of each other.

    Args:
      towers: vectors of the texts, which stay as they are.
      training: training rows with queries.
      valid: validation rows; their targets choose the epoch and train nothing.
      options: the course of training; the same give the same projections.
      progress: shows steps done, the loss, ndcg@10 of validation rows and the time left.
      keep: where the projections are kept, and found again.

    Returns:
      The projections ``[d, d]`` of queries and items, and settings with ``"epochs"``, ``"steps"``, ``"best_epoch"``,
      ``"valid_ndcg@10"`` and ``"pairs"``.

    Raises:
      ValueError: there are no training or validation rows.
    """
    if not len(training) or not len(valid):
        raise ValueError("two towers need training rows, and validation rows, which say when to stop")
    items, queries, valid_queries = towers.items, towers.queries(training), towers.queries(valid)
    words = {query: number for number, query in enumerate(dict.fromkeys(training.queries))}
    pairs = np.unique([[words[q], x] for q, x in zip(training.queries, training.target.tolist(), strict=True)], axis=0)
    number_of = lambda asked, found: asked.astype(np.int64) * len(items) + found  # noqa: E731
    right = number_of(*pairs.T)
    vectors = np.zeros((len(words), items.shape[1]), np.float32)
    vectors[[words[query] for query in training.queries]] = queries
    size = min(options.batch_size, len(pairs))
    identity = jnp.eye(items.shape[1])
    params, tx = (identity, identity), optax.adam(options.learning_rate)
    opt_state, rng = tx.init(params), np.random.default_rng(options.seed)

    @jax.jit
    def update(params: Any, opt_state: Any, queries: jax.Array, items: jax.Array, same: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(in_batch_loss)(params, queries, items, same, options.temperature)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def epoch(params: Any, note: Any) -> Any:
        nonlocal opt_state
        order = rng.permutation(len(pairs))
        # What fills no batch is left for another epoch's order.
        for rows in order[: len(pairs) // size * size].reshape(-1, size):
            asked, found = pairs[rows].T
            same = np.isin(number_of(asked[:, None], found), right)
            params, opt_state, loss = update(params, opt_state, vectors[asked], items[found], same)
            note(loss)
        return params

    def measure(params: Any) -> float:
        return catalogue_ndcg(two_tower_scorer(valid_queries @ params[0], items @ params[1]), valid)

    params, course = train_epochs(
        params,
        epoch,
        measure,
        epochs=options.epochs,
        patience=options.patience,
        steps=len(pairs) // size,
        what="two towers",
        rate_field="evaluate.two_tower.learning_rate",
        keep=keep,
        progress=progress,
    )
    facts = dataclasses.asdict(options) | course | {"pairs": len(pairs), "width": items.shape[1]}
    return (np.asarray(params[0]), np.asarray(params[1])), facts


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors * jax.lax.rsqrt(jnp.maximum((vectors**2).sum(axis=1, keepdims=True), 1e-12))
