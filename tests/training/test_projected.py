"""Runs whose gradients are projected: they learn as with whole ones, and go on after a stop to the same bits."""

import shutil

import numpy as np
import pytest
from few_kernels import few_kernels
from same_run import assert_same_run
from tiny import gems_jax, metrics, options

from gems_jax import cli
from gems_jax.config.gradients import LEAST_PARAMETERS, is_projected, why_whole
from gems_jax.config.optimiser import GemsConfig
from gems_jax.config.train import TrainConfig

STEPS = 5


@pytest.fixture
def two_kernels():
    with few_kernels(r"encoder/block/(attention/q|mlp/wo)"):
        yield


def train(prepared, workdir, **changed):
    cheap = {"train__steps": STEPS, "train__checkpoint_every": 2, "train__keep_checkpoints": 5, "gems__rank": 4}
    cheap |= {"gems__decomposition": "subspace", "train__clip": 0.5}
    return gems_jax("train", *options(prepared.root, **cheap | changed), "--workdir", workdir)


@pytest.mark.slow
def test_a_run_learns_as_on_whole_gradients_and_goes_on_after_a_stop(prepared, two_kernels, tmp_path, capsys):
    """Half a minute, for three runs, since a run is what learns and is resumed."""
    whole, projected, resumed = (tmp_path / name for name in ("whole", "projected", "resumed"))
    assert train(prepared, whole, train__gradients="full") == 0
    assert "gradients: full" in capsys.readouterr().out
    assert train(prepared, projected, train__gradients="projected") == 0
    assert "gradients: projected" in capsys.readouterr().out
    series = [[[line["loss/rec"], line["loss/src"]] for line in metrics(run)] for run in (projected, whole)]
    np.testing.assert_allclose(*series, rtol=2e-3)
    assert max(line["null_space/leak"] for line in metrics(projected) if "null_space/leak" in line) < 1e-5
    shutil.copytree(projected, resumed)
    for step in (4, 5):
        shutil.rmtree(resumed / "checkpoints" / str(step))
    assert train(prepared, resumed, train__gradients="projected") == 0
    assert_same_run(resumed, projected, STEPS)


@pytest.mark.slow
def test_an_update_in_parts_is_that_of_accumulated_whole_gradients(prepared, two_kernels, tmp_path):
    whole, projected = tmp_path / "whole", tmp_path / "projected"
    assert train(prepared, whole, train__gradients="full", train__accumulate=2) == 0
    assert train(prepared, projected, train__gradients="projected", train__accumulate=2) == 0
    series = [[[line["loss/rec"], line["loss/src"]] for line in metrics(run)] for run in (projected, whole)]
    np.testing.assert_allclose(*series, rtol=2e-3)
    assert max(line["null_space/leak"] for line in metrics(projected) if "null_space/leak" in line) < 1e-5


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"train__method": "adamw"}, "train.method adamw takes whole gradients"),
        ({"gems__decomposition": "eigh"}, "gems.decomposition eigh is of whole gradients"),
        ({"gems__stagger": True}, "gems.stagger decomposes whole gradients"),
        ({"gems__gate": "learned"}, "gems.gate learned scores each task's update"),
        ({"gems__constraint": "gradient"}, "gems.constraint gradient projects whole gradients"),
        ({"gems__recovery": "fira"}, "gems.recovery fira adds what of whole gradients lies outside the bases"),
    ],
)
def test_options_that_need_whole_gradients_are_refused(changed, why, prepared, tmp_path, capsys):
    assert train(prepared, tmp_path / "run", train__gradients="projected", **changed) == cli.EXIT_BAD_INPUT
    assert f"train.gradients projected cannot be: {why}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_gradients_are_projected_by_themselves_for_large_kernels_on_one_device():
    train, gems = TrainConfig(), GemsConfig()
    assert is_projected(train, gems, LEAST_PARAMETERS, devices=1)
    assert not is_projected(train, gems, LEAST_PARAMETERS - 1, devices=1)
    assert not is_projected(train, gems, LEAST_PARAMETERS, devices=8)
    assert not is_projected(TrainConfig(accumulate=2), gems, LEAST_PARAMETERS, devices=1)
    assert not is_projected(train, GemsConfig(recovery="fira"), LEAST_PARAMETERS, devices=1)
    assert not is_projected(TrainConfig(gradients="full"), gems, LEAST_PARAMETERS, devices=1)
    assert is_projected(TrainConfig(gradients="projected"), gems, 1, devices=8)
    assert why_whole(TrainConfig(method="galore"), GemsConfig(gate="learned")) is None
