"""One update as a pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from gems_jax.config.methods import METHODS
from gems_jax.config.train import TrainConfig
from gems_jax.data.batching.with_text import split_text
from gems_jax.leaf_path import leaf_path
from gems_jax.null_space.constraint import null_space_leak
from gems_jax.null_space.space import NullSpace
from gems_jax.projected.task_grads import projected_task_grads
from gems_jax.task_grads import gramian, task_value_and_grad
from gems_jax.training.optimiser.factors import from_state
from gems_jax.training.optimiser.guard import last_finite
from gems_jax.training.optimiser.rates import scaled, schedule
from gems_jax.training.optimiser.rounding import apply_updates
from gems_jax.training.text_task import TextLoss
from gems_jax.transform.reports import diagnostics
from gems_jax.types import PyTree

Metrics = dict[str, jax.Array]

PROBES = 8  # vectors that the null space's leak is estimated with


class Control(NamedTuple):
    """The values that a step is given beside its data.

    Attributes:
      number: ``[]`` int32 of the update, from 0.
      part: ``[]`` int32 of the update's parts this is.
      measure: ``[]`` bool, whether the null space's leak is computed.
      stop: ``[devices]`` int32, exit code asked for on the process of each device; the largest comes back.
      rates: ``[3]`` float32, the run's highest learning rates, see `gems_jax.training.optimiser.rates.peak_rates`.
      seed: ``[]`` uint32, of dropout and rounding.
    """

    number: Any
    part: Any
    measure: Any
    stop: Any
    rates: Any
    seed: Any


def make_step(
    loss_fn: Callable[[PyTree, PyTree, Any], jax.Array],
    config: TrainConfig,
    tx: optax.GradientTransformationExtraArgs,
    tasks: tuple[str, ...],
    ns: NullSpace | None,
    task_axis: str | None = None,
    param_sharding: PyTree = None,
    projected: bool = False,
    text_loss: TextLoss | None = None,
) -> Callable[..., tuple[PyTree, PyTree, Metrics]]:
    """One update, or one part of it: per-task gradients, fused and constrained, applied; and what to log.

    Args:
      loss_fn: ``(params, frozen, batch of one task) -> scalar``.
      config: of the run.
      tx: of `make_optimiser`; merges the task axis; its learning rate is 1 unless the method has its own.
      tasks: names, in the order of the task axis; with ``text_loss`` the last one is general text.
      ns: the null space whose leak is logged, or ``None``; the arrays in the state are used, not its own.
      task_axis: mesh axis over which tasks are split, or ``None``.
      param_sharding: ``NamedSharding`` of each parameter; gradients are kept there, whatever is done with them.
        ``None``: the compiler chooses.
      projected: whether gradients are those of `gems_jax.projected_task_grads`; a batch is then the whole of an update,
        with ``train.accumulate`` in parts, ``[T, A, B, ...]``.
      text_loss: of `gems_jax.training.text_task.text_loss`; the batch then has rows of
        `gems_jax.data.batching.with_text.TextBesideTasks`. ``None``: general text is no task.

    Returns:
      ``step(params, opt_state, frozen, batch, control, base) -> (params, opt_state, metrics)``; ``base`` may be left
      out where ``text_loss`` does without. Metrics are small arrays:
      those of the last update made, and of this batch ``losses``, ``counts`` ``[T]``, ``finite`` ``[T]``, ``stop``.
    """
    shape = schedule(config)

    def step(
        params: PyTree,
        state: PyTree,
        frozen: PyTree,
        batch: dict[str, jax.Array],
        control: Control,
        base: PyTree = None,
    ) -> tuple[PyTree, PyTree, Metrics]:
        # Keys from the seed and the step alone, so that resuming cannot change them.
        dropout_key, rounding_key = jax.random.split(jax.random.key(control.seed))
        batch, text = split_text(batch)
        micro_batch = control.number * config.accumulate + control.part
        if config.dropout:
            in_parts = () if not projected or config.accumulate == 1 else (config.accumulate,)
            keys = jax.random.split(jax.random.fold_in(dropout_key, micro_batch), (len(tasks), *in_parts))
            batch = batch | {"dropout_key": keys[: len(tasks) - (text_loss is not None)]}
            text = text | {"dropout_key": keys[-1:]}
        counts = jnp.sum(batch["label_mask"], axis=(-2, -1)).astype(jnp.float32)
        loss = lambda p, b: loss_fn(p, frozen, b)  # noqa: E731
        if projected:
            fn = projected_task_grads(loss, tx, spmd_axis_name=task_axis, accumulate=config.accumulate)
            losses, grads = fn(params, state, batch, task_counts=counts)
            counts = counts if config.accumulate == 1 else jnp.sum(counts, axis=1)
        else:
            losses, grads = task_value_and_grad(loss, spmd_axis_name=task_axis)(params, batch)
        weights = jnp.ones_like(losses)
        if text_loss is not None:
            # By itself: its labels and its vocabulary are others than the tasks'.
            one = lambda p, b: config.text_task_weight * text_loss(p, frozen, base, b)  # noqa: E731
            text_value, text_grads = task_value_and_grad(one)(params, text)
            losses = jnp.concatenate([losses, text_value])
            grads = jax.tree.map(lambda g, t: jnp.concatenate([g, t]), grads, text_grads)
            weights = jnp.append(weights, config.text_task_weight)
            counts = jnp.append(counts, _as_a_task(counts, jnp.sum(text["label_mask"])))
        if param_sharding is not None and not projected:
            grads = jax.tree.map(lambda g, sharding: _beside(g, sharding, task_axis), grads, param_sharding)
        updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts)
        rates = control.rates * shape(control.number)
        if not METHODS[config.method].own_rates:
            updates = scaled(updates, rates)
        key = jax.random.fold_in(rounding_key, control.number) if config.stochastic_rounding else None
        moved = apply_updates(params, updates, key)
        metrics = {
            "losses": losses / weights,
            "counts": counts,
            "finite": last_finite(state),
            "stop": jnp.max(control.stop),
        }
        metrics |= update_metrics(grads, state, tasks) | {"learning_rate": rates[0]}
        if ns is not None:
            metrics |= leaks(params, moved, updates, from_state(ns, state), control.measure)
        return moved, state, metrics

    return step


def _as_a_task(counts: jax.Array, own: jax.Array) -> jax.Array:
    """The label tokens that general text counts as: as many as a task that is present has; alone, as many as it has.

    A text's rows are all labels, where a task's have a few each: by its own count it would be nearly all of the mean.
    """
    present = jnp.sum(counts > 0)
    return jnp.where(present > 0, jnp.sum(counts) / jnp.maximum(present, 1), own.astype(counts.dtype))


def _beside(grad: jax.Array, sharding: NamedSharding, task_axis: str | None) -> jax.Array:
    """A stacked gradient ``[T, *shape]`` where its parameter is."""
    spec = PartitionSpec(task_axis, *sharding.spec)
    return jax.lax.with_sharding_constraint(grad, NamedSharding(sharding.mesh, spec))


def leaks(params: PyTree, moved: PyTree, updates: PyTree, ns: NullSpace, measure: jax.Array) -> Metrics:
    """Largest share of a kernel's update inside the protected directions; and of the change that is stored.

    Both are estimates from a few vectors, since all of it would take as long as a good part of the step. The two
    differ where parameters have fewer bits than updates, see `gems_jax.null_space_leak`.
    """
    stored = any(leaf_path(path) in ns.inputs and x.dtype != jnp.float32 for path, x in _leaves(params))

    def largest(tree: PyTree) -> jax.Array:
        return jnp.max(jnp.stack(list(null_space_leak(tree, ns, probes=PROBES).values()))).astype(jnp.float32)

    def measured() -> Metrics:
        metrics = {"null_space/leak": largest(updates)}
        if stored:
            change = jax.tree.map(lambda new, old: new.astype(jnp.float32) - old.astype(jnp.float32), moved, params)
            metrics["null_space/leak_stored"] = largest(change)
        return metrics

    return jax.lax.cond(measure, measured, lambda: jax.tree.map(jnp.zeros_like, jax.eval_shape(measured)))


def _leaves(tree: PyTree) -> list[tuple[Any, jax.Array]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def update_metrics(grads: PyTree, state: PyTree, tasks: tuple[str, ...]) -> Metrics:
    """Gradient norms and conflicts; GEMS has both in its own diagnostics already."""
    try:
        measured = diagnostics(state)
    except ValueError:  # not a GEMS state
        products = gramian(jax.tree.leaves(grads), len(tasks))
        norms = jnp.sqrt(jnp.diagonal(products))
        cosines = products / jnp.maximum(norms[:, None] * norms[None, :], 1e-30)
        return _by_task("grad_norm", norms, tasks) | _conflicts(cosines, tasks)
    metrics = _by_task("grad_norm", measured["grad_norms"], tasks) | _conflicts(measured["cosines"], tasks)
    metrics |= _by_task("gate", measured["gates"], tasks) | _by_task("captured", measured["captured"][1:], tasks)
    metrics["captured/shared"] = measured["captured"][0]
    return metrics | {"update_norm": measured["update_norm"], "refreshed": measured["refreshed"]}


def _by_task(name: str, values: jax.Array, tasks: tuple[str, ...]) -> Metrics:
    return {f"{name}/{task}": values[i] for i, task in enumerate(tasks)}


def _conflicts(cosines: jax.Array, tasks: tuple[str, ...]) -> Metrics:
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
    return {f"conflict/{tasks[i]}-{tasks[j]}": cosines[i, j] for i, j in pairs}
