"""Every configuration that is shipped loads and makes a model and an optimiser state, in shapes alone."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding

import gems_jax as gj
from gems_jax import cli
from gems_jax.leaf_path import leaf_path
from gems_jax.training.config import Config
from gems_jax.training.layout import AXES, spec_of
from gems_jax.training.optimiser import make_optimiser
from gems_jax.training.parts import split_model
from gems_jax.training.workdir import plain, with_defaults

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
ITEMS = 5000
# What the config.json of the folders that the configurations name say.
QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8, "rope_theta": 1e6}
T5_BASE = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12,
    "num_heads": 12, "feed_forward_proj": "relu", "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    "t5-base": (T5_BASE, 222.9e6),
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
            "tie_word_embeddings": False,
        },
        8.03e9,
    ),
}  # fmt: skip


def loaded(path):
    return cli._config(cli.parse(["train", "--workdir", "w", "--config", str(path)])[1])


def abstract_model(config):
    """The model's shapes, grown by the items, and its number of parameters without them."""
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
    _, params, _ = split_model(abstract_model(config), config)
    config = dataclasses.replace(config, gems=dataclasses.replace(config.gems, null_space=False))
    tx = make_optimiser(config, 2, None)
    state = jax.eval_shape(tx.init, params)
    assert gj.diagnostics(state)["gates"].shape == (2,)
    table = gj.state_bytes(tx, params)
    assert any(row.treatment == "subspaces" for row in table.rows)
    assert table.total == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

    mesh = AbstractMesh((1, config.mesh.fsdp, config.mesh.tensor), AXES, axis_types=(AxisType.Auto,) * 3)
    sizes = dict(zip(AXES, mesh.axis_sizes, strict=True))
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


def test_a_configuration_from_before_a_field_existed_has_its_default():
    kept = plain(Config())
    del kept["mesh"], kept["train"]["accumulate"]
    assert with_defaults(kept) == plain(Config())
    kept["items"]["prompts"] = {"buy": "{history}"}
    assert with_defaults(kept)["items"]["prompts"] == {"buy": "{history}"}
