"""The parts of a run, each on its own: clipping, refusal, rounding, early stopping, signals, watchdog, progress."""

import dataclasses
import io
import os
import re
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gems_jax as gj
from gems_jax.config.metric_names import check_metric
from gems_jax.config.run import Config
from gems_jax.config.train import MeshConfig, TrainConfig
from gems_jax.data.text.next_token import next_token_batches
from gems_jax.training.callbacks import Callback
from gems_jax.training.distributed.mesh import make_mesh, spec_of
from gems_jax.training.distributed.signals import StopSignals
from gems_jax.training.distributed.watchdog import Watchdog
from gems_jax.training.early_stopping import Best
from gems_jax.training.monitoring import progress as progress_module
from gems_jax.training.monitoring.metric_log import MetricLogger, StepInFlight
from gems_jax.training.monitoring.profile import Profile
from gems_jax.training.monitoring.progress import Progress
from gems_jax.training.monitoring.writers import open_writers
from gems_jax.training.optimiser.chain import make_optimiser
from gems_jax.training.optimiser.clipping import clip_tasks
from gems_jax.training.optimiser.guard import last_finite, refuse_not_finite
from gems_jax.training.optimiser.rates import schedule
from gems_jax.training.optimiser.rounding import apply_updates, round_stochastically
from gems_jax.training.workdir.files import Log

GRADS = {"w": jnp.array([[3.0, 4.0], [0.6, 0.8]]), "b": jnp.array([[12.0], [0.0]])}


def norms(grads):
    return np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2, axis=1) for g in grads.values()))


def test_clipping_by_task_shortens_only_what_is_too_long():
    clipped, _ = clip_tasks(2.0, "task").update(GRADS, optax.EmptyState())
    np.testing.assert_allclose(norms(clipped), [2.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(clipped["w"][0], GRADS["w"][0] * 2 / 13, rtol=1e-6)


def test_global_clipping_is_that_of_optax_on_the_joint_gradient():
    counts = jnp.array([30.0, 10.0])
    clipped, _ = clip_tasks(2.0, "global").update(GRADS, optax.EmptyState(), task_counts=counts)
    joint = jax.tree.map(lambda g: 0.75 * g[0] + 0.25 * g[1], GRADS)
    clip = optax.clip_by_global_norm(2.0)
    expected, _ = clip.update(joint, clip.init(joint))
    found = jax.tree.map(lambda g: 0.75 * g[0] + 0.25 * g[1], clipped)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    with pytest.raises(ValueError, match="train.clip is the largest norm"):
        clip_tasks(0.0, "global")


@pytest.mark.parametrize("poisoned", [0, 1, None])
def test_an_update_with_a_task_that_is_not_finite_changes_nothing(poisoned):
    tx = refuse_not_finite(optax.chain(gj.merge_tasks(), optax.adam(0.1)), 2)
    params = {"kernel": jnp.eye(4)}
    rng = np.random.default_rng(0)
    grads = {"kernel": jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32)}
    _, state = tx.update(grads, tx.init(params), params, task_losses=jnp.ones(2))
    losses = jnp.ones(2)
    if poisoned is None:  # the loss alone
        losses = losses.at[1].set(jnp.nan)
    else:
        grads["kernel"] = grads["kernel"].at[poisoned, 1, 2].set(jnp.inf)
    updates, after = tx.update(grads, state, params, task_losses=losses)
    np.testing.assert_array_equal(updates["kernel"], 0)
    jax.tree.map(np.testing.assert_array_equal, after.inner, state.inner)
    assert last_finite(after).tolist() == [poisoned != 0, poisoned == 0]


def test_a_part_that_is_not_finite_spoils_its_update_and_no_other():
    config = dataclasses.replace(Config(), train=TrainConfig(method="adamw", accumulate=2, warmup=0))
    tx = make_optimiser(config, 1, None)
    params = {"kernel": jnp.ones((2, 2))}
    good, bad = {"kernel": jnp.ones((1, 2, 2))}, {"kernel": jnp.full((1, 2, 2), jnp.nan)}
    state, moved = tx.init(params), []
    for grads in (bad, good, good, good):
        updates, state = tx.update(grads, state, params, task_losses=jnp.ones(1), task_counts=jnp.ones(1))
        moved.append(bool(jnp.any(updates["kernel"] != 0)))
    assert moved == [False, False, False, True]
    assert last_finite(state).tolist() == [True]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedules_warm_up_and_decay(kind):
    rate = schedule(TrainConfig(schedule=kind, steps=100, warmup=10), 1.0)
    np.testing.assert_allclose([rate(n) for n in (0, 9, 10)], [1 / 11, 1 / 11 + 9 * 10 / 110, 1.0], rtol=1e-6)
    middle = {"cosine": 0.5, "linear": 0.5, "constant": 1.0}[kind]
    np.testing.assert_allclose([rate(55), rate(100)], [middle, float(kind == "constant")], atol=1e-6)


def test_stochastic_rounding_is_right_on_average_and_never_off_by_more_than_one_place():
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 400)
    found = np.asarray(jax.vmap(lambda key: round_stochastically(x, key))(keys), np.float64)
    wide = np.asarray(x, np.float64)
    place = 2.0 ** (np.floor(np.log2(np.abs(wide))) - 7)
    assert np.all(np.abs(found - wide) <= place)
    np.testing.assert_array_less(np.abs(found.mean(0) - wide), 5 * place / 2 / np.sqrt(400))


