"""A study: which rows it runs, how processes share them, what it says of them, and a small one from end to end."""

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import gems_jax

from gems_jax import NullSpace, baselines, cli
from gems_jax.config.methods import METHODS
from gems_jax.config.own_rates import kernel_rate
from gems_jax.config.run import Config
from gems_jax.study import compare as comparing
from gems_jax.study import summary as summing
from gems_jax.study.claims import claim
from gems_jax.study.config import StudyConfig
from gems_jax.study.frontier import Point, area, best_within, frontier
from gems_jax.study.methods import MAIN, _null_space_path, changed, configured, study_methods
from gems_jax.study.spectra import captured
from gems_jax.study.stopping import Stopping
from gems_jax.study.trials import (
    Trial,
    affordable_rates,
    chosen_rates,
    forgetting_allowed,
    read_result,
    total_trials,
    wanted_trials,
    write_result,
)
from gems_jax.training.distributed.signals import EXIT_CODES
from gems_jax.training.optimiser import methods as building
from gems_jax.training.optimiser.chain import make_method
from gems_jax.training.optimiser.rates import peak_rates, scaled
from gems_jax.training.tune import Stopped


def forgot(forgetting):
    return {"forgetting": forgetting, "forgetting_base_vocabulary": forgetting / 2}


def scored(value):
    return {
        "valid": {"rec": {"ndcg@10": value}, "src": {"ndcg@10": value / 2}},
        "seconds": 1.0,
        "general": forgot(0.1),
    }


# --- which rows ---------------------------------------------------------------------------------------------------


def test_every_learning_rate_is_tried_once_and_the_chosen_one_with_the_other_seeds():
    study = StudyConfig(methods=("adamw", "cagrad"), seeds=3, rest_seeds=2, grid=(1e-3, 1e-2))
    results = {}
    while missing := [row for row in wanted_trials(study, results) if row not in results]:
        results[missing[0]] = scored(0.5 if missing[0].learning_rate == 1e-2 else 0.4)
    assert len(results) == total_trials(study) == 7
    assert [row for row in results if row.seed] == [
        Trial("adamw", 1e-2, 1), Trial("adamw", 1e-2, 2), Trial("cagrad", 1e-2, 1)
    ]  # fmt: skip
    # Main methods are finished before the others begin.
    assert [row.method for row in results] == ["adamw"] * 4 + ["cagrad"] * 3


def test_a_rate_is_chosen_when_the_grid_is_finished_and_diverged_runs_are_never_chosen():
    study = StudyConfig(methods=("gems",), grid=(1e-2, 1e-3, 1e-4))
    results = {Trial("gems", 1e-2, 0): {"diverged": "..."}, Trial("gems", 1e-3, 0): scored(0.3)}
    assert chosen_rates(study, results, "gems") is None
    results[Trial("gems", 1e-4, 0)] = scored(0.3)
    assert chosen_rates(study, results, "gems") == (1e-4, None)  # of two equal ones the smaller
    assert chosen_rates(study, {row: {"diverged": "..."} for row in results}, "gems") is None


def test_learning_rates_of_item_rows_are_tried_with_each_of_kernels():
    study = StudyConfig(methods=("gems",), seeds=2, grid=(1e-2, 1e-3), item_grid=(1e-1, 1e-2))
    results = {}
    while missing := [row for row in wanted_trials(study, results) if row not in results]:
        results[missing[0]] = scored(0.5 if missing[0].rates == (1e-3, 1e-1) else 0.4)
    assert len(results) == total_trials(study) == 5
    assert [row for row in results if row.seed] == [Trial("gems", 1e-3, 1, 1e-1)]
    assert len({row.folder(Path("study")) for row in results}) == 5
    made = configured(Config(), "gems", (1e-3, 1e-1), 0, width=8).train
    assert (made.learning_rate, made.item_learning_rate) == (1e-3, 1e-1)


