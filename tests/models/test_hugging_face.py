"""Hugging Face folders: there and back bit for bit, the same logits in transformers, and errors with names."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file
from shared import SHARED, needs_shared
from t5_rows import tokenizer_of, tokens_of

from gems_jax.items import add_item_tokens, grow
from gems_jax.models import T5, T5Config, from_config, load, save
from gems_jax.models.registry import FAMILIES

V = 40
CONFIG = T5Config(
    vocab_size=V, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=4, dropout_rate=0.1
)


def torch_logits(folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    reference = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        return reference(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.float().numpy()


@pytest.fixture(scope="module")
def model() -> T5:
    return T5.create(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def folder(model: T5, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("models") / "saved"
    save(model, tokenizer_of(V), path)
    return path


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_a_folder_written_by_transformers_comes_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=V, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    reference = transformers.T5ForConditionalGeneration(config)
    reference.lm_head.weight = torch.nn.Parameter(torch.randn(V, 16))
    reference.save_pretrained(tmp_path / "theirs")
    tokenizer_of(V).save_pretrained(tmp_path / "theirs")
    save(*load(tmp_path / "theirs"), tmp_path / "ours")
    save(*load(tmp_path / "ours"), tmp_path / "again")
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert set(theirs) == set(ours)
    assert all(theirs[name].tobytes() == ours[name].tobytes() for name in theirs)
    for path in sorted((tmp_path / "ours").iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("kind", ["own head", "tied", "tied, not scaled", "with items", "tied, with items"])
def test_transformers_computes_the_same_logits_from_what_is_saved(kind: str, tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG,
        tie_word_embeddings=kind.startswith("tied"),
        scale_decoder_outputs=False if kind == "tied, not scaled" else None,
        feed_forward="relu" if kind == "tied" else "gated-gelu",
    )
    model, tokenizer = T5.create(config, jax.random.key(1)), tokenizer_of(V)
    if "items" in kind:
        add_item_tokens(tokenizer, ["a", "b", "c"], V)
        model = grow(model, [[5, 6], [7], [8, 9, 10]])
    save(model, tokenizer, tmp_path / "model")
    loaded, loaded_tokenizer = load(tmp_path / "model")
    assert dataclasses.replace(loaded.config, scale_decoder_outputs=None) == dataclasses.replace(
        model.config, scale_decoder_outputs=None
    )
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded, nnx.Param), nnx.state(model, nnx.Param))
    assert loaded_tokenizer.get_vocab() == tokenizer.get_vocab()
    inputs = tokens_of(len(tokenizer))
    expected = torch_logits(tmp_path / "model", inputs)
    assert expected.shape[-1] == len(tokenizer)
    np.testing.assert_allclose(loaded(**inputs), expected, atol=1e-4 * np.abs(expected).max())


def test_a_tokenizer_comes_back_with_the_same_encoding(folder: Path, tmp_path: Path) -> None:
    from gems_jax.data.text.small_tokenizer import train_tokenizer

    text = "cheap garden lamps and red garden chairs for a small balcony"
    tokenizer = train_tokenizer([text] * 50, vocab_size=420, num_sentinels=10)
    rows = len(tokenizer)
    save(T5.create(dataclasses.replace(CONFIG, vocab_size=rows), jax.random.key(0)), tokenizer, tmp_path / "m")
    loaded = load(tmp_path / "m")[1]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    expected = tokenizer(text + " <extra_id_3>")["input_ids"]
    assert loaded(text + " <extra_id_3>")["input_ids"] == expected
    assert again(text + " <extra_id_3>")["input_ids"] == expected


def test_the_type_of_the_weights_is_that_of_the_file_or_the_one_asked_for(folder: Path, tmp_path: Path) -> None:
    half, tokenizer = load(folder, dtype="bfloat16")
    assert half.config.dtype == half.config.param_dtype == "bfloat16"
    assert half.lm_head.embedding.dtype == jnp.bfloat16
    save(half, tokenizer, tmp_path / "half")
    again = load(tmp_path / "half")[0]
    assert again.config == half.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again, nnx.Param), nnx.state(half, nnx.Param))
    assert load(folder)[0].config.param_dtype == "float32"
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'bfloat16', got 'int8'"):
        load(folder, dtype="int8")


def test_weights_in_several_files_load_by_their_index(folder: Path, damaged: Path) -> None:
    tensors = load_file(damaged / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for part, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, damaged / part)
    (damaged / "model.safetensors").unlink()
    index = {"weight_map": {name: part for part, inside in parts.items() for name in inside}}
    (damaged / "model.safetensors.index.json").write_text(json.dumps(index))
    whole, split = load(folder)[0], load(damaged)[0]
    jax.tree.map(np.testing.assert_array_equal, nnx.state(split, nnx.Param), nnx.state(whole, nnx.Param))
    (damaged / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors does not exist"):
        load(damaged)


def test_a_mesh_takes_the_weights(folder: Path) -> None:
    mesh = jax.make_mesh((1,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,))
    model, _ = load(folder, mesh=mesh)
    spec = jax.sharding.PartitionSpec
    assert model.encoder.block.mlp.wo.kernel.sharding.spec == spec(None, None, "shard")
    assert model.lm_head.embedding.sharding.spec == spec("shard", None)
    assert model.encoder.final_norm.scale.sharding.spec == spec(None)
    np.testing.assert_array_equal(model(**tokens_of(V)), load(folder)[0](**tokens_of(V)))


def test_older_folders_repeat_the_shared_table_and_load_all_the_same(damaged: Path) -> None:
    def repeat(tensors: Any) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()
        name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[name] = np.zeros((32, 4), np.float32)

    change_tensors(damaged, repeat)
    assert load(damaged)[0].config == dataclasses.replace(CONFIG, scale_decoder_outputs=False)


def test_random_weights_are_made_from_a_config_a_mapping_or_a_folder(folder: Path, model: T5) -> None:
    state = nnx.state(model, nnx.Param)
    for config in (CONFIG, json.loads((folder / "config.json").read_text()), folder, folder / "config.json"):
        made = from_config(config, jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, nnx.state(made, nnx.Param), state)
    assert from_config(CONFIG, rngs=nnx.Rngs(0)).config == CONFIG
    with pytest.raises(ValueError, match=r"whole numbers for \['d_model', 'd_kv'"):
        from_config({"model_type": "t5", "vocab_size": 4}, jax.random.key(0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, r"config.json: model_type is 'bert', known are \['llama', 'mistral'"),
        ({"d_ff": "24"}, r"whole numbers for \['d_ff'\]"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
        ({"num_heads": 0}, "config.json: T5Config.num_heads must be at least 1"),
        ({"num_layers": 3}, r"missing encoder.block.2.layer.0.SelfAttention.k.weight"),
        ({"num_layers": 1}, r"unknown encoder.block.1.layer.0.SelfAttention.k.weight"),
        ({"d_ff": 32}, r"tensor \S+wi_0.weight has shape \(24, 16\), config.json asks for \(32, 16\)"),
        ({"vocab_size": 41}, r"tensor shared.weight has shape \(40, 16\), config.json asks for \(41, 16\)"),
    ],
)
def test_a_config_that_does_not_fit_is_named(values: dict[str, Any], message: str, damaged: Path) -> None:
    change_config(damaged, **values)
    with pytest.raises(ValueError, match=message):
        load(damaged)


def test_missing_and_unknown_tensors_are_named(damaged: Path) -> None:
    change_tensors(damaged, lambda tensors: tensors.update(extra=np.zeros(2, np.float32)))
    with pytest.raises(ValueError, match="missing none; unknown extra"):
        load(damaged)
    change_tensors(damaged, lambda tensors: tensors.pop("extra") is tensors.pop("shared.weight"))
    with pytest.raises(ValueError, match="missing shared.weight; unknown none"):
        load(damaged)


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_truncated_file_of_weights_is_named(size: int, damaged: Path) -> None:
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is no whole safetensors file"):
        load(damaged)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(name: str, damaged: Path) -> None:
    (damaged / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
        load(damaged)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "content"), [("config.json", "{"), ("config.json", "[]")])
def test_a_damaged_config_is_named(name: str, content: str, damaged: Path) -> None:
    (damaged / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        load(damaged)


def test_a_damaged_tokenizer_is_named(damaged: Path) -> None:
    (damaged / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="the tokenizer's files cannot be read"):
        load(damaged)


def test_a_tokenizer_of_another_model_is_refused_and_nothing_is_written(model: T5, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 41 tokens, the model's embedding 40 rows"):
        save(model, tokenizer_of(41), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(model: T5, tmp_path: Path, monkeypatch: Any) -> None:
    save(model, tokenizer_of(V), tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    tokenizer = tokenizer_of(V)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    other = T5.create(CONFIG, jax.random.key(5))
    for name in ("model", "new"):
        with pytest.raises(OSError, match="disk full"):
            save(other, tokenizer, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    save(other, tokenizer_of(V), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before


def test_files_that_are_no_model_are_not_replaced(model: T5, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds files but no model"):
        save(model, tokenizer_of(V), tmp_path)
    with pytest.raises(ValueError, match=r"thesis\.txt is a file"):
        save(model, tokenizer_of(V), tmp_path / "thesis.txt")
    save(model, tokenizer_of(V), tmp_path / "model")
    (tmp_path / "model" / "notes").mkdir()
    with pytest.raises(ValueError, match="folders beside a model"):
        save(model, tokenizer_of(V), tmp_path / "model")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_mesh_gets_the_weights_part_by_part_and_keeps_them_spread_when_the_model_grows(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    program = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "sharded_models.py"), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # No more than a device's part of a tensor is read at once; the largest is a quarter of the table.
    assert found["most_read"] == V * 16 // 4
    split = ["model", None]
    assert found["specs"] == {
        "kernel": [None, None, "model"],
        "table": split,
        "norm": [None],
        "relative_bias": [None, None],
        "items": split,
        "grown items": split,
        "three items": [None, None],
    }


def test_large_weights_go_to_several_files_and_an_index_that_transformers_reads(model: T5, tmp_path: Path) -> None:
    save(model, tokenizer_of(V), tmp_path / "parts", max_file_bytes=6000)
    save(model, tokenizer_of(V), tmp_path / "one")
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    parts = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 3
    assert parts[0] == f"model-00001-of-{len(parts):05}.safetensors"
    assert parts == sorted(set(index["weight_map"].values()))
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for part in parts:
        tensors = load_file(tmp_path / "parts" / part)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 6000
        for name, tensor in tensors.items():
            assert index["weight_map"][name] == part
            assert tensor.tobytes() == whole.pop(name).tobytes()
    assert not whole
    inputs = tokens_of(V)
    np.testing.assert_array_equal(torch_logits(tmp_path / "parts", inputs), torch_logits(tmp_path / "one", inputs))
    with pytest.raises(ValueError, match="max_file_bytes must be at least 1, got 0"):
        save(model, tokenizer_of(V), tmp_path / "none", max_file_bytes=0)


def test_an_index_that_is_damaged_or_leads_elsewhere_is_named(damaged: Path) -> None:
    (damaged / "model.safetensors").rename(damaged / "a.safetensors")
    index = damaged / "model.safetensors.index.json"
    for content in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"shared.weight": "../a.safetensors"}}'):
        index.write_text(content)
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is no index of weights"):
            load(damaged)
    shutil.copy(damaged / "a.safetensors", damaged / "b.safetensors")
    index.write_text('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}')
    with pytest.raises(ValueError, match=r"b\.safetensors holds tensor \S+, which another file"):
        load(damaged)


def test_pickled_weights_are_not_read_but_their_conversion_is_asked_for(damaged: Path) -> None:
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"only pytorch_model\.bin, which is pickled.*convert it to safetens"):
        load(damaged)


def test_whether_the_output_layer_is_tied_is_what_the_weights_say(damaged: Path) -> None:
    change_config(damaged, tie_word_embeddings=True)
    assert not load(damaged)[0].config.tie_word_embeddings
    change_tensors(damaged, lambda tensors: tensors.update({"lm_head.weight": tensors["shared.weight"].copy()}))
    assert load(damaged)[0].config.tie_word_embeddings
    change_config(damaged, tie_word_embeddings=False)
    change_tensors(damaged, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ValueError, match="missing lm_head.weight"):
        load(damaged)


@pytest.mark.parametrize("model_type", ["mt5", "umt5"])
def test_the_other_kinds_of_t5_keep_their_name(model_type: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, model_type=model_type)
    save(T5.create(config, jax.random.key(0)), tokenizer_of(V), tmp_path / "model")
    assert load(tmp_path / "model")[0].config == config


def test_the_config_of_real_models_is_read(tmp_path: Path) -> None:
    sizes = {"vocab_size": 512, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    flan = {
        "architectures": ["T5ForConditionalGeneration"], "decoder_start_token_id": 0, "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
        "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
        "n_positions": 512, "num_decoder_layers": 2, "output_past": True, "pad_token_id": 0, "use_cache": True,
        "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
        "transformers_version": "4.23.1", "task_specific_params": {"summarization": {"num_beams": 4}},
    }  # fmt: skip
    model = from_config(sizes | flan, jax.random.key(0))
    assert (model.config.feed_forward, model.config.scales_outputs) == ("gated-gelu", False)
    umt5 = {"model_type": "umt5", "scalable_attention": True, "tokenizer_class": "T5Tokenizer"}
    assert from_config(sizes | umt5, jax.random.key(0)).encoder.relative_bias.embedding.shape == (1, 32, 2)
    assert from_config(sizes | {"model_type": "mt5"}, jax.random.key(0)).config.feed_forward == "gated-gelu"


@needs_shared
def test_the_config_of_a_published_t5_is_read() -> None:
    values = json.loads((SHARED / "data" / "tokenizers" / "t5_small" / "config.json").read_text())
    config = FAMILIES["t5"].read_config(values, "config")
    assert (config.d_model, config.num_heads, config.d_kv, config.feed_forward) == (128, 6, 64, "relu")
    assert config.tie_word_embeddings
    assert config.scales_outputs


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dense_act_fn": "silu"}, "dense_act_fn is 'silu', implemented for t5 here is 'gelu_new'"),
        ({"is_gated_act": False}, "is_gated_act is False"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is False"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"architectures": ["T5EncoderModel"]}, "architectures is .'T5EncoderModel'.,"),
        ({"hidden_size": 99}, "hidden_size is 99, implemented for t5 here is 16"),
        ({"rotary": {"base": 10}}, r"unknown options \['rotary'\] might change what a t5 model computes"),
        ({"quantization_config": {"bits": 4}}, r"unknown options \['quantization_config'\]"),
        ({"eos_token_id": [1, 2]}, r"config.json: eos_token_id is \[1, 2\], implemented for t5 here is one token id"),
        ({"gems_base_vocab_size": 41}, "gems_base_vocab_size is 41, it must be from 1 to vocab_size=40"),
        ({"gems_base_vocab_size": "9"}, "gems_base_vocab_size is '9'"),
    ],
)
def test_an_option_that_is_not_implemented_is_named(values: dict[str, Any], message: str, damaged: Path) -> None:
    change_config(damaged, **values)
    with pytest.raises(ValueError, match=message):
        load(damaged)


def test_options_that_are_off_need_no_implementation(damaged: Path) -> None:
    change_config(damaged, rotary=None, some_option=False, other={})
    load(damaged)


def test_weights_that_are_no_floating_point_numbers_are_named(damaged: Path) -> None:
    change_tensors(damaged, lambda tensors: tensors.update({"shared.weight": tensors["shared.weight"].astype(np.int8)}))
    with pytest.raises(ValueError, match=r"tensor shared\.weight has dtype I8"):
        load(damaged)