def test_small_updates_move_bfloat16_weights_only_when_rounded_stochastically():
    params = {"kernel": jnp.ones((100, 100), jnp.bfloat16), "scale": jnp.ones(3)}
    updates = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3, jnp.float32), params)
    nearest = apply_updates(params, updates, None)
    random = apply_updates(params, updates, jax.random.key(0))
    assert np.all(np.asarray(nearest["kernel"], np.float32) == 1)
    assert np.mean(np.asarray(random["kernel"], np.float32)) == pytest.approx(1.001, abs=2e-4)
    assert random["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(random["scale"], np.float32(1) + np.float32(1e-3))
    still = apply_updates(params, jax.tree.map(jnp.zeros_like, updates), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, still, params)


def test_rounding_to_bfloat16_takes_the_stored_change_out_of_the_null_space():
    rng = np.random.default_rng(0)
    ns = gj.NullSpace.from_moments({"kernel": np.diag([1.0] * 8 + [1e-6] * 24)}, rank=8)
    weights = jnp.asarray(rng.normal(size=(32, 64)) / 6, jnp.bfloat16)
    update = jnp.asarray(rng.normal(size=(32, 64)) * 1e-3, jnp.float32).at[:8].set(0)

    def leak(key):
        moved = apply_updates({"kernel": weights}, {"kernel": update}, key)["kernel"]
        change = moved.astype(jnp.float32) - weights.astype(jnp.float32)
        return float(gj.null_space_leak({"kernel": change}, ns)["kernel"])

    # Rows of no update stay; a basis along no axis mixes them with the others.
    assert leak(None) == leak(jax.random.key(0)) == 0
    turn = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    ns = gj.NullSpace.from_moments({"kernel": turn @ np.diag([1.0] * 8 + [1e-6] * 24) @ turn.T}, rank=8)
    update = jnp.asarray(turn[:, 8:] @ rng.normal(size=(24, 64)) * 1e-3, jnp.float32)
    assert float(gj.null_space_leak({"kernel": update}, ns)["kernel"]) < 1e-5
    assert 0.05 < leak(None) < 0.5
    assert 0.05 < leak(jax.random.key(0)) < 0.5


def test_the_best_evaluation_and_how_long_ago_it_was():
    best = Best()
    for step, value in enumerate([0.1, 0.3, float("nan"), 0.2, 0.3], 1):
        best = best.after("eval/rec/ndcg@10", value, step)
    assert best == Best(0.3, 2, 3)
    assert Best.from_json(best.to_json()) == best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval/rec/ndcg", 0, 5), "did you mean 'eval/rec/ndcg@10'"),
        (("general/loss", 0, 5), "did you mean 'eval/general/loss'"),
        (("eval/rec/hit@10", 0, 0), "set train.eval_every"),
        ((None, 3, 5), "train.patience=3 needs train.metric"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_metric(*arguments, tasks=("rec", "src"))
    check_metric("eval/src/hit@10", 2, 5, tasks=("rec", "src"))


def test_the_first_interrupt_is_noted_and_the_second_leaves(capsys):
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        assert signals.code == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.code == 130
        assert "Ctrl-C again leaves at once" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)  # as a launcher sends it after a Ctrl-C
        assert signals.code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_watchdog_names_the_step_and_what_it_does_once_a_phase():
    out = io.StringIO()
    with Watchdog(0.5, out) as watchdog:
        watchdog.phase("waiting for data", 3)
        time.sleep(0.01)
        watchdog.phase("saving", 4)
        end = time.monotonic() + 30
        while not out.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.7)  # no second time
    said = [line for line in out.getvalue().splitlines() if line.startswith("watchdog")]
    assert len(said) == 1
    assert said[0].startswith("watchdog: step 4 has been saving for")
    quiet = io.StringIO()
    with Watchdog(0, quiet):
        time.sleep(0.05)
    assert quiet.getvalue() == ""


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys):
    values = {"loss/rec": 1.25, "loss/src": 2.5, "gate/rec": 0.5, "tokens_per_second": 1234.5}
    with Progress(100, 0, True) as progress:
        progress.update()
        progress.line(10, values)
    said = capsys.readouterr().out
    assert said.startswith("train: step 10/100  loss rec 1.250  src 2.500  1,234 tokens/s  0:0")
    assert "\r" not in said
    with Progress(100, 0, False) as progress:
        progress.line(10, values)
    assert capsys.readouterr().out == ""