def test_without_learning_rates_each_method_is_run_at_its_own_or_all_at_the_configurations():
    names = ("adamw", "lora", "galore", "gems-replay", "orbit-tighter", "lora-distill")
    study = StudyConfig(methods=names, main=("adamw",), seeds=2, rest_seeds=1, grid=())
    own = {Trial("adamw", 3e-4, 0), Trial("lora", 1e-3, 0), Trial("galore", 1e-3, 0), Trial("gems-replay", 3e-3, 0)}
    own |= {Trial("orbit-tighter", 3e-4, 0), Trial("lora-distill", 1e-3, 0)}
    assert set(wanted_trials(study, {})) == own
    assert total_trials(study) == 7
    assert chosen_rates(study, dict.fromkeys(own, scored(0.5)), "adamw") == (3e-4, None)
    assert {row.learning_rate for row in wanted_trials(study.with_rate(0.02), {})} == {0.02}
    assert StudyConfig(grid=(1e-3,)).with_rate(0.02).grid == (1e-3,)


def test_a_studys_methods_have_the_rates_of_the_runs_they_configure():
    spelled_as_gems = {"galore", "fira"}
    assert {study_methods()[name].own_rate for name in spelled_as_gems} == {METHODS["galore"].own_rate.value}
    for name in set(study_methods()) - spelled_as_gems:
        (rates,) = StudyConfig(grid=()).rates(name)
        train = configured(Config(), name, rates, 0, width=96).train
        assert train.learning_rate == kernel_rate(dataclasses.replace(train, learning_rate=None)), name


def finished(study, levels, changes):
    """A study run to its end: validation levels by method and learning rate, forgetting by method, rate and seed."""
    results = {}
    while missing := [row for row in wanted_trials(study, results) if row not in results]:
        row = missing[0]
        forgetting = changes[row.method].get(row.learning_rate, (9.0,) * 3)[row.seed]
        results[row] = scored(levels[row.method][row.learning_rate]) | {"general": forgot(forgetting)}
    return results


def test_a_budget_is_kept_by_the_mean_over_seeds_and_asks_for_the_next_best_where_it_is_not():
    study = StudyConfig(
        methods=("adamw", "gems", "cagrad"), main=("adamw", "gems"), seeds=3, rest_seeds=2,
        grid=(1e-4, 1e-3, 1e-2, 1e-1), budget=0.5,
    )  # fmt: skip
    levels = {
        "adamw": {1e-4: 0.1, 1e-3: 0.2, 1e-2: 0.3, 1e-1: 0.1},
        "gems": {1e-4: 0.1, 1e-3: 0.2, 1e-2: 0.3, 1e-1: 0.4},
        "cagrad": dict.fromkeys((1e-4, 1e-3, 1e-2, 1e-1), 0.5),
    }
    changes = {
        "adamw": {1e-2: (6.0, 2.0, 4.0)},
        "gems": {1e-4: (0.1,) * 3, 1e-3: (1.0, 1.5, 2.0), 1e-2: (1.0, 3.0, 3.0), 1e-1: (9.0,) * 3},
        "cagrad": {},
    }
    results = finished(study, levels, changes)
    assert forgetting_allowed(study, results) == pytest.approx(0.5 * (6 + 2 + 4) / 3)
    assert chosen_rates(study, results, "gems") == (1e-1, None)
    assert affordable_rates(study, results, "gems") == (1e-3, None)
    # Of the better one the first seed alone is within the budget: its other seeds say so, and are kept.
    assert {row.learning_rate for row in results if row.method == "gems" and row.seed} == {1e-1, 1e-2, 1e-3}
    assert affordable_rates(study, results, "cagrad") is None  # nothing is within it
    assert affordable_rates(study, results, "adamw") is None  # the reference has what it has
    assert len(results) == total_trials(study, results) == 3 * 4 + 2 + 3 * 2 + 1
    assert affordable_rates(study, {}, "gems") is None


