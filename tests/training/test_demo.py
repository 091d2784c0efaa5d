"""The demo's three runs, tiny: each is made from the base model, and what is finished is not done again.

Half a minute, so that the first command of the README cannot break unseen.
"""

import json

from few_kernels import few_kernels
from tiny import gems_jax, options

RUNS = ("joint_adamw", "gems_without_null_space", "gems")


def test_the_demo_tunes_three_models_and_ends_in_a_report_that_compares_them(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    command = ["demo", *options(prepared.root, train__steps=1, text__eval_batches=1), "--workdir", tmp_path / "gems"]
    with few_kernels():
        assert gems_jax(*command) == 0
    results = [json.loads((tmp_path / run / "eval.json").read_text()) for run in RUNS]
    assert [result["name"] for result in results] == ["joint AdamW", "GEMS without null space", "GEMS"]
    assert len({result["general"]["base_loss"] for result in results}) == 1
    page = (tmp_path / "gems" / "report.html").read_text()
    assert all(result["name"] in page for result in results)
    capsys.readouterr()
    assert gems_jax(*command) == 0
    assert capsys.readouterr().out.count("is done already") == 3
