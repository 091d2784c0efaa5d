"""Rankers that are trained, through whole commands: measured beside a run, found again, and in a study's table.

Its seconds buy that a run's own model, items and folders reach these rankers.
"""

import json

import numpy as np
import pytest
from tiny import gems_jax, options, read

from gems_jax.neural_rankers import epochs
from gems_jax.study.config import StudyConfig
from gems_jax.study.shared import Shared

RANKERS = {
    "evaluate__baselines": "[popularity,sasrec,two-tower-trained]",
    "evaluate__sasrec__width": 8,
    "evaluate__sasrec__layers": 1,
    "evaluate__sasrec__epochs": 1,
    "evaluate__two_tower__epochs": 1,
}
RUN = {"train__method": "adamw", "train__steps": 1, "evaluate__rows": 8}


@pytest.fixture(scope="module")
def argv(prepared, tmp_path_factory):
    places = {"model__path": prepared.root / "base", "data__dir": prepared.root / "data"}
    return options(tmp_path_factory.mktemp("ranked"), **places, **RUN, **RANKERS)


def test_an_evaluation_and_its_repetition_show_the_same_and_train_once(argv, tmp_path, capsys, monkeypatch):
    assert gems_jax("train", *argv, "--workdir", tmp_path / "run") == 0
    found = []
    for time in ("first", "second"):
        if time == "second":
            monkeypatch.setattr(epochs, "tqdm", lambda *a, **k: pytest.fail("trained again"))
        assert gems_jax("evaluate", *argv, "--workdir", tmp_path / "run") == 0
        found.append(json.loads((tmp_path / "run" / "eval.json").read_text()))
    said = capsys.readouterr().out
    assert said.index("evaluate: SASRec is trained, at most ") < said.index("trained before on the same rows")
    for place in (None, "catalogue"):
        first, second = (whole["baselines"] if place is None else whole[place]["baselines"] for whole in found)
        assert first == second
        assert np.isfinite(first["SASRec"]["rec"]["hit@10"])
        assert np.isfinite(first["two-tower, trained"]["src"]["hit@10"])
        assert first["SASRec"]["rec"]["settings"]["width"] == 8
    assert sorted(path.name for path in (tmp_path / "run" / "baselines").iterdir()) == [
        "sasrec-rec",
        "two-tower-trained-src",
    ]


def test_a_study_measures_the_rankers_that_its_configuration_names(argv, tmp_path):
    config = read("train", *argv, "--workdir", "x")
    rankers = Shared(config, StudyConfig(), tmp_path).base["rankers"]
    assert list(rankers) == ["popularity", "popularity, same task", "SASRec", "two-tower, trained"]
    assert np.isfinite(rankers["SASRec"]["rec"]["ndcg@10"])
    assert (tmp_path / "baselines" / "sasrec-rec").is_dir()