def test_a_budget_that_the_best_keeps_asks_for_nothing_more():
    study = StudyConfig(methods=("adamw", "gems"), seeds=2, grid=(1e-3, 1e-2), budget=0.5)
    levels = dict.fromkeys(("adamw", "gems"), {1e-3: 0.1, 1e-2: 0.2})
    results = finished(study, levels, {"adamw": {}, "gems": {1e-2: (1.0, 2.0)}})
    assert affordable_rates(study, results, "gems") == chosen_rates(study, results, "gems") == (1e-2, None)
    assert len(results) == total_trials(study, results) == total_trials(study)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ("gem",)}, "no method 'gem'; choose among adamw"),
        ({"seeds": 0}, "study.seeds must be a whole number from 1 on"),
        ({"grid": (1e-3, 1e-3)}, "different learning rates"),
        ({"item_grid": (1e-3, 0.0)}, "study.item_grid must be a list, each a number above 0"),
        ({"valid_rows": -1}, "study.valid_rows"),
        ({"reference": "gem"}, "no method 'gem'; choose among adamw"),
        ({"budget": 0.0}, "study.budget must be a number above 0, or null, got 0.0"),
        ({"budget": 0.2, "methods": ("gems",)}, "study.budget is a share of what 'adamw' forgets: study.methods must"),
    ],
)
def test_a_study_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        StudyConfig(**given)


# --- methods ------------------------------------------------------------------------------------------------------

PARAMS = {"block": {"kernel": jnp.ones((8, 6))}, "item_embedding": {"embedding": jnp.ones((5, 8))}}


