"""Fields that had another name once are read by it wherever a configuration or a call may have it."""

import json

import pytest
import yaml
from raw_tables import ready
from tiny import fails, read

from gems_jax.arguments import parse_config
from gems_jax.config.data import DataConfig
from gems_jax.config.renamed import RENAMED
from gems_jax.config.run import Config
from gems_jax.data.preparation.options import Preprocessing
from gems_jax.data.preparation.other_dataset import differences
from gems_jax.data.prepare import prepare
from gems_jax.study.compare import check_settings
from gems_jax.study.config import StudyConfig
from gems_jax.training.workdir.files import as_json, check_config, flatten, keep_config

NOTICE = "gems-jax: data.steps in {} is called data.preprocessing now; the old name is read, too\n"


def test_new_names_are_fields_of_the_same_section():
    fields = flatten(as_json(Config()))
    for old, new in RENAMED.items():
        assert any(name == new or name.startswith(new + ".") for name in fields)
        assert not any(name == old or name.startswith(old + ".") for name in fields)
        assert old.rpartition(".")[0] == new.rpartition(".")[0]


@pytest.mark.parametrize(
    "text",
    [
        "data: {steps: {core: 3, min_rows: 2}}",
        "data.steps.core: 3\ndata.steps.min_rows: 2",
        "data: {steps.core: 3, steps.min_rows: 2}",
        "data: {<<: [{steps: {core: 3, min_rows: 2}}]}",
    ],
)
def test_a_file_may_have_the_old_name_in_every_form(text, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(text + "\npretrain: {steps: 7}\n")
    config = read("prepare", "--config", file)
    assert config.data.preprocessing == Preprocessing(core=3, min_rows=2)
    assert config.pretrain.steps == 7
    assert capsys.readouterr().err == NOTICE.format(file)
    file.write_text(text.replace("steps", "preprocessing") + "\n")
    assert read("prepare", "--config", file).data.preprocessing == config.data.preprocessing
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [
        ["--data.steps.core", "3", "--data.steps.min_rows=2"],
        ["--data.steps={core: 3, min_rows: 2}"],
        ["--data", "{steps: {core: 3, min_rows: 2}}"],
    ],
)
def test_the_command_line_may_have_the_old_name_in_every_form(words, capsys):
    assert parse_config(words).data.preprocessing == Preprocessing(core=3, min_rows=2)
    assert capsys.readouterr().err == NOTICE.format("the command line")
    assert read("prepare", *words).data.preprocessing == Preprocessing(core=3, min_rows=2)
    assert capsys.readouterr().err == NOTICE.format("the command line")
    new = [word.replace("steps", "preprocessing") for word in words]
    assert parse_config(new).data.preprocessing == Preprocessing(core=3, min_rows=2)
    assert capsys.readouterr().err == ""


def test_old_and_new_name_together_are_one_field_given_twice(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("data:\n  steps: {core: 3}\n  preprocessing: {core: 4}\n")
    assert "line 3: data.preprocessing is given twice, first in line 2" in fails(capsys, "prepare", "--config", file)
    file.write_text("data:\n  steps: {coer: 3}\n")
    said = fails(capsys, "prepare", "--config", file)
    assert "data.preprocessing.coer is no field; did you mean 'data.preprocessing.core'?" in said


def test_a_run_kept_by_the_old_name_goes_on_and_says_nothing(tmp_path, capsys):
    config = Config(data=DataConfig(preprocessing=Preprocessing(core=3)))
    keep_config(config, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    kept["data"]["steps"] = kept["data"].pop("preprocessing")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept))
    check_config(config, tmp_path)
    assert read("evaluate", "--workdir", tmp_path).data.preprocessing == config.data.preprocessing
    other = Config(data=DataConfig(preprocessing=Preprocessing(core=4)))
    with pytest.raises(ValueError, match=r"another configuration \(data\.preprocessing\.core: 3 there, 4 now\)"):
        check_config(other, tmp_path)
    assert capsys.readouterr().err == ""


def test_a_study_kept_by_the_old_name_goes_on(tmp_path):
    config = Config(data=DataConfig(preprocessing=Preprocessing(core=3)))
    check_settings(config, StudyConfig(), tmp_path)
    path = tmp_path / "settings.json"
    path.write_text(path.read_text().replace("data.preprocessing.", "data.steps."))
    assert "data.steps.core" in json.loads(path.read_text())
    check_settings(config, StudyConfig(), tmp_path)
    with pytest.raises(ValueError, match=r"data\.preprocessing\.core: 3 there, None now"):
        check_settings(Config(), StudyConfig(), tmp_path)


def test_prepare_takes_the_old_name_and_says_the_new(tmp_path):
    said = []
    options = {"path": tmp_path, "files": ready(tmp_path), "num_negatives": 3, "progress": said.append}
    dataset = prepare("table", tmp_path / "out", steps={"core": 2}, **options)
    assert said[0] == "data: prepare's steps are called preprocessing now; the old name is read, too"
    assert dataset.card["settings"]["preprocessing"]["core"] == 2
    said.clear()
    prepare("table", tmp_path / "out", preprocessing={"core": 2}, **options)
    assert "is prepared already" in said[0]
    with pytest.raises(ValueError, match="steps is the old name of preprocessing; give one of them"):
        prepare("table", tmp_path / "out", steps={"core": 2}, preprocessing={"core": 2}, **options)


def test_a_dataset_prepared_under_the_old_name_is_the_same():
    made = {"name": "table", "steps": {"core": 2}}
    assert differences(made, {"name": "table", "preprocessing": {"core": 2}}) == []
    assert differences(made, {"name": "table", "preprocessing": {"core": 3}}) == ["preprocessing.core: 2 there, 3 here"]
