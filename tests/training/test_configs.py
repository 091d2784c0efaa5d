"""Every configuration that is shipped loads and makes a model and an optimiser state, in shapes alone."""

import dataclasses
import functools
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding

import gems_jax as gj
from benchmarks.memory_estimate import MODELS as MEASURED
from benchmarks.memory_estimate import estimated, run_config
from gems_jax import cli
from gems_jax.arguments import config_of
from gems_jax.config.run import Config
from gems_jax.config.train import MeshConfig
from gems_jax.leaf_path import leaf_path
from gems_jax.training.distributed.mesh import AXES, spec_of
from gems_jax.training.estimate.memory import GIB, estimate
from gems_jax.training.optimiser.chain import make_optimiser
from gems_jax.training.trainable import split_model
from gems_jax.training.workdir.files import as_json, with_defaults

ALL_KERNELS = True  # their sizes are what is checked
CONFIGS = Path(__file__).parents[2] / "configs"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
# Those of studies say what they vary, and name one of these.
FILES = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith("study"))
# In every catalogue, for the sizes of models and state.
ITEMS = 20_000
# What the config.json of the folders that the configurations name say.
QWEN3 = {
    "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "rope_theta": 1e6,
    "eos_token_id": 151645,
}  # fmt: skip
T5_BASE = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12,
    "num_heads": 12, "feed_forward_proj": "relu", "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    "t5-base": (T5_BASE, 222.9e6),
    "SmolLM2-135M-Instruct": (
        {
            "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 1e5,
            "eos_token_id": 2, "tie_word_embeddings": True,
        },
        134.5e6,
    ),
    "Qwen3-0.6B": (
        QWEN3 | {
            "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "tie_word_embeddings": True,
        },
        596e6,
    ),
    "Qwen3-1.7B": (
        QWEN3 | {
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
            "tie_word_embeddings": True,
        },
        1.72e9,
    ),
    "Qwen3-8B": (
        QWEN3 | {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
        8.19e9,
    ),
    "Meta-Llama-3-8B": (
        {
            "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 5e5,
            "eos_token_id": 128001,
            "tie_word_embeddings": False,
        },
        8.03e9,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)


@functools.cache
def loaded(path):
    return config_of(cli.parse(["train", "--workdir", "w", "--config", f"configs/{path.name}"])[1])


@functools.cache
def abstract_model(path):
    """The shapes of a configuration's model, grown by the items."""
    config = loaded(path)
    name = Path(config.model.path).name
    if name in MODELS:
        values, expected = MODELS[name]
    else:  # pretrained from text
        made = config.pretrain
        values = {"model_type": "t5", "feed_forward_proj": "gated-gelu"} | {
            key: getattr(made, key)
            for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
        }
        expected = None
    base = nnx.eval_shape(lambda: gj.models.from_config(values, jax.random.key(0)))
    size = sum(x.size for x in jax.tree.leaves(nnx.state(base, nnx.Param)))
    assert expected is None or size == pytest.approx(expected, rel=0.01)
    grown = dataclasses.replace(base.config, num_added_tokens=ITEMS)
    return nnx.eval_shape(lambda: gj.models.from_config(grown, jax.random.key(0)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_configuration_makes_its_abstract_model_and_state(path):
    config = loaded(path)
    _, params, _ = split_model(abstract_model(path), config)
    config = dataclasses.replace(config, gems=dataclasses.replace(config.gems, null_space=False))
    tx = make_optimiser(config, 2, None)
    state = jax.eval_shape(tx.init, params)
    assert gj.diagnostics(state)["gates"].shape == (2,)
    table = gj.state_bytes(tx, params)
    assert any(row.treatment == "subspaces" for row in table.rows)
    assert table.total == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

    sizes = {"data": 1} | {name: getattr(config.mesh, name) for name in AXES[1:]}
    mesh = AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    placed = jax.tree_util.tree_map_with_path(
        lambda p, x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec_of(leaf_path(p), x.shape, sizes))
        ),
        params,
    )
    places = gj.state_sharding(tx, placed)
    assert jax.tree.structure(places) == jax.tree.structure(state)
    held = sum(
        np.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
        for x, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True)
    )
    # Bases are split along one side of a kernel, moments along the other.
    assert held <= table.total if mesh.size == 1 else held < 0.8 * table.total


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_configuration_says_how_it_is_run_and_what_it_needs(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"configs/{path.name}" in text
    assert "gems-jax" in text
    assert "Needs" in text
    values = yaml.safe_load(path.read_text())
    for section, fields in values.items():
        if isinstance(fields, dict):
            known = {field.name for field in dataclasses.fields(getattr(Config(), section))}
            assert set(fields) <= known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_of_a_header_can_be_typed(path):
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    commands = re.findall(r"^(?:srun )?gems-jax .*$", "\n".join(lines).replace("\\\n", ""), re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command.removeprefix("srun "))
        assert config_of(cli.parse(words[1:])[1]) == loaded(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_memory_that_a_header_says_is_that_of_the_shapes(path):
    config, text = loaded(path), path.read_text()
    found = estimate(config, abstract_model(path).config)
    names = ", ".join(rf"{name} ([\d.]+)" for name in ("parameters", "gradients", "optimiser", "activations"))
    line = re.search(rf"^# {names}: ([\d.]+) GiB$", text, re.MULTILINE)
    assert line, f"{path.name} needs the line: # {found}"
    wanted = [found.parameters, found.gradients, found.optimiser, found.activations, found.total]
    said = [float(x) for x in line.groups()]
    np.testing.assert_allclose(said, np.array(wanted) / GIB, rtol=0.1, atol=0.01, err_msg=f"should be: # {found}")
    devices = re.search(r"Needs (\d+) devices? of (\d+) GB", text)
    if devices:
        assert int(devices[1]) == config.mesh.fsdp * config.mesh.tensor * config.mesh.task
        # Programs, their scratch space and the next batches come on top.
        assert int(devices[2]) * 1e9 >= 1.25 * found.total
    else:
        assert re.search(r"Needs 2 cores and \d+ GB", text)


def test_memory_is_split_over_the_devices_of_a_mesh():
    config = loaded(CONFIGS / "qwen3_8b.yaml")
    model = abstract_model(CONFIGS / "qwen3_8b.yaml").config
    found = estimate(config, model)
    alone = estimate(dataclasses.replace(config, mesh=MeshConfig()), model)
    assert alone.parameters == pytest.approx(2 * 4 * (8.19e9 + 2 * ITEMS * 4096), rel=0.01)
    assert found.parameters == pytest.approx(alone.parameters / 32, rel=0.01)
    assert alone.optimiser / 32 < found.optimiser < alone.optimiser / 2
    more = estimate(config, model, data=2)
    assert more.activations < found.activations
    assert more.optimiser == found.optimiser
    tasks = estimate(dataclasses.replace(config, mesh=MeshConfig(fsdp=16, task=2)), model)
    whole = estimate(dataclasses.replace(config, mesh=MeshConfig(fsdp=16)), model)
    peaks = [found.gradients + found.activations for found in (tasks, whole)]
    assert peaks[0] == pytest.approx(peaks[1] * (3.7 + 1.8) / (3.7 + 2 * 1.8))
    assert tasks.optimiser < whole.optimiser


def test_the_estimate_is_within_a_fifth_of_what_compiled_steps_take():
    """Of programs for CPU that `benchmarks/memory_estimate.py` compiled; some of the estimates are made again."""
    rows = json.loads((RESULTS / "memory_estimate.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"gems", "adamw", "lora", "galore", "pcgrad"}
    for row in rows:
        assert row["estimated"] == pytest.approx(row["measured"], rel=0.2), row
    again = [row for row in rows if row["model"].startswith("decoder") and row["tasks"] == 2]
    for row in (row for row in again if row["rows"] == 8 or row["remat"] != "full"):
        config = run_config(row["method"], row["gradients"], row["rows"], row["tokens"], row["remat"])
        found = estimated(MEASURED[row["model"]], config, row["tasks"])
        assert found == pytest.approx(row["measured"], rel=0.2), row


def test_every_value_of_the_released_setting_says_where_it_is_from():
    path = CONFIGS / "qilin_t5_base.yaml"
    source = r"#.*\b(train\.sh|parser\.py|\w+\.py|config\.json|ours)\b"
    for line in path.read_text().splitlines():
        if line.startswith("#") or re.fullmatch(r"\s*\w+:", line):
            continue
        assert re.search(source, line), line
    values = yaml.safe_load(path.read_text())
    for section in ("gems", "null_space", "train", "items"):
        left_out = {f.name for f in dataclasses.fields(getattr(Config(), section))} - set(values[section])
        default = getattr(Config(), section)
        config = getattr(loaded(path), section)
        assert all(getattr(config, name) == getattr(default, name) for name in left_out)


def test_a_configuration_from_before_a_field_existed_has_its_default():
    kept = as_json(Config())
    del kept["mesh"], kept["train"]["accumulate"]
    assert with_defaults(kept) == as_json(Config())
    kept["items"]["prompts"] = {"buy": "{history}"}
    assert with_defaults(kept)["items"]["prompts"] == {"buy": "{history}"}
