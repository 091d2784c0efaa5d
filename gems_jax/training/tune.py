"""Tuning one model on all tasks: the loop.

A run is a function of its configuration and seed: killed at any moment and started again, any number of times, it ends
with the same bits as one that was not, on the same devices, processes and number of CPU threads. On GPUs this needs
``XLA_FLAGS=--xla_gpu_deterministic_ops=true``. On another mesh, or another number of devices or processes, float32
sums are rounded in another order (by about 1e-7): a run goes on with the same rows, and the losses of its next steps
agree to 1e-5. The difference grows with every step, the faster the larger the learning rate is.

Where there are several processes each feeds its own devices; the first one writes and speaks. They save together and
stop after the same step, whichever of them was told to. When one is gone the others end, see
`gems_jax.training.distributed.cluster`; started again, all go on from the newest checkpoint.
"""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig
from gems_jax.null_space.space import NullSpace
from gems_jax.staging import check_workdir, is_remote
from gems_jax.training.build import TrainingRun, build, check_beams
from gems_jax.training.callbacks import Callback
from gems_jax.training.compile import Programs
from gems_jax.training.distributed.cluster import check_agreement, ending_together, failing_together
from gems_jax.training.distributed.mesh import gathered
from gems_jax.training.distributed.signals import EXIT_CODES, StopSignals, preemption_notice
from gems_jax.training.distributed.watchdog import Watchdog
from gems_jax.training.monitoring.flops import peak_of_all_devices
from gems_jax.training.monitoring.metric_log import MetricLogger, StepInFlight
from gems_jax.training.monitoring.profile import Profile
from gems_jax.training.monitoring.progress import Progress
from gems_jax.training.monitoring.start_table import start_table
from gems_jax.training.monitoring.writers import open_writers
from gems_jax.training.stages import Assets
from gems_jax.training.state import TrainState, is_over, restore
from gems_jax.training.trainable import join_model, split_model
from gems_jax.training.unknown_text import unknown_notes
from gems_jax.training.validation import validator
from gems_jax.training.workdir.assets import AssetRecord, check_record, read_record, record_of, write_record
from gems_jax.training.workdir.checkpoints import Checkpoints
from gems_jax.training.workdir.files import Log, check_config, check_processes, keep_config
from gems_jax.training.workdir.lock import WorkdirLock
from gems_jax.types import PyTree

Validate = Callable[[PyTree], dict[str, float]]


