"""Tuning one model on all tasks: the loop."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from gems_jax.data.pipeline import task_batches
from gems_jax.evaluation.drift import general_loss
from gems_jax.evaluation.evaluate import evaluate_ranking
from gems_jax.models import T5, token_losses
from gems_jax.null_space import NullSpace, null_space_leak
from gems_jax.reports import diagnostics, state_bytes
from gems_jax.task_grads import task_value_and_grad, token_mean
from gems_jax.training.checkpoints import Checkpoints
from gems_jax.training.config import Config
from gems_jax.training.optimiser import is_trained, make_optimiser, schedule
from gems_jax.training.pretrain import heldout_text
from gems_jax.training.signals import Signals
from gems_jax.training.stages import Material
from gems_jax.training.workdir import Log, check_config, keep_config

PyTree = Any
Batch = Mapping[str, jax.Array]


class Stopped(Exception):
    """A stop signal came; everything is saved."""


def split_model(model: T5, config: Config) -> tuple[Any, PyTree, PyTree]:
    """Graph, trained parameters and the rest."""

    def trained(path: tuple[Any, ...], value: Any) -> bool:
        return isinstance(value, nnx.Param) and is_trained("/".join(map(str, path)), config.train)

    graphdef, params, *others = nnx.split(model, trained, ...)
    (rest,) = others
    return graphdef, params, rest


def task_loss(graphdef: Any, config: Config) -> Callable[[PyTree, PyTree, Batch], jax.Array]:
    """Loss of one task: mean over its label tokens (item and end), softmax over ``train.loss_vocabulary``."""
    vocabulary = config.train.loss_vocabulary

    def loss_fn(params: PyTree, rest: PyTree, batch: Batch) -> jax.Array:
        model = nnx.merge(graphdef, params, rest)
        key = batch.get("dropout_key")
        encoded = model.encode(batch["input_ids"], batch["attention_mask"], dropout_key=key)
        hidden = model.decode(batch["decoder_input_ids"], encoded, batch["attention_mask"], dropout_key=key)
        labels = batch["labels"]
        if vocabulary == "items":
            # Column 0 is the end token, the items follow in order.
            labels = jnp.where(labels < model.config.vocab_size, 0, labels - model.config.vocab_size + 1)
        return token_mean(token_losses(model.logits(hidden, vocabulary), labels), batch["label_mask"])

    return loss_fn


def make_step(
    graphdef: Any,
    config: Config,
    tx: optax.GradientTransformationExtraArgs,
    tasks: tuple[str, ...],
    ns: NullSpace | None,
) -> Callable[..., tuple[PyTree, PyTree, dict[str, jax.Array]]]:
    """One update as a pure function: per-task gradients, fused and constrained, applied; and what to log.

    Args:
      graphdef: of the model.
      config: of the run.
      tx: merges the task axis.
      tasks: names, in the order of the task axis.
      ns: the null space whose leak is logged, or ``None``.

    Returns:
      ``step(params, opt_state, rest, batch, key, measure) -> (params, opt_state, metrics)``; the leak is
      computed where ``measure`` is true.
    """
    loss_fn = task_loss(graphdef, config)
    rate = schedule(config.train, config.train.learning_rate)

    def step(
        params: PyTree, state: PyTree, rest: PyTree, batch: dict[str, jax.Array], number: jax.Array, measure: jax.Array
    ) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
        if config.train.dropout:
            # From seed and step alone, so that resuming cannot change it.
            key = jax.random.fold_in(jax.random.key(config.train.seed), number)
            batch = batch | {"dropout_key": jax.random.split(key, len(tasks))}
        counts = jnp.sum(batch["label_mask"], axis=(1, 2)).astype(jnp.float32)
        losses, grads = task_value_and_grad(lambda p, b: loss_fn(p, rest, b))(params, batch)
        updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts)
        metrics = {f"loss/{t}": losses[i] for i, t in enumerate(tasks)}
        metrics |= step_metrics(grads, state, tasks)
        metrics["learning_rate"] = rate(number)
        if ns is not None:
            leak = lambda: jnp.max(jnp.stack(list(null_space_leak(updates, ns).values())))  # noqa: E731
            metrics["null_space/leak"] = jax.lax.cond(measure, leak, lambda: jnp.zeros((), jnp.float32))
        return optax.apply_updates(params, updates), state, metrics

    return step


def step_metrics(grads: PyTree, state: PyTree, tasks: tuple[str, ...]) -> dict[str, jax.Array]:
    """Gradient norms and conflicts, and the transform's own diagnostics where it has some."""
    flat = [g.reshape(len(tasks), -1).astype(jnp.float32) for g in jax.tree.leaves(grads)]
    gramian = sum((g @ g.T for g in flat), jnp.zeros((len(tasks), len(tasks))))
    norms = jnp.sqrt(jnp.diagonal(gramian))
    metrics = {f"grad_norm/{t}": norms[i] for i, t in enumerate(tasks)}
    for i, a in enumerate(tasks):
        for j in range(i + 1, len(tasks)):
            metrics[f"conflict/{a}-{tasks[j]}"] = gramian[i, j] / jnp.maximum(norms[i] * norms[j], 1e-30)
    try:
        found = diagnostics(state)
    except ValueError:  # not a GEMS state
        return metrics
    metrics |= {f"gate/{t}": found["gates"][i] for i, t in enumerate(tasks)}
    metrics["captured/shared"] = found["captured"][0]
    metrics |= {f"captured/{t}": found["captured"][1 + i] for i, t in enumerate(tasks)}
    return metrics | {"update_norm": found["update_norm"], "refreshed": found["refreshed"]}