def test_progress_is_a_bar_in_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_module.Progress(4, 1, True) as progress:
        progress.update()
        progress.line(2, {"loss/rec": 1.25, "tokens_per_second": 10.0})
    assert "2/4" in terminal.getvalue()
    assert "rec=1.250" in terminal.getvalue()


def logger(tmp_path, **options):
    config = TrainConfig(max_non_finite=2)
    with Progress(10, 0, False) as progress:
        return MetricLogger(config, ("rec", "src"), Log(tmp_path, True), [], progress, **options)


def sent(step, finite=(True, True), losses=(1.0, 2.0), logged=True):
    metrics = {
        "losses": jnp.array(losses),
        "counts": jnp.array([4.0, 2.0]),
        "finite": jnp.array(finite),
        "stop": jnp.int32(0),
        "update_norm": jnp.float32(3.0),
    }
    return StepInFlight(step, [metrics], [np.array([[7, 8], [9, 5]])], [(24.0, 0.0)], logged)


def test_refused_updates_are_counted_by_task_and_their_rows_logged(tmp_path):
    one = logger(tmp_path)
    for step, finite in enumerate([(True, True), (True, False), (True, True), (False, False)], 1):
        one.push(sent(step, finite, (1.0, 2.0) if all(finite) else (1.0, float("nan"))))
        one.flush()
    lines = [line for line in Log(tmp_path, True).lines() if any("refused" in key for key in line)]
    assert lines[0] == {"step": 2, "refused/src": 1, "refused_rows/src": [9, 5]}
    assert lines[1] == {
        "step": 4, "refused/rec": 1, "refused/src": 2, "refused_rows/rec": [7, 8], "refused_rows/src": [9, 5],
    }  # fmt: skip
    assert one.state() == {"tasks": {"rec": 1, "src": 2}, "in_a_row": 1}
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()

    resumed = logger(tmp_path, refused=one.state())
    resumed.push(sent(5, (True, False)))
    with pytest.raises(ValueError, match=r"task src was not finite in 2 updates in a row.*step 5.*train.learning_rate"):
        resumed.flush()


def test_an_error_of_a_callback_is_not_swallowed_and_the_line_is_written(tmp_path):
    class Full(Callback):
        def on_update(self, step, metrics):
            raise RuntimeError(f"no more room at step {step}, {metrics['loss/src']}")

    one = logger(tmp_path, callbacks=[Full()])
    one.push(sent(1))
    with pytest.raises(RuntimeError, match="no more room at step 1, 2.0"):
        one.flush()
    assert [line["step"] for line in Log(tmp_path, True).lines()] == [1]