class Stopped(Exception):
    """A stop signal came; everything is saved. ``code`` is the exit code that belongs to it."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def tune(
    config: Config,
    assets: Assets,
    null_space: NullSpace | None,
    workdir: Path,
    programs: Programs | None = None,
    callbacks: Sequence[Callback] = (),
) -> Any:
    """Tunes the model, resuming from the work directory's newest intact checkpoint.

    Args:
      config: of the run.
      assets: model, data, items.
      null_space: of the base model, or ``None``.
      workdir: takes ``config.yaml``, ``assets.json``, ``metrics.jsonl`` and ``checkpoints/``; here or on an object
        store (`gems_jax.staging.as_path`).
      programs: of former runs of this process, see `gems_jax.training.compile.compile_step`.
      callbacks: told of updates, evaluations and checkpoints, see `gems_jax.training.callbacks.Callback`.

    Returns:
      The tuned model.

    Raises:
      ValueError: a configuration other than the work directory's, or than other processes', or one that cannot be;
        data, tokenizer, base model or null space other than the run began with; a work directory in use; too many
        updates in a row that are not finite; no intact checkpoint among those there.
      OSError: something cannot be written.
      Stopped: after a signal, everything saved.
    """
    train, first = config.train, jax.process_index() == 0
    record = checked_record(config, assets, null_space, workdir)
    profile = Profile(train.profile if first else None, workdir / "profile")
    run = build(config, assets, null_space, programs)
    if first:
        print(start_table(config, run.tx, run.params, run.frozen, run.encoded, run.null_space, run.text))
        print("".join(f"{line}\n" for line in unknown_notes(config, assets.dataset, assets.tokenizer)), end="")
    with (
        ending_together(workdir),
        WorkdirLock(workdir, first),
        StopSignals() as signals,
        Checkpoints(workdir / "checkpoints", train.keep_checkpoints, on_saved=teller(callbacks)) as checkpoints,
        Watchdog(train.hang_after) as watchdog,
        Log(workdir, first) as log,
    ):
        if first:
            keep_config(config, workdir)
            if read_record(workdir) is None:
                write_record(record, workdir)
        state = restore(run, checkpoints)
        if first and state.step:
            print(f"train: resuming from step {state.step} in {workdir}")
        log.truncate(state.step)
        over = is_over(state, train)
        if first and over:
            print(f"train: {workdir} is trained already ({state.step} steps)")
        validate = validator(config, assets, run) if train.eval_every and not over else None
        writers = open_writers(train.writers, workdir, config.name, state.step) if first else []
        with Progress(train.steps, state.step, first) as progress:
            refused = state.position.get("refused")
            logger = MetricLogger(train, run.trained, log, writers, progress, peak_of_all_devices(), refused, callbacks)
            state, stop = train_loop(run, state, train, validate, logger, checkpoints, signals, watchdog, profile)
            if stop:
                raise Stopped(f"stopped by a signal at step {state.step}; saved in {workdir}; run again to go on", stop)
        for writer in writers:
            writer.close()
        run.batches.close()
    graphdef, _, _ = split_model(assets.model, config)
    return join_model(graphdef, gathered(state.params, run.mesh), gathered(run.frozen, run.mesh))


def train_loop(
    run: TrainingRun,
    state: TrainState,
    train: TrainConfig,
    validate: Validate | None,
    logger: MetricLogger,
    checkpoints: Checkpoints,
    signals: StopSignals,
    watchdog: Watchdog,
    profile: Profile,
) -> tuple[TrainState, int]:
    """Updates until the run is over or told to stop; evaluates and saves in between.

    Returns:
      The state, saved unless it is that of the beginning, and the exit code asked for if it stopped early, else 0.
    """
    while not is_over(state, train):
        profile.before(state.step + 1)
        state, in_flight = update(run, state, train, signals, watchdog)
        # While the devices work on it, the update before is read.
        watchdog.phase("waiting for the devices", state.step)
        logger.flush()
        logger.push(in_flight)
        profile.after(state.step, state.params)
        checkpoints.look()

        stop = stop_code(state.step, signals, logger)
        last = state.step == train.steps
        evaluates = validate is not None and (last or state.step % train.eval_every == 0)
        saves = last or (train.checkpoint_every > 0 and state.step % train.checkpoint_every == 0)
        if not (evaluates or saves or stop):
            continue
        logger.flush()
        if evaluates and validate is not None:
            watchdog.phase("evaluating", state.step)
            state = evaluated(state, validate, train, logger)
        if saves or stop or is_over(state, train) or (evaluates and state.best.step == state.step):
            watchdog.phase("saving", state.step)
            state = saved(state, run, logger, checkpoints)
        if stop and not is_over(state, train):
            checkpoints.wait()
            return state, stop
        if is_over(state, train) and not last and jax.process_index() == 0:
            print(f"train: {train.metric} has not been better since step {state.best.step}: ended at step {state.step}")
        logger.restart_clock()
    return state, 0


def update(
    run: TrainingRun, state: TrainState, train: TrainConfig, signals: StopSignals, watchdog: Watchdog
) -> tuple[TrainState, StepInFlight]:
    """One update, in as many parts as it needs memory for: sent to the devices, not waited for."""
    number = state.step + 1
    params, opt_state = state.params, state.opt_state
    in_flight = StepInFlight(number, [], [], [], number % train.log_every == 0 or number == train.steps)
    for part in range(run.batches_an_update):
        watchdog.phase("waiting for data", number)
        batch = next(run.batches)
        host = run.batches.host_batch
        watchdog.phase("being sent to the devices", number)
        measure = in_flight.logged and part + 1 == run.batches_an_update
        control = run.control(number - 1, part, measure, signals.code)
        params, opt_state, metrics = run.step(params, opt_state, run.frozen, batch, control)
        in_flight.metrics.append(metrics)
        in_flight.rows.append(host["row_index"])
        in_flight.work.append(run.work(host))
    return state._replace(step=number, params=params, opt_state=opt_state), in_flight


def stop_code(step: int, signals: StopSignals, logger: MetricLogger) -> int:
    """The exit code asked for, 0 without one; the same on all processes, who read each other's with the metrics."""
    if preemption_notice(step):
        return EXIT_CODES[signal.SIGTERM]
    return signals.code if jax.process_count() == 1 else logger.stop_code


def evaluated(state: TrainState, validate: Validate, train: TrainConfig, logger: MetricLogger) -> TrainState:
    """The state with one more evaluation, which is logged."""
    values = validate(state.params)
    logger.evaluation(state.step, values)
    if train.metric is None:
        return state
    return state._replace(best=state.best.after(train.metric, values[train.metric], state.step))


def saved(state: TrainState, run: TrainingRun, logger: MetricLogger, checkpoints: Checkpoints) -> TrainState:
    """The state as its checkpoint has it, which is written while the run goes on."""
    position = {"batches": run.batches.get_state(), "best": state.best.to_json(), "refused": logger.state()}
    logger.sync()
    checkpoints.best_step = state.best.step
    checkpoints.save(state.step, state.params, state.opt_state, position)
    return state._replace(position=position)


def checked_record(config: Config, assets: Assets, null_space: NullSpace | None, workdir: Path) -> AssetRecord:
    """The record of the run's assets, when nothing in the work directory or another process speaks against it."""
    if config.train.profile and is_remote(workdir):
        raise ValueError("train.profile writes to this machine's disk alone; choose a --workdir there or leave it out")
    check_workdir(workdir, "--workdir")
    check_processes(config, workdir)
    with failing_together():
        check_config(config, workdir)
        check_beams(config)
        record = record_of(config, assets, null_space)
        check_record(record, workdir, training=True)
    check_agreement(record.shared())
    return record


def teller(callbacks: Sequence[Callback]) -> Callable[[int, Path], None] | None:
    """Tells all of them of a checkpoint; ``None`` where there are none."""

    def tell(step: int, path: Path) -> None:
        for callback in callbacks:
            callback.on_checkpoint(step, path)

    return tell if callbacks else None