def global_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Local rows ``[T, B / n, ...]`` of every process as global arrays, rows over the mesh's ``data`` axis."""
    sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
        if name != "row_index"
    }


def make_mesh() -> jax.sharding.Mesh:
    """All devices of all processes on one ``data`` axis."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def to_host(tree: PyTree) -> PyTree:
    """Replicated arrays of a mesh as arrays of this process alone."""
    return jax.tree.map(lambda x: jnp.asarray(x.addressable_data(0)), tree)


def tune(config: Config, material: Material, null_space: NullSpace | None, workdir: Path) -> T5:
    """Tunes the model, resuming from the work directory's last checkpoint.

    Args:
      config: of the run.
      material: model, data, items.
      null_space: of the base model, or ``None``.
      workdir: takes ``config.yaml``, ``metrics.jsonl`` and ``checkpoints/``.

    Returns:
      The tuned model.

    Raises:
      ValueError: a configuration other than the work directory's; a loss that is not finite.
      Stopped: after a SIGTERM, everything saved.
    """
    train = config.train
    first = jax.process_index() == 0
    check_config(config, workdir)
    tables = {task: material.dataset.table("train", task) for task in material.dataset.tasks}
    tasks = tuple(tables)
    encoded = {task: material.encode(config, table) for task, table in tables.items()}
    model = material.model
    model.config = dataclasses.replace(model.config, dropout_rate=train.dropout)
    tx = make_optimiser(config, len(tasks), null_space)
    constrained = train.method == "adamw-constrained" or (train.method == "gems" and config.gems.null_space)
    mesh = make_mesh()
    replicated = NamedSharding(mesh, PartitionSpec())
    graphdef, params, rest = split_model(model, config)
    # Copies: the step donates its parameters, and the material's model is compared with afterwards.
    params, rest = jax.device_put((jax.tree.map(jnp.copy, params), rest), replicated)
    if first:
        describe(tx, params, config)
    opt_state = jax.jit(tx.init, out_shardings=replicated)(params)
    batches = task_batches(
        encoded,
        train.batch_size,
        config.items.max_length,
        train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        length_buckets=config.items.length_buckets,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
    )
    start = 0
    if first:
        keep_config(config, workdir)
    with Checkpoints(workdir / "checkpoints") as checkpoints, Signals() as signals, Log(workdir, first) as log:
        restored = checkpoints.restore_latest(params, opt_state)
        if restored is not None:
            start, params, opt_state, position = restored
            batches.set_state(position)
            if first:
                print(f"train: resuming from step {start} in {workdir}")
        log.truncate(start)
        step_fn = jax.jit(
            make_step(graphdef, config, tx, tasks, null_space if constrained else None), donate_argnums=(0, 1)
        )
        validate = validator(config, material, graphdef, rest) if train.eval_every and first else None
        tokens, since = 0, time.perf_counter()
        with tqdm(
            total=train.steps, initial=start, desc="train", unit="step", disable=not first, mininterval=1.0
        ) as bar:
            for number in range(start, train.steps):
                batch = next(batches)
                tokens += int(batch["attention_mask"].sum()) * jax.process_count()
                logs = (number + 1) % train.log_every == 0 or number + 1 == train.steps
                params, opt_state, metrics = step_fn(
                    params, opt_state, rest, global_batch(batch, mesh), jnp.asarray(number), jnp.asarray(logs)
                )
                if logs:
                    values = {name: float(value) for name, value in to_host(metrics).items()}
                    elapsed = time.perf_counter() - since
                    log.write({"step": number + 1, **values, "tokens_per_second": tokens / elapsed})
                    bar.set_postfix({name: f"{v:.3f}" for name, v in values.items() if name.startswith("loss/")})
                    check_finite(values, number + 1)
                    tokens, since = 0, time.perf_counter()
                if validate is not None and ((number + 1) % train.eval_every == 0 or number + 1 == train.steps):
                    log.write({"step": number + 1, **validate(to_host(params))})
                    since = time.perf_counter()
                bar.update()
                done = number + 1 == train.steps
                due = train.checkpoint_every and (number + 1) % train.checkpoint_every == 0
                stopping = signals.stopping()
                if done or due or stopping:
                    checkpoints.save(number + 1, params, opt_state, batches.get_state())
                if stopping and not done:
                    checkpoints.wait()
                    raise Stopped(f"stopped by a signal at step {number + 1}; saved in {workdir}; run again to go on")
        if start >= train.steps and first:
            print(f"train: {workdir} is trained already ({start} steps)")
    return nnx.merge(graphdef, to_host(params), to_host(rest))


def load_tuned(config: Config, material: Material, workdir: Path) -> T5:
    """The model of a work directory's last checkpoint.

    Raises:
      FileNotFoundError: no checkpoint.
    """
    graphdef, params, rest = split_model(material.model, config)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        params = checkpoints.restore_params(params)
    return nnx.merge(graphdef, params, rest)


def validator(config: Config, material: Material, graphdef: Any, rest: PyTree) -> Callable[[PyTree], dict[str, float]]:
    """A function of parameters giving validation metrics of a fixed choice of rows, and general loss."""
    rows = config.train.eval_rows
    tables = {}
    for task in material.dataset.tasks:
        table = material.dataset.table("valid", task)
        chosen = np.sort(np.random.default_rng(0).permutation(len(table))[:rows])
        tables[task] = table.take(chosen)
    encoded = {task: material.encode(config, table) for task, table in tables.items()}
    text = heldout_text(material.tokenizer, config)
    rest = to_host(rest)

    def validate(params: PyTree) -> dict[str, float]:
        model = nnx.merge(graphdef, params, rest)
        found = evaluate_ranking(
            model,
            material.items,
            tables,
            encoded,
            beams=config.evaluate.beams,
            vocabulary=config.train.loss_vocabulary,
            batch_size=config.evaluate.batch_size,
            samples=0,
        )
        metrics = {
            f"eval/{task}/{name}": float(values[name])
            for task, values in found.items()
            for name in ("hit@10", "ndcg@10")
        }
        return metrics | {"eval/general/loss": general_loss(model, text)["loss"]}

    return validate


def check_finite(values: Mapping[str, float], step: int) -> None:
    """Raises ``ValueError`` naming the loss that is not finite."""
    for name, value in values.items():
        if name.startswith("loss/") and not math.isfinite(value):
            raise ValueError(
                f"{name} is {value} at step {step}: lower train.learning_rate or train.item_learning_rate, or "
                "lengthen train.warmup; the last checkpoint is from before"
            )


def describe(tx: Any, params: PyTree, config: Config) -> None:
    """Prints what trains and what the optimiser holds."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"train: {config.train.method}, {size:,} trained parameters, {config.train.steps:,} steps")
    if config.train.method == "gems":
        print(state_bytes(tx, params))
