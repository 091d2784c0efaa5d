"""What is told of a run and of this machine before anything is done."""

import dataclasses
import importlib.metadata
import re

import jax
import pytest
from tiny import everything_in, fails, gems_jax, options, read

from gems_jax.config.train import MeshConfig
from gems_jax.data.dataset import storage
from gems_jax.training import doctor
from gems_jax.training.estimate.memory import HEADROOM, by_batch_size, estimate, largest_batch
from gems_jax.training.estimate.shape import abstract_model


def test_a_dry_run_tells_configuration_shapes_memory_and_rows_and_writes_nothing(prepared, tmp_path, capsys):
    before = everything_in(prepared.root)
    workdir = tmp_path / "run"
    assert gems_jax("train", "--dry-run", "--workdir", workdir, *options(prepared.root)) == 0
    said = capsys.readouterr().out
    assert everything_in(prepared.root) == before
    assert not workdir.exists()
    assert "  batch_size: 8\n" in said
    assert "identifiers: null" in said
    assert "runs/demo/identifiers" not in said  # of a folder that this run has not
    assert re.search(r"^train: gems, [\d,]+ trained parameters of [\d,]+, 8 steps$", said, re.MULTILINE)
    assert f"null space: {prepared.root}/null_space" in said
    config = read("train", "--workdir", workdir, *options(prepared.root))
    items = int(re.search(r", (\d+) items among them", said).group(1))
    assert f"GiB a device: {estimate(config, abstract_model(config, items).config)}\n" in said
    assert "input_ids [2, 8, 32] int32" in said
    for task in ("rec", "src"):
        shown = re.search(rf"^{task}, row \d+, as the model reads it: (.+)$", said, re.MULTILINE).group(1)
        answer = re.search(rf"^{task}, the answer: (.+)$", said, re.MULTILINE).group(1)
        assert re.fullmatch(r"<item[^>]*>\s*</s>", answer)
        assert ("earch" in shown) == (task == "src")


def test_text_that_the_tokenizer_does_not_know_is_told_before_a_run_with_what_to_do(prepared, tmp_path, capsys):
    dataset = storage.load(prepared.root / "data")
    items = [
        dataclasses.replace(item, title=f"\u7ea2\u8272\u706f \u53f7 {n % 7}") for n, item in enumerate(dataset.items)
    ]
    tables = dict(dataset.tables)
    src = tables["train", "src"]
    tables["train", "src"] = dataclasses.replace(src, queries=["\u706f"] * len(src))
    storage.save(dataclasses.replace(dataset, items=items, tables=tables), tmp_path / "data")
    few = {"train__method": "adamw", "train__steps": 1, "train__batch_size": 2}
    argv = options(prepared.root, data__dir=tmp_path / "data", **few)
    for command in (("prepare", "--all"), ("train", "--dry-run", "--workdir", tmp_path / "dry"),
                    ("train", "--workdir", tmp_path / "run")):  # fmt: skip
        assert gems_jax(*command, *argv) == 0
        (said,) = [line for line in capsys.readouterr().out.splitlines() if "does not know" in line]
        # Two words of three in a title, all of a query.
        assert said.startswith(
            "data: the tokenizer does not know 67 % of the tokens of titles (such as '\u7ea2\u8272\u706f', '\u53f7') "
            "and 100 % of the tokens of queries (such as '\u706f')"
        )
        assert "take a base model whose tokenizer knows their language and script (model.path)" in said
    assert gems_jax("prepare", "--all", *options(prepared.root)) == 0
    assert "does not know" not in capsys.readouterr().out


def test_a_dry_run_that_would_have_to_make_something_says_what(prepared, tmp_path, capsys):
    words = ("train", "--dry-run", "--workdir", tmp_path / "run")
    said = fails(capsys, *words, *options(prepared.root, data__dir=tmp_path / "data"))
    assert f"--dry-run writes nothing, and data.dir {tmp_path}/data is not there yet" in said
    said = fails(capsys, *words, *options(prepared.root, model__path=tmp_path / "base"))
    assert f"model.path {tmp_path}/base is not there yet: run gems-jax prepare --all" in said
    missing = options(prepared.root, null_space__path=tmp_path / "null_space")
    assert gems_jax(*words, *missing) == 0
    assert f"null space: {tmp_path}/null_space is made first" in capsys.readouterr().out
    assert everything_in(tmp_path) == []


def test_the_doctor_tells_versions_devices_and_whether_a_run_fits(prepared, capsys):
    assert gems_jax("doctor", *options(prepared.root)) == 0
    said = capsys.readouterr().out
    assert f"jax {importlib.metadata.version('jax')}, " in said
    assert f"devices: {len(jax.devices())} x cpu, " in said
    assert re.search(r"^fits: .*, train\.batch_size 8$", said, re.MULTILINE)
    assert re.search(r"^train\.batch_size up to \d{3,} would fit$", said, re.MULTILINE)
    # Without a catalogue and a model: of what would be pretrained.
    assert gems_jax("doctor", "--data.dir", "/nowhere", "--model.path", "/nowhere") == 0
    assert "20,000 items among them" in capsys.readouterr().out
    assert "--num_items must be at least 1" in fails(capsys, "doctor", "--num_items", "0")
    refused = fails(capsys, "doctor", "--model.path", "/nowhere", "--model.from_text", "false")
    assert "model.path /nowhere holds no model (config.json)" in refused


class Device:
    def __init__(self, memory):
        self.memory = memory

    def memory_stats(self):
        return {"bytes_limit": self.memory}


def test_what_does_not_fit_is_said_with_the_batch_that_would(prepared):
    config = read("doctor", *options(prepared.root, train__batch_size=64))
    found = estimate(config, abstract_model(config, 50).config)
    tight = Device(HEADROOM * (found.total - found.activations / 4))
    said = "\n".join(doctor.fit(config, 50, [tight]))
    assert "does not fit: " in said
    most = int(
        re.search(r"^train\.batch_size (\d+) would fit; or raise train\.accumulate", said, re.MULTILINE).group(1)
    )
    assert 0 < most < 64
    assert "no train.batch_size fits: " in "\n".join(doctor.fit(config, 50, [Device(1)]))
    wide = dataclasses.replace(config, mesh=MeshConfig(fsdp=2))
    assert "2 devices are asked for, and 3 cannot be split" in "\n".join(doctor.fit(wide, 50, [tight] * 3))


@pytest.mark.parametrize("share", [0.6, 1.0, 2.5, 9.0])
def test_the_largest_batch_fits_and_twice_as_many_rows_do_not(share):
    config = read("doctor", "--train.batch_size", "256")
    needs = by_batch_size(config, abstract_model(config, 50).config)
    memory = HEADROOM * share * needs(256).total
    most = largest_batch(config, needs, memory)
    assert most > 0
    assert HEADROOM * needs(most).total <= memory < HEADROOM * needs(2 * most).total