def test_losses_of_an_updates_parts_are_averaged_by_their_tokens(tmp_path):
    one = logger(tmp_path)
    parts = [sent(1).metrics[0], sent(1, losses=(4.0, 6.0)).metrics[0] | {"counts": jnp.array([8.0, 2.0])}]
    one.push(StepInFlight(1, parts, [], [(24.0, 0.0)] * len(parts), True))
    one.flush()
    (line,) = Log(tmp_path, True).lines()
    assert (line["loss/rec"], line["loss/src"], line["update_norm"]) == (3.0, 4.0, 3.0)


def test_a_lines_rate_is_of_the_steps_since_the_line_before(tmp_path, monkeypatch):
    now = [10.0]
    monkeypatch.setattr("gems_jax.training.monitoring.metric_log.time.perf_counter", lambda: now[0])
    one = logger(tmp_path)
    for step, later in enumerate((1, 3, 2), 1):
        now[0] += later
        one.push(sent(step, logged=step > 1))
        one.flush()
    assert [line["tokens_per_second"] for line in Log(tmp_path, True).lines()] == [48 / 4, 24 / 2]


@pytest.mark.parametrize(("peak", "expected"), [(1e4, [0.25, 0.5]), (None, [None, None])])
def test_the_share_of_the_devices_peak_is_there_where_it_is_known(peak, expected, tmp_path, monkeypatch):
    now = [10.0]
    monkeypatch.setattr("gems_jax.training.monitoring.metric_log.time.perf_counter", lambda: now[0])
    one = logger(tmp_path, peak=peak)
    for step, later in enumerate((2, 1), 1):
        now[0] += later
        one.push(sent(step)._replace(work=[(24.0, 2e3), (24.0, 3e3)]))
        one.flush()
    assert [line.get("mfu") for line in Log(tmp_path, True).lines()] == expected


def test_a_writer_without_its_package_is_an_error_and_with_it_gets_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match="pip install tensorboardX"):
        open_writers(("tensorboard",), tmp_path, "name", 0)
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, key, value, step):
            written.append((key, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    run = types.SimpleNamespace(
        log=lambda values, step: written.append((values, step)), finish=lambda: written.append("finished")
    )
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: run))
    writers = open_writers(("tensorboard", "wandb"), tmp_path, "name", 4)
    for writer in writers:
        writer.write(5, {"loss/rec": 1.0})
        writer.close()
    assert written == [
        (str(tmp_path / "tensorboard"), 5), ("loss/rec", 1.0, 5), "closed", ({"loss/rec": 1.0}, 5), "finished",
    ]  # fmt: skip


class StoredRuns:
    """What `MLflow` asks of ``mlflow``: its names and its searches, kept in memory."""

    def __init__(self):
        self.runs, self.metrics, self.experiments = [], [], []

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments.append(name)
        return name

    def search_runs(self, experiments, filter_string, max_results):
        tag, value = re.fullmatch(r"tags\.`([^`]+)` = '([^']*)'", filter_string).groups()
        return [run for run in self.runs[::-1] if run.where in experiments and run.tags[tag] == value][:max_results]

    def create_run(self, experiment, tags):
        info = types.SimpleNamespace(run_id=f"run {len(self.runs)}")
        self.runs.append(types.SimpleNamespace(where=experiment, tags=tags, info=info, status="RUNNING"))
        return self.runs[-1]

    def update_run(self, run_id, status):
        self.runs[int(run_id.split()[1])].status = status

    def set_terminated(self, run_id):
        self.update_run(run_id, "FINISHED")

    def log_batch(self, run_id, metrics):
        assert all(re.fullmatch(r"[\w\-. :/]+", metric.key) for metric in metrics)
        self.metrics += [(run_id, metric.key, metric.value, metric.step) for metric in metrics]


