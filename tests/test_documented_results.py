"""The commands of the page of results, run in their order as they stand: two steps on ten items.

Half a minute: they alone begin with files of published data and end in a report on two runs. Those of the other studies
differ from them by their options.
"""

import json
import pydoc_data.topics
from pathlib import Path

import pytest
import yaml
from documented import commands
from few_kernels import few_kernels
from named_code import ROOT
from tiny import MODEL, TUNING, gems_jax, write_raw

CONFIG = "configs/amazon_scientific.yaml"
SMALLER = {
    "train.steps": 2,
    "train.batch_size": 4,
    "items.length_buckets": [],
    "data.num_negatives": 2,
    "evaluate.rows": 4,
    "evaluate.batch_size": 4,
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The folder for runs of a checkout with what docs/datasets.md says to put into ``data/``, and fewer steps."""
    (tmp_path / "data/general_text").mkdir(parents=True)
    write_raw(tmp_path / "data/amazon_scientific")
    text = [line for topic in pydoc_data.topics.topics.values() for line in topic.splitlines() if line.strip()]
    (tmp_path / "data/general_text/train.txt").write_text("\n".join(text[:2000]))
    (tmp_path / "data/general_text/heldout.txt").write_text("\n".join(text[2000:2500]))
    config = yaml.safe_load((ROOT / CONFIG).read_text())
    for name, value in (MODEL | TUNING | SMALLER).items():
        section, field = name.split(".")
        config.setdefault(section, {})[field] = value
    (tmp_path / "configs").mkdir()
    (tmp_path / CONFIG).write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    return Path("runs/amazon_scientific")


def test_the_commands_of_the_results_lead_from_raw_files_to_a_report_on_two_runs(runs, tmp_path_factory):
    shown = commands(tmp_path_factory.mktemp("shell"))
    todo = [words[1:] for page, words in shown if page == "docs/results.md" and CONFIG in words]
    assert [name for name, *_ in todo] == ["pretrain", "calibrate", "train", "train", "evaluate", "evaluate"]
    with few_kernels():
        for words in todo:
            assert gems_jax(*words) == 0, words
    found = [json.loads((runs / name / "eval.json").read_text()) for name in ("gems", "adamw")]
    assert [run["name"] for run in found] == ["GEMS", "joint AdamW"]
    assert "joint AdamW" in (runs / "gems/report.html").read_text()
