"""The loop as a whole: what it does with its options, and that the host never makes the device wait."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import gems_jax, metrics, options

import gems_jax as gj
from gems_jax import cli
from gems_jax.arguments import config_of
from gems_jax.config.run import Config
from gems_jax.leaf_path import leaf_path
from gems_jax.models import load
from gems_jax.training import tune as loop
from gems_jax.training import validation
from gems_jax.training.build import build, training_model
from gems_jax.training.callbacks import Callback
from gems_jax.training.losses import task_loss
from gems_jax.training.monitoring.metric_log import MetricLogger
from gems_jax.training.monitoring.start_table import start_table
from gems_jax.training.optimiser.chain import make_optimiser
from gems_jax.training.stages import assemble, ensure_data
from gems_jax.training.trainable import split_model
from gems_jax.training.tuned import load_tuned

# The quickest to compile: what is tested here is around the optimiser.
CHEAP = {"train__method": "adamw", "train__steps": 5, "train__warmup": 2}


def train(prepared, workdir, **changed):
    return gems_jax("train", *options(prepared.root, **(CHEAP | changed)), "--workdir", workdir)


def losses(workdir):
    lines = [line for line in metrics(workdir) if "loss/rec" in line]
    return np.array([[line["loss/rec"], line["loss/src"]] for line in lines])


@pytest.fixture(scope="module")
def plain(prepared, tmp_path_factory):
    """A run of `CHEAP` settings."""
    workdir = tmp_path_factory.mktemp("loop") / "plain"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        assert train(prepared, workdir) == 0
    return workdir


def test_parts_of_an_update_add_up_to_the_whole(prepared, plain, tmp_path):
    assert train(prepared, tmp_path / "run", train__accumulate=2) == 0
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(plain), rtol=1e-4)


def test_mixed_precision_follows_float32(prepared, plain, tmp_path):
    assert train(prepared, tmp_path / "run", train__compute_dtype="bfloat16") == 0
    found, wanted = losses(tmp_path / "run"), losses(plain)
    assert np.any(found != wanted)
    np.testing.assert_allclose(found, wanted, rtol=0.02)


def test_early_stopping_ends_the_run_and_keeps_the_best_checkpoint(prepared, tmp_path, monkeypatch, capsys):
    general = iter([3.0, 2.0, 2.5, 2.25])
    names = ("hit@10", "ndcg@10")
    monkeypatch.setattr(
        validation, "evaluate_ranking", lambda *a, **k: {t: dict.fromkeys(names, 0.5) for t in ("rec", "src")}
    )
    monkeypatch.setattr(validation, "general_loss", lambda *a: {"loss": next(general)})
    changed = {"train__steps": 9, "train__eval_every": 1, "train__metric": "eval/general/loss", "train__patience": 2}
    changed |= {"train__keep_checkpoints": 1}
    run = tmp_path / "run"
    assert train(prepared, run, **changed) == 0
    assert "eval/general/loss has not been better since step 2: ended at step 4" in capsys.readouterr().out
    assert [line["eval/general/loss"] for line in metrics(run) if "eval/general/loss" in line] == [3.0, 2.0, 2.5, 2.25]
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()) == ["2", "4"]
    assert train(prepared, run, **changed) == 0  # it knows that it has ended
    assert "is trained already (4 steps)" in capsys.readouterr().out
    changed["train__patience"] = 3
    assert train(prepared, run, **changed) == cli.EXIT_BAD_INPUT
    assert "train.patience: 2 there, 3 now" in capsys.readouterr().err


def test_a_run_that_diverges_ends_with_advice_and_saves_nothing(prepared, tmp_path, capsys):
    run = tmp_path / "run"
    changed = {"train__learning_rate": 1e30, "train__item_learning_rate": 1e30, "train__max_non_finite": 2}
    assert train(prepared, run, train__steps=8, train__checkpoint_every=8, **changed) == cli.EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert "not finite in 2 updates in a row" in said
    assert "Lower train.learning_rate" in said
    (line,) = [line for line in metrics(run) if line.get("refused/rec") == 2]
    assert len(line["refused_rows/rec"]) == 8
    assert not list((run / "checkpoints").glob("[0-9]*"))


def test_steps_are_sent_before_the_one_ahead_is_read_and_nothing_is_copied_unasked(prepared, tmp_path, monkeypatch):
    seen = []
    flush = MetricLogger.flush

    def observed(logger):
        if logger._pending is not None:
            seen.append(f"read {logger._pending.step}")
        flush(logger)

    def built(*arguments):
        run = build(*arguments)
        step = run.step

        def sending(*operands):
            number = len([entry for entry in seen if entry.startswith("sent")]) + 1
            seen.append(f"sent {number}")
            result = step(*operands)
            if number == 1:  # compilation is over
                jax.config.update("jax_transfer_guard", "disallow")
            if number == 5:
                jax.config.update("jax_transfer_guard", "allow")
            return result

        run.step = sending
        return run

    monkeypatch.setattr(MetricLogger, "flush", observed)
    monkeypatch.setattr(loop, "build", built)
    try:
        assert train(prepared, tmp_path / "run") == 0
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert seen == ["sent 1", "sent 2", "read 1", "sent 3", "read 2", "sent 4", "read 3", "sent 5", "read 4", "read 5"]


def test_some_steps_are_profiled_on_request(prepared, tmp_path):
    run = tmp_path / "run"
    assert train(prepared, run, train__profile="[2, 3]") == 0
    assert list((run / "profile").rglob("*.xplane.pb"))


def test_a_second_run_on_the_same_directory_is_refused(prepared, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock.json").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": None}))
    assert train(prepared, run) == cli.EXIT_BAD_INPUT
    assert f"{run} is in use by process 1 on elsewhere" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["lock.json"]


def configured(prepared, **changed):
    argv = ["train", "--workdir", "-", *options(prepared.root, **changed)]
    return config_of(cli.parse([str(word) for word in argv])[1])


def test_a_run_goes_on_with_the_same_losses_on_another_mesh(prepared, plain, tmp_path):
    """Three steps on four devices as fsdp x tensor, then two on one."""
    run = tmp_path / "run"
    argv = options(prepared.root, **CHEAP, train__checkpoint_every=3)
    program = f"""
