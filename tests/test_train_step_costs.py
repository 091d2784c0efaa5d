"""The measurement of a training step: every method takes its steps, and each peer does what it is said to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import gems_jax as gj
from benchmarks.train_step.methods import REFERENCE, missing, run_of
from benchmarks.train_step.problem import Problem
from benchmarks.train_step.table import table
from benchmarks.train_step.torch_released import LowRankAdam
from benchmarks.train_step.turns import in_turns, summary


def test_methods_are_timed_in_turns():
    problem, names = Problem("tiny"), (REFERENCE, "GEMS, full gradients")
    runs = {name: run_of(name, problem) for name in names}
    for run in runs.values():
        run.begin()
    rows = summary(in_turns(runs, rounds=2, refreshes=1))
    assert [rows[name]["cpu"]["refresh"] is not None for name in names] == [False, True]
    assert rows[REFERENCE]["cpu"]["times_reference"] == {"median": 1.0, "10_to_90_percent": [1.0, 1.0]}
    printed = table({name: {"seconds": row} for name, row in rows.items()} | {"another": {"missing": "not here"}})
    assert "| GEMS, full gradients |" in printed
    assert "| another | not here | - |" in printed

    gems = runs[names[1]]
    refreshed = []
    for due in (False, True):
        if due:
            gems.make_refresh_due()
        gems.step()
        refreshed.append(int(gj.diagnostics(gems._state)["refreshed"]))
    assert refreshed[0] == 0 < refreshed[1]


def test_the_released_step_in_pytorch_is_that_of_the_preset():
    rng = np.random.default_rng(0)
    shapes = {"square": (4, 4), "tall": (6, 4), "wide": (4, 6)}
    params = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    kernels = [torch.tensor(np.asarray(kernel).T.copy()) for kernel in params.values()]
    low_rank = LowRankAdam(kernels, [3, 1, 1], 0.1)
    tx = gj.presets.released(
        0.1, num_tasks=2, rank=3, gate=gj.gates.constant([0.25, 0.75]), matrix_dims=lambda *_: gj.MatrixDims(0, 1)
    )
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(3):
        # The joint gradient is a third one, as that of a pass of its own.
        grads = {path: rng.normal(size=(3, *shape)).astype(np.float32) for path, shape in shapes.items()}
        tasks, joint = ({path: g[part] for path, g in grads.items()} for part in (slice(1, None), 0))
        updates, state = update(tasks, state, params, shared_grads=joint)
        params = jax.tree.map(jnp.add, params, updates)
        branches = [[torch.tensor(g[branch].T.copy()) for g in grads.values()] for branch in range(3)]
        low_rank.step(branches, torch.tensor([0.25, 0.75]))
    for kernel, expected in zip(kernels, params.values(), strict=True):
        np.testing.assert_allclose(kernel.numpy().T, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "lacking"), [("AdamW (PyTorch)", "torch"), ("as released (PyTorch)", "transformers")])
def test_a_method_whose_packages_are_not_installed_is_said_to_be_missing(name, lacking, monkeypatch):
    assert missing(name) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None if package == lacking else package)
    assert missing(name) == f"not available: {lacking} is not installed"
