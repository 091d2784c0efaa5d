"""The demo's three runs, tiny: each is made from the base model, and what is finished is not done again.

Half a minute, so that the first command of the README cannot break unseen.
"""

import json

import yaml
from few_kernels import few_kernels
from tiny import gems_jax, options

from gems_jax.commands import demo

RUNS = ("joint_adamw", "gems_without_null_space", "gems")


def test_the_demo_tunes_three_models_and_ends_in_a_report_that_compares_them(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    command = [
        "demo",
        *options(prepared.root, train__steps=1, text__eval_batches=1, evaluate__facts=True),
        "--workdir",
        tmp_path / "gems",
    ]
    with few_kernels():
        assert gems_jax(*command) == 0
    results = [json.loads((tmp_path / run / "eval.json").read_text()) for run in RUNS]
    assert [result["name"] for result in results] == ["joint AdamW", "GEMS without null space", "GEMS"]
    assert len({result["general"]["base_loss"] for result in results}) == 1
    page = (tmp_path / "gems" / "report.html").read_text()
    assert all(result["name"] in page for result in results)
    assert "Facts: the base model is sure of 0 answers to 341 prompts, too few to say what is kept (20)." in page
    assert {result["general"]["facts_asked"] for result in results} == {341}
    kept = [yaml.safe_load((tmp_path / run / "config.yaml").read_text())["train"] for run in RUNS]
    assert [train["learning_rate"] for train in kept] == [3e-3] * 3  # as docs/demo.md says
    capsys.readouterr()
    assert gems_jax(*command) == 0
    said = capsys.readouterr().out
    assert said.count("is done already") == 3
    ask = f"gems-jax serve --workdir {tmp_path / 'gems'}, and open http://127.0.0.1:8080"
    assert said.splitlines()[-2] == f"ask it in a browser: {ask}"


def test_the_page_is_named_by_the_commands_that_open_it_from_where_the_demo_was_called(monkeypatch):
    monkeypatch.setattr(demo.sys, "argv", [".venv/bin/gems-jax", "demo"])
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert demo._how_to_ask("runs/demo/gems") == (
        "ask it in a browser: .venv/bin/pip install '.[train,serve]', then .venv/bin/gems-jax serve --workdir "
        "runs/demo/gems, and open http://127.0.0.1:8080"
    )