def gradients():
    keys = jax.random.split(jax.random.key(3), 2)
    shapes = [leaf.shape for leaf in jax.tree.leaves(PARAMS)]
    leaves = [jax.random.normal(key, (2, *shape)) for key, shape in zip(keys, shapes, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(PARAMS), leaves)


def first_update(config):
    moments = {"block/kernel": np.diag(np.arange(1.0, 9 if config.null_space.side == "in" else 7))}
    ns = NullSpace.from_moments(moments, rank=2, side=config.null_space.side)
    if METHODS[config.train.method].null_space == "weights":
        ns = NullSpace.from_weights(PARAMS, rank=2)
    tx = make_method(config, 2, ns)

    @jax.jit
    def update(grads):
        about = {"task_losses": jnp.array([2.0, 1.0]), "task_counts": jnp.array([3.0, 1.0])}
        updates = tx.update(grads, tx.init(PARAMS), PARAMS, **about)[0]
        if METHODS[config.train.method].own_rates:
            return updates
        return scaled(updates, jnp.asarray(peak_rates(config.train)))

    return update(gradients())


MERGING = ("pcgrad", "cagrad", "nash-mtl", "uncertainty", "mgda", "dwa", "imtl-g", "aligned-mtl", "upgrad")


@pytest.fixture(scope="module")
def first_updates():
    """By method; without those whose first step by Adam is the sign of a merged gradient, which several share."""
    config = changed(Config(), {"gems.rank": 2, "train.warmup": 0, "train.item_learning_rate": 1e-2})
    config = changed(config, {"orbit.max_distance": 1e-3})  # else its first update is AdamW's
    return {
        name: first_update(configured(config, name, (1e-3, None), 0, width=8))
        for name, method in study_methods().items()
        if name not in (*MERGING, "lora") and not method.strength_of
    }


def test_every_method_gives_an_update_of_its_own(first_updates):
    kernels = {name: np.asarray(updates["block"]["kernel"]) for name, updates in first_updates.items()}
    assert all(np.isfinite(kernel).all() and np.abs(kernel).max() > 0 for kernel in kernels.values())
    # With one step behind them these have nothing to align to, nor gates that have learned.
    same_at_first = {"gems-aligned", "gems-learned-gates", "gems-constant-gates"}
    same_at_first |= {"gems-energy-alone"}  # differs in how the null space is made, which is given here
    # These are another method with one more task, which is not in the gradients here.
    same_at_first |= {name for name, method in study_methods().items() if "train.text_task" in method.changes}
    names = [name for name in kernels if name not in same_at_first]
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            assert not np.allclose(kernels[name], kernels[other], atol=1e-7), (name, other)


def test_orbit_holds_kernels_to_the_pretrained_ones_and_leaves_item_rows_alone(first_updates):
    ours, free = first_updates["orbit"], first_updates["adamw"]
    kernel, whole = (np.asarray(updates["block"]["kernel"]) for updates in (ours, free))
    assert np.linalg.norm(whole) > 2e-3
    np.testing.assert_allclose(kernel, 1e-3 * whole / np.linalg.norm(whole), rtol=1e-4)
    np.testing.assert_allclose(ours["item_embedding"]["embedding"], free["item_embedding"]["embedding"], rtol=1e-5)


@pytest.mark.parametrize("name", MERGING)
def test_a_merging_method_gives_adamw_its_merged_gradient(name, monkeypatch):
    monkeypatch.setattr(building, "adamw", lambda config: optax.identity())  # whose first step is a sign alone
    ours = make_method(changed(Config(), {"train.method": name}), 2, None)
    theirs = getattr(baselines, name.replace("-", "_"))(optax.scale(-1.0), num_tasks=2)

    @jax.jit
    def updates(grads):
        return [
            tx.update(grads, tx.init(PARAMS), PARAMS, task_losses=jnp.array([2.0, 1.0]))[0] for tx in (ours, theirs)
        ]

    found, expected = updates(gradients())
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_merged_gradients_go_to_adamw_with_item_rows_at_their_own_rate():
    config = changed(Config(), {"train.method": "pcgrad", "train.learning_rate": 1e-3})
    config = changed(config, {"train.warmup": 0, "train.item_learning_rate": 1e-2})
    found, tx = first_update(config), baselines.pcgrad(optax.adam(1e-3), num_tasks=2)
    expected = jax.jit(lambda grads: tx.update(grads, tx.init(PARAMS), PARAMS)[0])(gradients())
    np.testing.assert_allclose(found["block"]["kernel"], expected["block"]["kernel"], rtol=2e-3)
    items = found["item_embedding"]["embedding"]
    np.testing.assert_allclose(items, 10 * expected["item_embedding"]["embedding"], rtol=2e-3)


def test_the_released_optimiser_needs_a_whole_rank():
    config = changed(Config(), {"train.method": "released"})
    with pytest.raises(ValueError, match="whole number as gems.rank, got 0.25"):
        make_method(config, 2, None)


def test_galore_is_gems_with_one_subspace_of_the_joint_gradient(first_updates):
    """``dW = -lr P Adam(P^T G)`` with singular vectors of the joint gradient, in numpy; Adam's first step is a sign."""
    config = changed(Config(), {"gems.rank": 2, "train.warmup": 0})
    grad = np.asarray(gradients()["block"]["kernel"], np.float64)
    joint = 0.75 * grad[0] + 0.25 * grad[1]
    left, right = np.linalg.svd(joint)[0][:, :2], np.linalg.svd(joint)[2][:2].T
    updates = first_update(changed(config, {"train.method": "galore", "train.learning_rate": 1e-3}))["block"]["kernel"]
    expected = [-1e-3 * left @ np.sign(left.T @ joint), -1e-3 * np.sign(joint @ right) @ right.T]
    assert min(np.abs(updates - one).max() for one in expected) < 1e-6
    np.testing.assert_array_equal(updates, first_updates["galore"]["block"]["kernel"])  # a study spells it out


def test_variants_change_nothing_but_their_own_fields():
    config = Config()
    assert set(MAIN) <= set(study_methods())
    for name, method in study_methods().items():
        made = configured(config, name, (0.5, None), config.train.seed, width=96)
        back = {
            key: _value(config, key) for key in [*method.changes, "train.learning_rate", "gems.rank", "null_space.path"]
        }
        assert changed(made, back).__dict__ | {"name": config.name} == config.__dict__


def _value(config, dotted):
    section, _, field = dotted.partition(".")
    return getattr(getattr(config, section), field)


# --- sharing rows among processes, stopping -----------------------------------------------------------------------


class NoAssets:
    def __init__(self, *_):
        self.width = 8


@pytest.fixture
def quick_rows(monkeypatch):
    """Rows that take no time; what was run, in order."""
    ran = []

    def run_trial(config, row, shared, workdir, spectra):
        ran.append(row)
        time.sleep(0.01)
        write_result(workdir, row, scored(row.learning_rate))
        return scored(row.learning_rate)

    monkeypatch.setattr(comparing, "run_trial", run_trial)
    monkeypatch.setattr(comparing, "Shared", NoAssets)
    monkeypatch.setattr(comparing, "WAIT", 0.01)
    return ran


SMALL = StudyConfig(methods=("adamw", "gems"), seeds=3, grid=(1e-3, 1e-2))


def test_two_processes_share_the_rows_and_run_each_once(tmp_path, quick_rows):
    workers = [threading.Thread(target=comparing.compare, args=(Config(), SMALL, tmp_path, "")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(quick_rows) == len(set(quick_rows)) == total_trials(SMALL)
    assert json.loads((tmp_path / "study.json").read_text())["study"]["finished"] == total_trials(SMALL)


def test_a_process_takes_on_one_method_after_another_the_main_ones_first(tmp_path, quick_rows):
    study = StudyConfig(methods=("cagrad", "adamw", "gems"), seeds=2, rest_seeds=1, grid=(1e-3, 1e-2))
    comparing.compare(Config(), study, tmp_path, "")
    assert [row.method for row in quick_rows] == ["adamw"] * 3 + ["gems"] * 3 + ["cagrad"] * 2


def test_processes_leave_each_other_their_methods(tmp_path, quick_rows):
    with claim(tmp_path / "claims" / "methods" / "adamw"):
        comparing.compare(Config(), SMALL, tmp_path, "")
    # Gems first, then help with what is left.
    assert [row.method for row in quick_rows] == ["gems"] * 4 + ["adamw"] * 4


def test_a_row_of_a_process_that_died_is_taken_over(tmp_path, quick_rows):
    held = tmp_path / "claims" / "adamw-0.001-0"
    held.mkdir(parents=True)
    with claim(tmp_path / "mine") as mine:
        assert mine
        holder = json.loads((tmp_path / "mine" / "lock.json").read_text())
    (held / "lock.json").write_text(json.dumps(holder | {"pid": 2**22 + 1}))
    comparing.compare(Config(), SMALL, tmp_path, "")
    assert len(quick_rows) == total_trials(SMALL)


def test_a_stopped_study_exits_with_143_and_goes_on(tmp_path, quick_rows, monkeypatch, capsys):
    whole = comparing.run_trial

    def stopped(config, row, shared, workdir, spectra):
        if len(quick_rows) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return whole(config, row, shared, workdir, spectra)

    monkeypatch.setattr(comparing, "run_trial", stopped)
    words = ["compare", "--workdir", tmp_path, "--study.methods", "[adamw,gems]", "--study.grid", "[0.001,0.01]",
             "--study.seeds", "3"]  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    assert gems_jax(*words) == EXIT_CODES[signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before
    assert "run again to go on" in capsys.readouterr().err
    monkeypatch.setattr(comparing, "run_trial", whole)
    assert gems_jax(*words) == 0
    assert len(quick_rows) == len(set(quick_rows)) == total_trials(SMALL)


def test_ctrl_c_stops_with_its_own_code():
    def told():
        with Stopping():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(Stopped) as stop:
        told()
    assert stop.value.code == cli.EXIT_INTERRUPTED


def test_other_settings_on_the_same_work_directory_are_refused(tmp_path, quick_rows):
    comparing.compare(Config(), SMALL, tmp_path, "")
    with pytest.raises(ValueError, match="other settings .train.steps: 500 there, 7 now."):
        comparing.compare(changed(Config(), {"train.steps": 7}), SMALL, tmp_path, "")
    more = StudyConfig(methods=("adamw", "gems", "lora"), seeds=4, grid=(1e-3, 1e-2))
    comparing.compare(changed(Config(), {"train.seed": 5}), more, tmp_path, "")  # a study may grow
    with pytest.raises(ValueError, match="other settings .train.item_learning_rate"):
        comparing.compare(changed(Config(), {"train.item_learning_rate": 0.5}), more, tmp_path, "")
    assert len(quick_rows) == len(set(quick_rows)) == total_trials(more)


def test_a_damaged_result_is_named(tmp_path):
    row = Trial("gems", 1e-3, 0)
    assert read_result(tmp_path, row) is None
    row.folder(tmp_path).mkdir(parents=True)
    (row.folder(tmp_path) / "result.json").write_text("{")
    with pytest.raises(ValueError, match="result.json is damaged: remove it"):
        read_result(tmp_path, row)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_corrected_p_values_are_holm_s():
    p = np.array([0.3, 0.001, 0.02, 0.02, 0.9])
    # By definition: the k-th smallest times (m - k + 1), never below the one before.
    order = np.argsort(p, kind="stable")
    expected = np.empty(5)
    expected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(5, 0, -1)))
    np.testing.assert_allclose(summing.holm(p.tolist()), expected)


def test_times_of_a_method_are_those_of_where_most_of_its_runs_were(tmp_path):
    study = StudyConfig(methods=("gems",), main=("gems",), seeds=3, grid=(1e-3,))
    where = [("1 x fast card", 10.0, 0.1), ("1 x cpu", 900.0, 0.2), ("1 x fast card", 20.0, 0.6)]
    results = {
        Trial("gems", 1e-3, seed): scored(0.3)
        | {
            "test": {},
            "seconds": seconds,
            "general": forgot(forgetting),
            "circumstances": {"device": device},
        }
        for seed, (device, seconds, forgetting) in enumerate(where)
    }
    (tmp_path / "base.json").write_text("{}")
    method = summing.summarise_study(Config(), study, results, tmp_path, "")["methods"][0]
    numbers = method["numbers"]
    assert numbers["seconds"]["mean"] == 15.0
    assert method["timed_on"] == "1 x fast card"
    assert numbers["general/forgetting"]["mean"] == pytest.approx(0.3)


def test_what_is_within_the_budget_is_summed_up_and_tested_on_its_own(tmp_path):
    """Two seeds of the reference, of the best learning rate and of the best within the budget."""
    study = StudyConfig(methods=("adamw", "gems"), seeds=2, grid=(1e-3, 1e-2), budget=0.25)
    levels = {"adamw": {1e-3: 0.3, 1e-2: 0.2}, "gems": {1e-3: 0.3, 1e-2: 0.4}}
    results = finished(study, levels, {"adamw": {1e-3: (8.0, 8.0)}, "gems": {1e-2: (4.0, 4.0), 1e-3: (1.0, 2.0)}})
    ranks = {("adamw", 1e-3): 5, ("gems", 1e-2): 1, ("gems", 1e-3): 2}
    for row, found in results.items():
        rank = ranks.get((row.method, row.learning_rate), 9)
        found["test"] = {"rec": {"ndcg@10": 1 / np.log2(1 + rank), "hit@10": 1.0}}
        row.folder(tmp_path).mkdir(parents=True)
        items = np.tile(np.arange(10, dtype=np.int32), (50, 1))
        np.savez(
            row.folder(tmp_path) / "ranking_rec.npz", user_ids=np.arange(50), items=items,
            target=np.full(50, rank - 1, np.int32), rank=np.full(50, rank, np.int32),
        )  # fmt: skip
    summary = summing.summarise_study(Config(), study, results, tmp_path, "")
    ours = summary["methods"][1]
    assert (ours["learning_rate"], ours["within_budget"]["learning_rate"]) == (1e-2, 1e-3)
    assert summary["study"]["forgetting_allowed"] == pytest.approx(2.0)
    assert ours["within_budget"]["seeds"] == [0, 1]
    assert ours["within_budget"]["numbers"]["general/forgetting"]["mean"] == pytest.approx(1.5)
    for entry, rank in ((ours, 1), (ours["within_budget"], 2)):
        difference = 1 / np.log2(1 + rank) - 1 / np.log2(1 + 5)
        assert entry["against"]["rec/ndcg@10"]["difference"] == pytest.approx(difference)
    assert "within_budget" not in summary["methods"][0]
    assert summary["circumstances"][0]["rows"] == 6


def test_another_method_may_be_what_others_are_compared_with(tmp_path):
    study = StudyConfig(methods=("adamw", "gems"), seeds=1, grid=(1e-3,), reference="gems")
    results = {Trial("adamw", 1e-3, 0): scored(0.2), Trial("gems", 1e-3, 0): scored(0.3)}
    for row, found in results.items():
        found["test"] = {"rec": {"ndcg@10": 1.0, "hit@10": 1.0}}
        row.folder(tmp_path).mkdir(parents=True)
        np.savez(
            row.folder(tmp_path) / "ranking_rec.npz", user_ids=np.arange(4), target=np.zeros(4, np.int32),
            items=np.tile(np.arange(10, dtype=np.int32), (4, 1)), rank=np.ones(4, np.int32),
        )  # fmt: skip
    found = {m["name"]: m for m in summing.summarise_study(Config(), study, results, tmp_path, "")["methods"]}
    assert "against" in found["adamw"]
    assert "against" not in found["gems"]


def test_captured_energy_is_that_of_the_best_low_rank_approximation():
    matrix = np.random.default_rng(0).normal(size=(6, 4))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    for k in (1, 2, 3):
        left = matrix - u[:, :k] * s[:k] @ vt[:k]
        share = 1 - np.sum(left**2) / np.sum(matrix**2)
        assert captured(matrix, (k / 4,))[0] == pytest.approx(share)


# --- ranking for forgetting ---------------------------------------------------------------------------------------


def test_a_frontier_runs_the_grid_of_every_strength_with_one_seed():
    plain = StudyConfig(methods=("adamw", "gems"), seeds=2, grid=(1e-3, 1e-2))
    assert StudyConfig(methods=(), grid=(1e-3,)).names() == tuple(
        name for name in StudyConfig(methods=(), grid=(1e-3,)).names() if not study_methods()[name].strength_of
    )
    study = dataclasses.replace(plain, frontier=True)
    assert set(study.names()) - set(plain.names()) == {"gems-looser", "gems-tighter"}
    results = {}
    while missing := [row for row in wanted_trials(study, results) if row not in results]:
        results[missing[0]] = scored(0.5)
    assert len(results) == total_trials(study, results) == 4 * 2 + 2
    assert {row.method for row in results if row.seed} == {"adamw", "gems"}
    looser, tighter = (configured(Config(), f"gems-{one}", (1e-3, None), 0, 8) for one in ("looser", "tighter"))
    assert looser.null_space.min_share < Config().null_space.min_share < tighter.null_space.min_share
    assert looser.null_space.path != tighter.null_space.path


def test_a_rule_of_nought_has_a_null_space_of_its_own():
    of_zero = changed(Config(), {"null_space.min_share": 0.0})
    assert _null_space_path(Config(), of_zero) != _null_space_path(
        Config(), changed(Config(), {"null_space.min_share": None})
    )


@given(
    st.lists(st.tuples(st.sampled_from(np.linspace(-0.5, 3, 8).tolist()), st.sampled_from([0.1, 0.2, 0.3])), max_size=9)
)
def test_the_best_within_a_limit_and_the_area_are_those_of_all_runs(runs):
    points = [Point(forgetting, level, {}) for forgetting, level in runs]
    limits = np.linspace(0, 1, 401)
    best = [max((level for forgetting, level in runs if forgetting <= limit), default=0.0) for limit in limits]
    found = [best_within(points, limit) for limit in limits]
    assert [0.0 if point is None else point.level for point in found] == best
    assert area(points) == pytest.approx(np.mean(best[:-1]), abs=0.002)
    kept = frontier(points)
    assert all(a.forgetting < b.forgetting and a.level < b.level for a, b in zip(kept, kept[1:], strict=False))