import os, signal, sys
from gems_jax import cli
from gems_jax.training import tune
save = tune.Checkpoints.save
def stop(checkpoints, step, params, *rest):
    kernel = params["encoder"]["block"]["mlp"]["wo"]["kernel"][...]
    place = kernel.sharding
    assert (len(place.device_set), place.shard_shape(kernel.shape)) == (4, (1, 16, 16)), place
    save(checkpoints, step, params, *rest)
    checkpoints.wait()
    os.kill(os.getpid(), signal.SIGKILL)
tune.Checkpoints.save = stop
sys.exit(cli.main({["train", *argv, "--workdir", str(run), "--mesh.fsdp", "2", "--mesh.tensor", "2"]!r}))
"""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "4",
        "NPROC": "16",  # threads for collectives, see `fake_devices`
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert gems_jax("train", *argv, "--workdir", run) == 0
    np.testing.assert_allclose(losses(run), losses(plain), rtol=1e-5)


@pytest.fixture(scope="module")
def base(prepared):
    return load(prepared.root / "base")


@pytest.fixture(scope="module")
def assets(prepared, base):
    config = configured(prepared)
    return assemble(config, ensure_data(config), base)


class Told(Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.updates, self.events = [], []

    def on_update(self, step, metrics):
        self.updates.append((step, metrics))

    def on_evaluation(self, step, metrics):
        self.events.append(("evaluation", step, metrics["eval/general/loss"]))

    def on_checkpoint(self, step, path):
        self.events.append(("checkpoint", step, (path / "checksums.json").is_file()))
        assert path.name == str(step)


def test_callbacks_are_told_of_every_update_evaluation_and_checkpoint_and_change_nothing(
    prepared, plain, assets, tmp_path, monkeypatch
):
    ranked = dict.fromkeys(("hit@10", "ndcg@10"), 0.5)
    monkeypatch.setattr(validation, "evaluate_ranking", lambda *a, **k: dict.fromkeys(("rec", "src"), ranked))
    monkeypatch.setattr(validation, "general_loss", lambda *a: {"loss": 2.5})
    config = configured(prepared, **CHEAP, train__log_every=2, train__eval_every=3, train__checkpoint_every=2)
    told = Told()
    tuned = loop.tune(config, assets, None, tmp_path / "run", callbacks=[told])
    assert [step for step, _ in told.updates] == [1, 2, 3, 4, 5]
    found = [[metrics["loss/rec"], metrics["loss/src"]] for _, metrics in told.updates]
    np.testing.assert_array_equal(found, losses(plain))
    assert [step for step, metrics in told.updates if "tokens_per_second" in metrics] == [2, 4, 5]
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss/rec" in line] == [2, 4, 5]
    assert [event for event in told.events if event[0] == "evaluation"] == [("evaluation", s, 2.5) for s in (3, 5)]
    assert [event for event in told.events if event[0] == "checkpoint"] == [("checkpoint", s, True) for s in (2, 4, 5)]
    untold = load_tuned(configured(prepared, **CHEAP), assets, plain)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(tuned), nnx.state(untold))


def test_bfloat16_parameters_stay_bfloat16_and_rounding_shows_in_the_stored_change(prepared, tmp_path):
    """Half a minute, for two runs: what people store is what keeps the bound or does not."""
    half = prepared.root / "half"
    if not half.exists():
        model, tokenizer = load(prepared.root / "base", "bfloat16")
        gj.models.save(model, tokenizer, half)
    changed = CHEAP | {
        "train__method": "adamw-constrained",
        "model__dtype": "bfloat16",
        "model__path": half,
        "null_space__path": tmp_path / "null_space",
        "train__learning_rate": 1e-4,
    }
    leaks = {}
    for rounding in (False, True):
        run = tmp_path / str(rounding)
        assert gems_jax(
            "train", *options(prepared.root, **changed, train__stochastic_rounding=rounding), "--workdir", run
        ) == 0  # fmt: skip
        lines = metrics(run)
        leaks[rounding] = [line["null_space/leak_stored"] for line in lines]
        assert max(line["null_space/leak"] for line in lines) <= 1e-5
    assert min(leaks[False] + leaks[True]) > 1e-3  # what is stored is outside of it, whichever way it is rounded
    assert leaks[False] != leaks[True]


def test_dropout_depends_on_the_seed_and_the_step_alone(prepared, assets):
    config = configured(prepared, **CHEAP, train__dropout=0.5)
    programs, found = {}, []
    for numbers in ((0, 1), (1,), (0,)):
        run = build(config, assets, None, programs)
        for _ in range(numbers[0]):
            next(run.batches)
        for number in numbers:
            # The parameters of the beginning, each time: losses differ by dropout and rows alone.
            again = build(config, assets, None, programs).params
            *_, told = run.step(
                again, run.tx.init(again), run.frozen, next(run.batches), run.control(number, 0, False, 0)
            )
            found.append(np.asarray(told["losses"]))
    first, second, second_alone, first_alone = found
    np.testing.assert_array_equal(second, second_alone)
    np.testing.assert_array_equal(first, first_alone)
    plain = training_model(assets.model, configured(prepared))
    dropping = training_model(assets.model, config)
    assert plain.encoder.config.dropout_rate == 0
    assert dropping.encoder.block.mlp.config.dropout_rate == 0.5


@pytest.mark.parametrize("remat", ["null", "full", "dots", "none"])
def test_layers_are_computed_again_as_train_remat_says(prepared, assets, remat):
    config = configured(prepared, **CHEAP, train__remat=remat)
    run = build(config, assets, None)
    graph, params, frozen = split_model(training_model(assets.model, config), config)
    batch = jax.tree.map(lambda x: x[0], next(run.batches))
    program = str(jax.make_jaxpr(task_loss(graph, "items"))(params, frozen, batch))
    assert ("remat" in program or "checkpoint[" in program) == (remat != "none")
    assert ("policy=None" in program) == (remat in ("null", "full"))


def test_runs_that_differ_in_rates_and_seed_share_a_program_and_no_others(prepared, assets):
    programs, moved = {}, []
    changes = ({}, {"train__learning_rate": 0.5, "train__item_learning_rate": 0.25}, {"train__seed": 7})
    for change in changes:
        run = build(configured(prepared, **CHEAP, **change), assets, None, programs)
        before = jax.tree.map(np.asarray, run.params)
        batch, control = next(run.batches), run.control(0, 0, False, 0)
        after, *_ = run.step(run.params, run.opt_state, run.frozen, batch, control)
        # Of Adam's first step the largest entry is the rate itself, a third of the highest while it warms up.
        far = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after, before)
        moved.append({leaf_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(far)})
    assert len(programs) == 1
    ((_, step),) = programs.values()
    assert step._cache_size() == 1
    rates = configured(prepared).train
    kernel, rows = next(path for path in moved[0] if path.endswith("kernel")), "item_embedding/embedding"
    assert moved[0][rows] == pytest.approx(rates.item_learning_rate / 3, rel=1e-3)
    assert moved[1][rows] == pytest.approx(0.25 / 3, rel=1e-3)
    assert moved[1][kernel] > 10 * moved[0][kernel] > 0
    build(configured(prepared, **CHEAP, train__schedule="constant"), assets, None, programs)
    build(configured(prepared, **CHEAP, train__dropout=0.5), assets, None, programs)
    assert len(programs) == 3


def test_the_state_lies_where_the_parameters_do_and_stays_there(prepared, assets):
    config = configured(prepared, **CHEAP, train__clip=1.0)
    run = build(config, assets, None)
    places = jax.tree.map(lambda x: x.sharding, (run.params, run.opt_state))
    params, state, told = run.step(
        run.params, run.opt_state, run.frozen, next(run.batches), run.control(0, 0, False, 143)
    )
    assert jax.tree.map(lambda x: x.sharding, (params, state)) == places
    assert {place.mesh.axis_names for place in jax.tree.leaves(places)} == {("data", "fsdp", "tensor")}
    assert int(told["stop"]) == 143
    assert told["finite"].tolist() == [True, True]


def test_the_table_at_the_start_names_ranks_null_space_and_tokens(prepared, assets, base):
    config = configured(prepared)
    null_space = gj.NullSpace.load(prepared.root / "null_space")
    run = build(dataclasses.replace(config, train=dataclasses.replace(config.train, method="adamw")), assets, None)
    text = start_table(config, make_optimiser(config, 2, null_space), run.params, run.frozen, run.encoded, null_space)
    total = sum(x.size for x in jax.tree.leaves(nnx.state(assets.model, nnx.Param)))
    assert f"of {total:,}, 8 steps" in text
    assert "8 + 2 x 4" in text  # a quarter of 32
    assert "x AdamW's" in text
    assert "kept (of each layer)" in text
    rows = len(run.encoded["rec"])
    assert (
        f"rec: {rows:,} rows, {int(run.encoded['rec'].lengths().sum()):,} input and {2 * rows:,} label tokens" in text
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train__accumulate": 3}, "batch_size 8 must be divisible by train.accumulate 3"),
        ({"train__stochastic_rounding": True}, "model.dtype bfloat16 alone"),
        ({"train__metric": "eval/rec/ndcg", "train__eval_every": 2}, "did you mean 'eval/rec/ndcg@10'"),
        ({"train__clip": -1.0}, "train.clip must be a number above 0"),
        ({"mesh__tensor": 7}, "must divide the"),
        ({"train__profile": "[3, 2]"}, "train.profile is the first and the last"),
    ],
)
def test_options_that_cannot_be_are_named_and_leave_nothing(changed, message, prepared, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(prepared, run, **changed) == cli.EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
    assert not run.exists()


def test_clipping_shortens_what_reaches_the_method():
    config = dataclasses.replace(
        Config(), train=dataclasses.replace(Config().train, method="adamw", warmup=0, clip=0.5)
    )
    params = {"kernel": jnp.zeros((2, 2))}
    grads = {"kernel": jnp.stack([jnp.full((2, 2), 3.0), jnp.zeros((2, 2))])}
    tx = make_optimiser(config, 2, None)
    _, state = tx.update(grads, tx.init(params), params, task_losses=jnp.ones(2), task_counts=jnp.ones(2))
    moments = [leaf for _, mu in optax.tree.get_all_with_path(state, "mu") for leaf in jax.tree.leaves(mu)]
    moment = np.concatenate([np.ravel(leaf) for leaf in moments])
    # Adam's first moment after a step is a tenth of the gradient, here the mean of both tasks'.
    assert np.sqrt(np.sum(moment**2)) == pytest.approx(0.1 * 0.5 / 2, rel=1e-5)
