"""Tuning one model on all tasks: the loop.

A run is a function of its configuration and seed: killed at any moment and started again, any number of times, it ends
with the same bits as one that was not, on the same devices, processes and number of CPU threads. On GPUs this needs
``XLA_FLAGS=--xla_gpu_deterministic_ops=true``. On another mesh, or another number of devices or processes, float32
sums are rounded in another order (by about 1e-7): a run goes on with the same rows, and the losses of its next steps
agree to 1e-5. The difference grows with every step, the faster the larger the learning rate is.

Of several processes each feeds its own devices; the first one writes and speaks. They save together and stop after the
same step, whichever of them was told to. When one is gone the others end, see
`gems_jax.training.distributed.cluster`; started again, all go on from the newest checkpoint.
"""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gems_jax.config.metric_names import metric_names
from gems_jax.config.run import Config
from gems_jax.evaluation.drift import general_loss
from gems_jax.evaluation.evaluate import evaluate_ranking
from gems_jax.null_space.space import NullSpace
from gems_jax.staging import check_workdir, is_remote
from gems_jax.training.build import Run, build, check_beams
from gems_jax.training.compile import Programs
from gems_jax.training.distributed.cluster import check_agreement, ending_together, failing_together
from gems_jax.training.distributed.mesh import gathered
from gems_jax.training.distributed.signals import EXIT_CODES, Signals, preemption_notice
from gems_jax.training.distributed.watchdog import Watchdog
from gems_jax.training.early_stopping import Best
from gems_jax.training.losses import family_of
from gems_jax.training.monitoring.flops import model_flops, peak_flops
from gems_jax.training.monitoring.metric_log import Journal, Sent
from gems_jax.training.monitoring.profile import Profile
from gems_jax.training.monitoring.progress import Progress
from gems_jax.training.monitoring.start_table import start_table
from gems_jax.training.monitoring.writers import open_writers
from gems_jax.training.pretrain import heldout_text
from gems_jax.training.stages import Material
from gems_jax.training.trainable import join, split_model
from gems_jax.training.workdir.assets import assets_of, check_assets, read_assets, write_assets
from gems_jax.training.workdir.checkpoints import Checkpoints
from gems_jax.training.workdir.files import Log, check_config, check_processes, keep_config
from gems_jax.training.workdir.lock import WorkdirLock

PyTree = Any


