"""Adapters as a method of the same loop: kernels stay, adapters train, what is exported holds both."""

import json
import shutil

import numpy as np
import pytest
from tiny import gems_jax, metrics, options

from gems_jax.models import load
from gems_jax.models.params import params_of

LORA = {"train__method": "lora", "train__steps": 6, "train__warmup": 0, "lora__rank": 2, "train__learning_rate": 0.03}


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        assert gems_jax("train", *options(prepared.root, **LORA), "--workdir", workdir) == 0
    return workdir


def test_the_exported_kernels_are_the_base_models_plus_products_of_the_adapters_rank(prepared, run, tmp_path):
    out = tmp_path / "exported"
    assert gems_jax("export", *options(prepared.root, **LORA), "--workdir", run, "--out", out) == 0
    base, tuned = (params_of(load(folder)[0]) for folder in (prepared.root / "base", out))
    kernels = [path for path in base if path.endswith("kernel")]
    assert len(kernels) > 10
    for path in kernels:
        for change in np.asarray(tuned[path] - base[path], float):
            values = np.linalg.svd(change, compute_uv=False)
            assert values[1] > 1e-5, path  # it has moved
            assert values[2] < 1e-5 * max(1.0, values[0]), path  # in two directions
    for path in set(base) - set(kernels):
        np.testing.assert_array_equal(tuned[path], base[path], err_msg=path)


def test_a_run_with_adapters_learns_stops_and_goes_on(prepared, run, tmp_path):
    first = [line["loss/rec"] for line in metrics(run) if "loss/rec" in line]
    assert first[-1] < first[0]
    again, changed = tmp_path / "run", LORA | {"train__checkpoint_every": 3}
    assert gems_jax("train", *options(prepared.root, **changed), "--workdir", again) == 0
    shutil.rmtree(again / "checkpoints" / "6")
    assert gems_jax("train", *options(prepared.root, **changed), "--workdir", again) == 0
    lines = [(line["step"], line["loss/rec"]) for line in metrics(again) if "loss/rec" in line]
    assert dict(lines) == dict(zip(range(1, 7), first, strict=True))


def test_a_rank_above_the_kernels_is_refused_by_name(prepared, tmp_path, capsys):
    argv = options(prepared.root, **LORA | {"lora__rank": 4000})
    assert gems_jax("train", *argv, "--workdir", tmp_path / "run") == 2
    assert "rank=4000 does not suit" in capsys.readouterr().err


def test_evaluation_uses_the_adapted_model(prepared, run):
    assert gems_jax("evaluate", *options(prepared.root, **LORA), "--workdir", run) == 0
    found = json.loads((run / "eval.json").read_text())
    assert found["method"] == "lora"
    assert found["general"]["loss"] != found["general"]["base_loss"]
