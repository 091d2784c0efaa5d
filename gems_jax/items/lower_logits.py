"""Rows of new items kept from taking probability on general text: one offset that all of them share.

Items are told apart by what their rows do not have in common, so ranking does not see the offset; the softmax over all
tokens does.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from gems_jax.models.family import ITEM_TABLES, output_table
from gems_jax.models.params import params_of
from gems_jax.types import TextBatch

# Share of the mean eigenvalue that is added to the second moment: a shorter direction, which reads other text better.
_RIDGE = 0.1


class Lowered(NamedTuple):
    """What `lower_item_logits` has done.

    Attributes:
      model: with the offset in its items' output rows.
      before, after: what the items add to the loss on the text by being there, nats a token.
      nats: by how much the items' logits were lowered on the mean final state.
    """

    model: Any
    before: float
    after: float
    nats: float


def lower_item_logits(model: Any, batches: Sequence[TextBatch], most: float = 1e-4) -> Lowered:
    """Lowers the logits of all items alike on general text, until they are hardly seen there.

    ``e_i <- e_i - c u`` in the output layer. ``u = argmin E (u^T h - 1)^2`` over final states ``h`` of the text reads a
    constant off them (ridge regression, scaled so that its logit is 1 on average), so that the items' logits fall by
    about ``c`` wherever the model reads general text. ``c >= 0`` is the smallest for which the items' being there
    raises the loss, ``E log(1 + sum_i exp(z_i) / sum_v exp(z_v))``, by at most ``most``; it grows with the logarithm
    of the number of items.

    Args:
      model: of `gems_jax.items.grow`, just grown. Where the output layer is the embedding, that has the offset, too.
      batches: general text, as of `gems_jax.evaluation.drift.general_loss`; a few tokens for each dimension do.
      most: nats a token, above 0.

    Returns:
      `Lowered`. Where no ``c`` does, as of a model that was never trained, the best one is taken and ``after`` is above
      ``most``.

    Raises:
      ValueError: no items, no label token in the text, or ``most`` is not above 0.

    Example:
      >>> from gems_jax.items import grow
      >>> from gems_jax.models import T5, T5Config
      >>> config = T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2)
      >>> ids = np.arange(2, 12).reshape(2, 5)
      >>> mask = np.ones_like(ids)
      >>> text = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids, "labels": ids, "label_mask": mask}
      >>> lowered = lower_item_logits(grow(T5.create(config, jax.random.key(0)), [[5, 6], [7]]), [text], most=0.01)
      >>> lowered.after < lowered.before
      True
    """
    if not model.config.num_added_tokens:
        raise ValueError("the model has no items whose logits could be lowered: grow it first (gems_jax.items.grow)")
    if not most > 0:
        raise ValueError(f"most is what items may add to the loss on general text, above 0; got {most}")
    states, added = states_on_text(model, batches)
    params = params_of(model)
    name = output_table(model.config)
    direction = reads_one(states)
    readings = _logits_of(model, name, direction, states)
    if readings.any():  # a model may scale its states
        direction, readings = direction / readings.mean(), readings / readings.mean()
    nats = smallest_offset(added, readings, most)
    offset = jnp.asarray(nats * direction, jnp.float32)
    params[name] = jax.jit(lambda rows: (rows.astype(jnp.float32) - offset).astype(rows.dtype))(params[name])
    after = _mean_added(added, readings, nats)
    return Lowered(type(model).from_params(model.config, params), float(added.mean()), after, nats)


def states_on_text(model: Any, batches: Sequence[TextBatch]) -> tuple[np.ndarray, np.ndarray]:
    """Final states at a text's label tokens, and what the items add to the loss of each.

    Args:
      model: with items.
      batches: general text.

    Returns:
      float64 ``[n, d_model]`` and ``[n]``: ``log(1 + sum_i exp(z_i) / sum_v exp(z_v))``, nats.

    Raises:
      ValueError: no label token.
    """
    graphdef, state = nnx.split(model)

    def read(state: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reader: Any = nnx.merge(graphdef, state)
        hidden = reader.batch_hidden(batch)
        full, base = (reader.token_losses(hidden, batch["labels"], vocabulary) for vocabulary in ("full", "base"))
        return hidden.astype(jnp.float32), full - base

    compiled = jax.jit(read, out_shardings=_everywhere(state))
    states, added = [], []
    for batch in batches:
        counted = np.asarray(batch["label_mask"]).astype(bool)
        read_off = compiled(state, {name: np.asarray(value) for name, value in batch.items()})
        hidden, more = (np.asarray(value, np.float64)[counted] for value in read_off)
        states.append(hidden)
        added.append(more)
    if not sum(map(len, added)):
        raise ValueError("no label token in any batch of general text: give more text")
    return np.concatenate(states), np.concatenate(added)


def _logits_of(model: Any, name: str, row: np.ndarray, states: np.ndarray) -> np.ndarray:
    """What an item of this row would have as logits, float64 ``[n]``."""
    config, params = dataclasses.replace(model.config, num_added_tokens=1), params_of(model)
    tables = {each: params[each][:1] for each in ITEM_TABLES.values() if each in params}
    tables[name] = jnp.asarray(row[None], jnp.float32)
    graphdef, state = nnx.split(type(model).from_params(config, params | tables))

    def read(state: Any, states: jax.Array) -> jax.Array:
        reader: Any = nnx.merge(graphdef, state)
        return reader.logit_parts(states, "full")[-1][:, 0]

    return np.asarray(jax.jit(read, out_shardings=_everywhere(state))(state, states.astype(np.float32)), np.float64)


def _everywhere(state: Any) -> NamedSharding | None:
    """The sharding of an array that every process is to have whole, where a model is on a mesh."""
    sharding = jax.tree.leaves(state)[0].sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None


def reads_one(states: np.ndarray) -> np.ndarray:
    """The direction that reads a constant off states best, ``u = argmin E (u^T h - 1)^2`` with ridge, ``u^T E h = 1``.

    Args:
      states: ``[n, d]``.

    Returns:
      ``[d]``; zeros where the states' mean is.

    Example:
      >>> reads_one(np.array([[2.0, 1.0], [2.0, -1.0]])).tolist()
      [0.5, 0.0]
    """
    mean = states.mean(0)
    moment = states.T @ states / len(states)
    ridge = _RIDGE * np.trace(moment) / len(moment)
    if not mean.any():
        return mean
    direction = np.linalg.solve(moment + ridge * np.eye(len(moment)), mean)
    return direction / (direction @ mean)


def smallest_offset(added: np.ndarray, readings: np.ndarray, most: float) -> float:
    """The smallest ``c >= 0`` with ``E log(1 + (exp(a) - 1) exp(-c g)) <= most``; where none is, that of the minimum.

    Args:
      added: ``a``, nats ``[n]``, from 0 on.
      readings: ``g``, by how much a logit falls at each token for each nat of offset, ``[n]``.
      most: nats.

    Example:
      >>> bool(np.isclose(smallest_offset(np.log([2.0, 2.0]), np.array([1.0, 1.0]), np.log(1.1)), np.log(10)))
      True
    """
    low, high = 0.0, 1.0
    if _mean_added(added, readings, low) <= most:
        return low
    # The mean is convex in c: it falls as far as its minimum.
    while _mean_added(added, readings, high) > most:
        if _slope(added, readings, high) >= 0 or high > 1e4:
            most = -np.inf
            break
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        enough = _mean_added(added, readings, middle) <= most or _slope(added, readings, middle) >= 0
        low, high = (low, middle) if enough else (middle, high)
    return high


def _mean_added(added: np.ndarray, readings: np.ndarray, nats: float) -> float:
    return float(np.logaddexp(0, _log_odds(added) - nats * readings).mean())


def _slope(added: np.ndarray, readings: np.ndarray, nats: float) -> float:
    """Of `_mean_added` by ``nats``."""
    return float(-(readings / (1 + np.exp(np.minimum(nats * readings - _log_odds(added), 700)))).mean())


def _log_odds(added: np.ndarray) -> np.ndarray:
    """``log(exp(a) - 1)``, of what rounding has made no more than nothing a very small number."""
    added = np.maximum(added, 1e-12)
    return np.asarray(added + np.log(-np.expm1(-added)))