def test_mlflow_gets_the_numbers_and_a_run_that_goes_on_is_the_same_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match="pip install mlflow"):
        open_writers(("mlflow",), tmp_path, "name", 0)
    stored = StoredRuns()
    metric = lambda key, value, timestamp, step: types.SimpleNamespace(key=key, value=value, step=step)  # noqa: E731
    package = types.SimpleNamespace(MlflowClient=lambda: stored, entities=types.SimpleNamespace(Metric=metric))
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for folder, step in (("it's a", 1), ("b", 1), ("it's a", 1), ("it's a", 2)):
        (writer,) = open_writers(("mlflow",), tmp_path / folder, "my run", step - 1)
        assert stored.runs[-1].status == "RUNNING"
        writer.write(step, {"loss/rec": 1.0, "eval/rec/ndcg@10": 0.5})
        writer.close()
    assert stored.experiments == ["gems-jax"]
    assert [(run.tags["mlflow.runName"], run.status) for run in stored.runs] == 3 * [("my run", "FINISHED")]
    named = [(name, step, key, value) for name, step in (("run 0", 1), ("run 1", 1), ("run 2", 1), ("run 2", 2))
             for key, value in (("loss/rec", 1.0), ("eval/rec/ndcg_10", 0.5))]  # fmt: skip
    assert [(run, step, key, value) for run, key, value, step in stored.metrics] == named


def test_rules_place_parameters_and_a_mesh_that_does_not_divide_the_devices_is_refused():
    sizes = {"fsdp": 2, "tensor": 4}
    assert spec_of("block/attention/q/kernel", (3, 8, 16), sizes) == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert spec_of("token_embedding/embedding", (32, 8), sizes) == jax.sharding.PartitionSpec("tensor", "fsdp")
    assert spec_of("encoder/relative_bias/embedding", (32, 8), sizes) == jax.sharding.PartitionSpec(None, None)
    assert spec_of("encoder/final_norm/scale", (8,), sizes) == jax.sharding.PartitionSpec(None)
    with pytest.raises(ValueError, match=f"mesh.fsdp=2 times mesh.tensor=3 must divide the {jax.device_count()}"):
        make_mesh(MeshConfig(2, 3))


def test_profiled_steps_that_cannot_be_are_refused(tmp_path):
    for steps in ((0, 3), (3, 2)):
        with pytest.raises(ValueError, match="train.profile is the first and the last step"):
            Profile(steps, tmp_path)


def test_a_models_operations_are_six_for_each_parameter_and_token():
    config = gj.models.T5Config(
        vocab_size=50, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=1, num_heads=2
    )
    model = nnx.eval_shape(lambda: gj.models.T5.create(config, jax.random.key(0)))
    # Encoder: q, k, v, o of 64 and three of 128, twice; cross attention's keys and values: 64 each.
    encoder, cross = 2 * (4 * 64 + 3 * 128), 2 * 64
    decoder = 8 * 64 + 3 * 128 - cross
    expected = 6 * (100 * (encoder + cross) + 10 * (decoder + 50 * 8)) + 12 * 8 * 20 * (2 * 100 + 10)
    assert model.flops(100, 10, 20) == expected


def test_text_for_decoders_is_cut_into_chunks_that_begin_as_the_model_expects():
    batches = list(next_token_batches(np.arange(10, 31), 2, 6, bos_token_id=1))
    assert [batch["input_ids"].tolist() for batch in batches] == [
        [[1, 10, 11, 12, 13, 14], [1, 15, 16, 17, 18, 19]],
        [[1, 20, 21, 22, 23, 24], [1, 25, 26, 27, 28, 29]],
    ]
    first = batches[0]
    assert first["labels"][0].tolist() == [10, 11, 12, 13, 14, 0]
    assert first["label_mask"][0].tolist() == [1, 1, 1, 1, 1, 0]
    (padded,) = next_token_batches(np.arange(10, 24), 4, 6)
    assert padded["attention_mask"].sum(1).tolist() == [6, 6, 0, 0]
    with pytest.raises(ValueError, match="too few"):
        next(next_token_batches(np.arange(3), 2, 6))
    with pytest.raises(ValueError, match="text.input_length 2 is too short"):
        next(next_token_batches(np.arange(30), 2, 2, bos_token_id=1))
