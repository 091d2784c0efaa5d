"""Configuration files: strictly read, harmless whatever they hold, and relative to themselves."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
import yaml
from tiny import everything_in, fails, gems_jax, read

from gems_jax.config.files import MOST_BYTES
from gems_jax.config.paths import absolute
from gems_jax.config.run import Config
from gems_jax.training.workdir.files import as_json, check_config, keep_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- read strictly --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  steps: 3\ndata: {seed: 1}\ntrain: {clip: 1}\n", "line 4: train is given twice, first in line 1"),
        ("train:\n  steps: 3\n  steps: 4\n", "line 3: train.steps is given twice, first in line 2"),
        ("train: {steps: 3}\ntrain.steps: 4\n", "line 2: train.steps is given twice, first in line 1"),
        ("data:\n  files:\n    items: a\n    items: b\n", "line 4: data.files.items is given twice, first in line 3"),
        ("items:\n  prompts:\n    rec: '{history}'\n    rec: '{history}.'\n", "items.prompts.rec is given twice"),
        ("evaluate: {compare: {a: x,\n a: y}}\n", "evaluate.compare.a is given twice"),
        ("name: a\nname: b\n", "line 2: name is given twice, first in line 1"),
        ("stepz: 3\n", "stepz is no field; did you mean 'train.steps'?"),
        ("traim:\n  steps: 3\n", "line 1: traim is no field; did you mean 'train'?"),
        ("data: {name: table, files: {interactions: x, colums: {}}}\n", "did you mean 'data.files.columns'?"),
        ("data: {files: {class_path: os.path}}\n", "data.files.class_path is no field"),
        ("data: {files: other.yaml}\n", "data.files must be a mapping of its fields"),
        ("train: other.yaml\n", "train must be a mapping of its fields (method, steps, "),
        ("train:\n  # steps: 3\n", "train must be a mapping of its fields"),
        ("train: {steps: }\n", "train.steps must be a whole number from 1 on, got None"),
        ("1: 2\n", "1 is no field"),
        ("? [a, b]\n: 2\n", "a name of a field is needed"),
        ("train: {steps: !!python/object/apply:os.getcwd []}\n", "could not determine a constructor"),
        ("", "holds no fields"),
        ("# nothing\n", "holds no fields"),
        ("hello\n", "holds no fields"),
        ("- train\n", "holds no fields"),
        ("train: {steps: 3}\n---\ntrain: {steps: 4}\n", "line 2: a second document begins"),
        ("train: *t\n", "line 1: found undefined alias 't'"),
        ("train: {steps: 3\n", "line 2: while parsing a flow mapping"),
        ("train:\n\tsteps: 3\n", "line 2: while scanning for the next token"),
        ("name: a\0b\n", "is no YAML: unacceptable character"),
        (b"name: \xff\n", "is not text in UTF-8 (byte 6)"),
        ("name: a\n".encode("utf-16"), "is not text in UTF-8"),
        (bytes(range(128, 256)), "is not text in UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_one_message(text, message, here, capsys):
    (here / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    said = fails(capsys, "prepare", "--config", "c.yaml")
    assert message in said
    assert "c.yaml" in said
    assert everything_in(here) == ["c.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 16 levels"),
        ("{a: " * 60_000, "nested deeper than 16 levels"),
        ("".join("  " * n + "a:\n" for n in range(400)), "nested deeper than 16 levels"),
        ("a0: &a0 [x]\n" + "".join(f"a: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 15)), "stand for more than"),
        ("a: &a {b: [*a]}\n", "stand for more than"),
        ("a: &a 1\nb: [" + "*a, " * 100 + "]\n", "30 aliases"),
        ("train: {writers: [" + "a, " * 20_000 + "]}\n", "more than 10,000 values"),
        ("name: " + "x" * MOST_BYTES, "is larger than 262,144 bytes"),
    ],
    ids=["flow", "mappings", "block", "laughs", "cycle", "aliases", "values", "bytes"],
)  # fmt: skip
def test_what_is_meant_to_do_harm_is_refused_quickly(text, message, here, capsys):
    (here / "c.yaml").write_text(text)
    begin = time.process_time()
    assert message in fails(capsys, "prepare", "--config", "c.yaml")
    assert time.process_time() - begin < 20


def test_values_on_the_command_line_are_as_harmless(here, capsys):
    assert "items.prompts must be" in fails(capsys, "prepare", "--items.prompts", "[" * 50_000)
    assert "nested deeper" in fails(capsys, "prepare", "--train", "[" * 50_000)
    assert "train.steps must be" in fails(capsys, "prepare", "--train.steps", "[" * 50_000)
    assert "train.steps is given twice" in fails(capsys, "prepare", "--train", '{"steps": 1, "steps": 2}')
    (here / "sub.yaml").write_text("steps: 3\n")
    assert "--train holds no fields" in fails(capsys, "prepare", "--train", "sub.yaml")
    assert "--data.files holds no fields" in fails(capsys, "prepare", "--data.files", "os.path")


def test_a_folder_and_a_missing_file_are_no_configurations(here, capsys):
    (here / "a.yaml").write_text("name: a\n")
    assert "--config . is a folder: it holds a.yaml" in fails(capsys, "prepare", "--config", ".")
    assert "--config no.yaml does not exist" in fails(capsys, "prepare", "--config", "no.yaml")
    assert everything_in(here) == ["a.yaml"]


def test_what_yaml_can_write_in_several_ways_is_read_alike(here):
    (here / "c.yaml").write_text(
        "\ufeffname: 'x: y'\ntrain: &t\n  learning_rate: 1e-3\n  clip: 1\n  steps: '7'\n  writers: []\n"
        "pretrain.steps: 3\ngems: {rank: 0.5, stagger: yes}\nlora: {<<: {rank: 2}, alpha: .5}\n"
        "items: {prompts: {rec: '{history}', src: '{query}'}, length_buckets: [8, 16]}\n"
    )
    config = read("prepare", "--config", "c.yaml", "--train.steps", 8)
    assert (config.name, config.train.learning_rate, config.train.clip, config.train.steps) == ("x: y", 1e-3, 1, 8)
    assert (config.pretrain.steps, config.gems.rank, config.gems.stagger) == (3, 0.5, True)
    assert (config.lora.rank, config.lora.alpha) == (2, 0.5)
    assert config.items.prompts == {"rec": "{history}", "src": "{query}"}
    assert list(config.items.length_buckets) == [8, 16]


# --- relative paths -------------------------------------------------------------------------------------------------

PLACES = {
    "data": {"path": "raw", "dir": "../out/data", "tokens": "tokens"},
    "text": {"train": "text.txt", "heldout": "pydoc"},
    "pretrain": {"tokenizer": "tok"},
    "model": {"path": "/models/base"},
    "null_space": {"path": "/null_spaces/base"},
    "items": {"identifiers": "ids.json", "path": "../out/ids"},
    "evaluate": {"compare": {"other": "../runs/other"}},
}


def places(config):
    return {section: {name: getattr(getattr(config, section), name) for name in PLACES[section]} for section in PLACES}


def test_paths_in_a_file_begin_in_its_folder_and_those_typed_in_the_working_directory(here, monkeypatch):
    folder = here / "shop" / "configs"
    folder.mkdir(parents=True)
    (folder / "c.yaml").write_text(yaml.safe_dump(PLACES))
    wanted = {
        "data": {"path": folder / "raw", "dir": here / "shop/out/data", "tokens": folder / "tokens"},
        "text": {"train": folder / "text.txt", "heldout": "pydoc"},
        "pretrain": {"tokenizer": folder / "tok"},
        "model": {"path": "/models/base"},
        "null_space": {"path": "/null_spaces/base"},
        "items": {"identifiers": folder / "ids.json", "path": here / "shop/out/ids"},
        "evaluate": {"compare": {"other": here / "shop/runs/other"}},
    }
    wanted = json.loads(json.dumps(wanted, default=str))
    for cwd, name in ((here, "shop/configs/c.yaml"), (folder, "c.yaml"), (here / "shop", "configs/../configs/c.yaml")):
        monkeypatch.chdir(cwd)
        assert absolute(places(read("prepare", "--config", name))) == wanted
    typed = read("prepare", "--config", "configs/c.yaml", "--data.path", "mine", "--data.dir=elsewhere")
    assert (typed.data.path, typed.data.dir) == ("mine", "elsewhere")
    assert typed.data.tokens == "configs/tokens"


def test_a_file_behind_a_link_begins_in_the_folder_that_it_is_named_in(here):
    (here / "far" / "configs").mkdir(parents=True)
    (here / "far" / "raw").mkdir()
    (here / "configs").symlink_to(here / "far" / "configs")
    (here / "configs" / "c.yaml").write_text("data: {path: ../raw}\n")
    assert Path(read("prepare", "--config", "configs/c.yaml").data.path).resolve() == here / "far" / "raw"


def test_a_path_that_only_the_working_directory_has_is_said_and_not_used(here, capsys):
    (here / "configs").mkdir()
    (here / "raw").mkdir()
    (here / "configs" / "c.yaml").write_text("data: {name: amazon_scientific, path: raw, dir: made}\n")
    said = fails(capsys, "prepare", "--config", "configs/c.yaml")
    assert "that of the same name in the working directory is not used" in said
    assert "configs/raw is not a folder" in said


def test_a_kept_configuration_says_the_same_from_any_folder(here, monkeypatch):
    (here / "c.yaml").write_text(yaml.safe_dump(PLACES))
    config = read("train", "--config", "c.yaml", "--workdir", "run")
    keep_config(config, here / "run")
    kept = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert kept["data"]["dir"] == str((here / "../out/data").resolve())
    assert (kept["text"]["heldout"], kept["null_space"]["path"]) == ("pydoc", "/null_spaces/base")
    (here / "run" / "checkpoints").mkdir()
    monkeypatch.chdir("/")
    again = read("evaluate", "--workdir", here / "run")
    assert absolute(as_json(again)) == absolute(kept)
    check_config(again, here / "run")


def test_a_configuration_kept_by_an_older_version_begins_in_the_working_directory(here, capsys):
    old = as_json(dataclasses.replace(Config(), data=dataclasses.replace(Config().data, dir="runs/d", path="raw")))
    (here / "run" / "checkpoints").mkdir(parents=True)
    (here / "run" / "config.yaml").write_text(yaml.safe_dump(old))
    config = read("evaluate", "--workdir", "run")
    assert (config.data.dir, config.data.path) == ("runs/d", "raw")
    assert "data.dir in run/config.yaml is relative, as older versions kept it" in capsys.readouterr().err
    check_config(config, here / "run")


def test_another_place_is_another_configuration_unless_the_old_one_is_gone(here):
    for name in ("a", "b"):
        (here / name).write_text("words\n")
    made = [
        dataclasses.replace(Config(), text=dataclasses.replace(Config().text, train=path)) for path in ("a", "b", "./a")
    ]
    keep_config(made[0], here / "run")
    check_config(made[2], here / "run")
    with pytest.raises(ValueError, match="text.train"):
        check_config(made[1], here / "run")
    (here / "a").unlink()  # moved, as whole trees are
    check_config(made[1], here / "run")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_work_in_the_folders_that_the_readme_names(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = read("calibrate", "--config", f"configs/{path.name}")
    assert config.data.dir.startswith("runs/")
    assert config.null_space.path.startswith("runs/")
    assert config.model.path.split("/")[0] in ("runs", "models")
    assert config.data.path is None or config.data.path.split("/")[0] in ("..", "data")
    if path.stem == "demo":
        assert config == Config()


def test_a_prepared_dataset_lies_beside_the_configuration_that_names_it(here, monkeypatch):
    (here / "shop").mkdir()
    (here / "shop" / "c.yaml").write_text("data: {dir: made, num_users: 30}\n")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert gems_jax("prepare", "--config", "../shop/c.yaml") == 0
    assert everything_in(here / "elsewhere") == []
    assert (here / "shop" / "made").is_dir()