class Stopped(Exception):
    """A stop signal came; everything is saved. ``code`` is the exit code that belongs to it."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def tune(
    config: Config,
    material: Material,
    null_space: NullSpace | None,
    workdir: Path,
    programs: Programs | None = None,
) -> Any:
    """Tunes the model, resuming from the work directory's newest intact checkpoint.

    Args:
      config: of the run.
      material: model, data, items.
      null_space: of the base model, or ``None``.
      workdir: takes ``config.yaml``, ``assets.json``, ``metrics.jsonl`` and ``checkpoints/``; here or on an object
        store (`gems_jax.staging.as_path`).
      programs: of former runs of this process, see `gems_jax.training.compile.compile_step`.

    Returns:
      The tuned model.

    Raises:
      ValueError: a configuration other than the work directory's, or than other processes', or one that cannot be;
        data, tokenizer, base model or null space other than the run began with; a work directory in use; too many
        updates in a row that are not finite; no intact checkpoint among those there.
      OSError: something cannot be written.
      Stopped: after a signal, everything saved.
    """
    train = config.train
    first = jax.process_index() == 0
    if train.profile and is_remote(workdir):
        raise ValueError("train.profile writes to this machine's disk alone; choose a --workdir there or leave it out")
    check_workdir(workdir, "--workdir")
    check_processes(config, workdir)
    with failing_together():
        check_config(config, workdir)
        check_beams(config)
        assets = assets_of(config, material, null_space)
        check_assets(assets, workdir, training=True)
    check_agreement(assets.shared())
    profile = Profile(train.profile if first else None, workdir / "profile")
    run = build(config, material, null_space, programs)
    if first:
        print(start_table(config, run.tx, run.params, run.rest, run.encoded, run.null_space))
    with (
        ending_together(workdir),
        WorkdirLock(workdir, first),
        Signals() as signals,
        Checkpoints(workdir / "checkpoints", train.keep_checkpoints) as checkpoints,
        Watchdog(train.hang_after) as watchdog,
        Log(workdir, first) as log,
    ):
        if first:
            keep_config(config, workdir)
            if read_assets(workdir) is None:
                write_assets(assets, workdir)
        # Where the run goes on.
        start, best = 0, Best()
        position: dict[str, Any] = {}
        restored = checkpoints.restore_latest(run.params, run.opt_state)
        if restored is not None:
            start, run.params, run.opt_state, position = restored
            run.batches.set_state(position["batches"])
            best = Best.from_json(position["best"])
            checkpoints.best_step = best.step
            if first:
                print(f"train: resuming from step {start} in {workdir}")
        log.truncate(start)
        ended = start >= train.steps or bool(train.patience and best.worse >= train.patience)
        if ended and first:
            print(f"train: {workdir} is trained already ({start} steps)")

        validate = validator(config, material, run) if train.eval_every and not ended else None
        writers = open_writers(train.writers, workdir, config.name, start) if first else []
        peak = peak_flops()
        with Progress(train.steps, start, first) as progress:
            journal = Journal(
                train, run.tasks, log, writers, progress, peak and peak * jax.device_count(), position.get("refused")
            )
            number = start
            while not ended:
                # One update, in as many parts as it needs memory for.
                number += 1
                done = number == train.steps
                logged = number % train.log_every == 0 or done
                profile.before(number)
                sent = Sent(number, [], [], [], logged)
                for part in range(train.accumulate):
                    watchdog.phase("waiting for data", number)
                    batch = next(run.batches)
                    host = run.batches.host_batch
                    watchdog.phase("being sent to the devices", number)
                    measure = logged and part + 1 == train.accumulate
                    control = run.control(number - 1, part, measure, signals.code)
                    run.params, run.opt_state, metrics = run.step(run.params, run.opt_state, run.rest, batch, control)
                    sent.metrics.append(metrics)
                    sent.rows.append(host["row_index"])
                    sent.work.append(work_of(material.model, host, run.row_parts, peak is not None))
                # While the devices work on it, the update before is read.
                watchdog.phase("waiting for the devices", number)
                journal.settle()
                journal.push(sent)
                progress.update()
                profile.after(number, run.params)

                # Now and then: evaluation, which touches nothing of the training, and a checkpoint.
                stopping = signals.code if jax.process_count() == 1 else journal.stop_code
                if preemption_notice(number):
                    stopping = EXIT_CODES[signal.SIGTERM]
                evaluates = validate is not None and (number % train.eval_every == 0 or done)
                due = bool(train.checkpoint_every) and number % train.checkpoint_every == 0
                if not (evaluates or due or done or stopping):
                    continue
                journal.settle()
                if evaluates and validate is not None:
                    watchdog.phase("evaluating", number)
                    values = validate(run.params)
                    journal.write(number, values)
                    if train.metric is not None:
                        best = best.after(train.metric, values[train.metric], number)
                        checkpoints.best_step = best.step
                        due = due or best.step == number
                        ended = bool(train.patience and best.worse >= train.patience)
                ended = ended or done
                if ended or due or stopping:
                    watchdog.phase("saving", number)
                    position = {
                        "batches": run.batches.get_state(), "best": best.to_json(), "refused": journal.state(),
                    }  # fmt: skip
                    log.flush()
                    checkpoints.save(number, run.params, run.opt_state, position)
                if stopping and not ended:
                    checkpoints.wait()
                    raise Stopped(
                        f"stopped by a signal at step {number}; saved in {workdir}; run again to go on", stopping
                    )
                if ended and not done and first:
                    print(f"train: {train.metric} has not been better since step {best.step}: ended at step {number}")
                journal.restart_clock()
        for writer in writers:
            writer.close()
        run.batches.close()
    graphdef, _, _ = split_model(material.model, config)
    return join(graphdef, gathered(run.params, run.mesh), gathered(run.rest, run.mesh))


def load_tuned(config: Config, material: Material, workdir: Path) -> Any:
    """The model of a work directory's last or best checkpoint, as ``evaluate.checkpoint`` says.

    Raises:
      FileNotFoundError: no such checkpoint.
      ValueError: it is damaged, or was tuned on another catalogue, tokenizer or base model.
    """
    check_assets(assets_of(config, material, training=False), workdir)
    graphdef, params, rest = split_model(material.model, config)
    with Checkpoints(workdir / "checkpoints", writes=False) as checkpoints:
        params = checkpoints.restore_params(params, config.evaluate.checkpoint)
    return join(graphdef, params, rest)


def work_of(model: Any, batch: dict[str, np.ndarray], parts: int, count_work: bool) -> tuple[float, float]:
    """Input tokens of a batch, of all its parts, and the model's operations on it where they are wanted."""
    tokens = float(batch["attention_mask"].sum()) * parts
    if not count_work:
        return tokens, 0.0
    rows = max(float((batch["row_index"] >= 0).sum()) * parts, 1.0)
    return tokens, model_flops(model, tokens, float(batch["label_mask"].sum()) * parts, tokens / rows)


def validator(config: Config, material: Material, run: Run) -> Callable[[PyTree], dict[str, float]]:
    """A function of parameters giving metrics of a fixed choice of validation rows, and general loss.

    All processes call it, the first one computes, all get its numbers.
    """
    graphdef, _, _ = split_model(material.model, config)
    rest = gathered(run.rest, run.mesh)
    first = jax.process_index() == 0
    rows = config.train.eval_rows
    tables = {}
    for task in material.dataset.tasks if first else ():
        table = material.dataset.table("valid", task)
        tables[task] = table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:rows]))
    encoded = {task: material.encode(config, table) for task, table in tables.items()}
    text = heldout_text(material.tokenizer, config, family_of(material.model)) if first else []
    names = metric_names(run.tasks)

    def measure(params: PyTree) -> list[float]:
        model = join(graphdef, params, rest)
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
        ranked = [float(found[task][name]) for task in run.tasks for name in ("hit@10", "ndcg@10")]
        return [*ranked, general_loss(model, text)["loss"]]

    def validate(params: PyTree) -> dict[str, float]:
        whole = gathered(params, run.mesh)
        values = np.asarray(measure(whole) if first else [0.0] * len(names), np.float64)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # As integers: float64 would arrive as float32.
            values = multihost_utils.broadcast_one_to_all(values.view(np.int32)).view(np.float64)
        return dict(zip(names, (float(value) for value in values), strict=True))

    return validate
