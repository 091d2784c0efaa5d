"""Keys of config.json: each one of transformers is judged, honoured values are typed and bounded, others refused."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from t5_rows import tokenizer_of, tokens_of

from gems_jax.models import T5, T5Config, from_config, load, save
from gems_jax.models.config_options import NO_EFFECT
from gems_jax.models.params import param_shapes
from gems_jax.models.registry import FAMILIES

V = 40
T5_SIZES = {"vocab_size": V, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
DECODER_SIZES = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4,
}  # fmt: skip
CLASSES = {
    "t5": transformers.T5Config,
    "mt5": transformers.MT5Config,
    "umt5": transformers.UMT5Config,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
# Read by PreTrainedConfig or by from_pretrained, though no field of a class.
OF_ALL = {
    *("torch_dtype", "name_or_path", "output_attentions", "attn_implementation", "experts_implementation"),
    *("num_labels", "per_layer_config", "configuration_files", "transformers_weights", "auto_map", "use_return_dict"),
    *("_attn_implementation", "_commit_hash", "_name_or_path", "_attn_implementation_autoset", "quantization_config"),
}


def sizes_of(kind: str) -> dict[str, Any]:
    return {"model_type": kind, **(T5_SIZES if "t5" in kind else DECODER_SIZES)}


def read(kind: str, **values: Any) -> Any:
    return FAMILIES[kind].read_config(sizes_of(kind) | values, "config.json")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_key_of_transformers_configurations_is_judged(kind: str) -> None:
    config = CLASSES[kind](vocab_size=V)
    keys = {field.name for field in dataclasses.fields(config)} | set(config.to_dict()) | set(config.attribute_map)
    keys |= OF_ALL | set(transformers.GenerationConfig._get_default_generation_params())
    family = FAMILIES[kind]
    judged = family.honoured | family.no_effect | NO_EFFECT | {"quantization_config"}  # the last: an unknown option
    assert not {key for key in keys if not key.startswith("_")} - judged
    assert not family.honoured & (family.no_effect | NO_EFFECT)


# A value that asks for something else than the absence of the key.
OTHER = {
    "t5": {
        "vocab_size": 41, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2, "hidden_size": 24,
        "num_attention_heads": 2, "num_hidden_layers": 3, "head_dim": 8, "model_type": "mt5",
        "architectures": ["T5EncoderModel"], "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu",
        "is_gated_act": True, "dense_act_fn": "silu", "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 64, "dropout_rate": 0.2, "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False, "scale_decoder_outputs": False, "is_encoder_decoder": False, "is_decoder": True,
        "pad_token_id": 3, "eos_token_id": 5, "decoder_start_token_id": 7,
    },
    "qwen3": {
        "vocab_size": 41, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64, "model_type": "qwen2",
        "architectures": ["Qwen3Model"], "hidden_act": "gelu", "initializer_range": 0.1, "rms_norm_eps": 1e-5,
        "pad_token_id": 3, "bos_token_id": 4, "eos_token_id": [5, 6], "tie_word_embeddings": True, "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5e5},
        "partial_rotary_factor": 0.5, "attention_bias": True, "attention_dropout": 0.1, "mlp_bias": True,
        "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2, "is_encoder_decoder": True,
    },
}  # fmt: skip
NOT_IMPLEMENTED = {
    "add_cross_attention": True, "tie_encoder_decoder": True, "cross_attention_hidden_size": 8,
    "pruned_heads": {"0": [1]}, "per_layer_config": {"0": {"d_ff": 8}}, "configuration_files": ["config.4.0.0.json"],
    "transformers_weights": "other.safetensors",
}  # fmt: skip
# They have an effect beside others only, and are tested there.
TOGETHER = {"sliding_window", "max_window_layers", "original_max_position_embeddings"}


@pytest.mark.parametrize("kind", OTHER)
def test_an_honoured_key_changes_the_model_or_is_refused(kind: str) -> None:
    others = OTHER[kind] | NOT_IMPLEMENTED
    assert set(others) | TOGETHER >= FAMILIES[kind].honoured
    base = read(kind, max_window_layers=0)
    for key, value in others.items():
        try:
            changed, refusal = read(kind, **({"max_window_layers": 0} | {key: value})), "config.json: " + key
        except ValueError as error:
            changed, refusal = None, str(error)
        assert changed != base, key
        assert refusal.startswith("config.json: "), key
        assert key in refusal or "rope" in key, refusal


@pytest.mark.parametrize("kind", CLASSES)
def test_keys_that_change_nothing_are_passed_over(kind: str) -> None:
    base = read(kind)
    switched_on = dict.fromkeys(NO_EFFECT | FAMILIES[kind].no_effect, True)
    notes = {
        "_attn_implementation_autoset": True, "_attn_implementation": "sdpa", "_flash_attn_2_enabled": True,
        "_name_or_path": "some/where", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"},
        "max_sequence_length": 2048,
    }  # fmt: skip
    assert read(kind, **switched_on | notes) == base


def test_older_names_of_classes_are_known() -> None:
    for kind, name in (("t5", "T5WithLMHeadModel"), ("llama", "LLaMAForCausalLM"), ("t5", "TFT5WithLMHeadModel")):
        assert read(kind, architectures=[name]) == read(kind)
        with pytest.raises(ValueError, match="config.json: architectures is"):
            read("qwen2", architectures=[name])


@pytest.mark.parametrize("kind", ["t5", "umt5", "mt5"])
@pytest.mark.parametrize("scaled", [None, True, False])
@pytest.mark.parametrize("tied", [None, True, False])
def test_whether_outputs_are_scaled_follows_its_key_then_whether_tables_were_tied(
    kind: str, scaled: bool | None, tied: bool | None
) -> None:
    given = {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}
    values = {key: value for key, value in given.items() if value is not None}
    expected = kind != "mt5" and (scaled if scaled is not None else tied is not False)
    theirs = CLASSES[kind](**sizes_of(kind), **values)
    if kind == "t5":
        assert theirs.scale_decoder_outputs == expected
    for read_again in (values, given):
        config = read(kind, **read_again)
        assert config.scales_outputs == expected
        written = FAMILIES[kind].config_values(config)
        assert FAMILIES[kind].read_config(written, "again").scales_outputs == expected
        untied = FAMILIES[kind].untied(config)
        assert (untied.tie_word_embeddings, untied.scales_outputs) == (False, expected)


@pytest.mark.parametrize("scaled", [True, False])
def test_umt5_gives_the_logits_of_transformers_scaled_and_not_and_after_saving(scaled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = transformers.UMT5ForConditionalGeneration(
        transformers.UMT5Config(**T5_SIZES, num_decoder_layers=1, decoder_start_token_id=0)
    ).eval()
    reference.lm_head.weight = torch.nn.Parameter(torch.randn(V, 16))
    # Versions before 5.24 look at the first alone, later ones at the second alone.
    reference.config.tie_word_embeddings = reference.config.scale_decoder_outputs = scaled
    reference.save_pretrained(tmp_path)
    tokenizer_of(V).save_pretrained(tmp_path)
    inputs = tokens_of(V)
    with torch.no_grad():
        expected = reference(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()
    model, tokenizer = load(tmp_path)
    logits = np.asarray(jax.jit(model)(**inputs))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    save(model, tokenizer, tmp_path / "saved")
    again = load(tmp_path / "saved")[0]
    assert (again.config, again.config.scales_outputs) == (model.config, scaled)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "saved"))
    assert all(theirs[name].tobytes() == ours[name].tobytes() for name in ours)
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert values["scale_decoder_outputs"] is scaled


WRONG = [
    ("t5", {"num_layers": 100_000_000}, "T5Config.num_layers must be at most 10,000, got 100000000"),
    ("t5", {"num_decoder_layers": 10**9}, "T5Config.num_decoder_layers must be at most 10,000"),
    ("t5", {"num_layers": True}, r"needs whole numbers for \['num_layers'\]"),
    ("t5", {"num_heads": 8.5}, r"needs whole numbers for \['num_heads'\]"),
    ("t5", {"d_model": None}, r"needs whole numbers for \['d_model'\]"),
    ("t5", {"d_ff": 10**400}, r"needs whole numbers for \['d_ff'\]"),
    ("t5", {"vocab_size": 2**40}, "T5Config.vocab_size must be at most"),
    ("t5", {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
    ("t5", {"tie_word_embeddings": []}, r"tie_word_embeddings must be true or false, got \[\]"),
    ("umt5", {"scale_decoder_outputs": "no"}, "scale_decoder_outputs must be true or false, got 'no'"),
    ("t5", {"layer_norm_epsilon": "x"}, "layer_norm_epsilon must be a number, got 'x'"),
    ("t5", {"layer_norm_epsilon": -1}, r"layer_norm_epsilon must be in \[0, 1\), got -1"),
    ("t5", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be a number, got nan"),
    ("t5", {"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon must be a number, got inf"),
    ("t5", {"layer_norm_epsilon": [1e-6]}, "layer_norm_epsilon must be a number"),
    ("t5", {"dropout_rate": "0.1"}, "dropout_rate must be a number, got '0.1'"),
    ("t5", {"relative_attention_num_buckets": "32"}, "relative_attention_num_buckets must be a whole number"),
    ("t5", {"relative_attention_max_distance": 2**40}, "relative_max_distance must be at most"),
    ("t5", {"feed_forward_proj": ["relu"]}, r"feed_forward_proj is \['relu'\]"),
    ("t5", {"eos_token_id": "1"}, "eos_token_id must be a token id or a list of them, got '1'"),
    ("t5", {"pad_token_id": True}, "pad_token_id must be a token id"),
    ("t5", {"eos_token_id": V}, f"eos_token_id={V} is outside of the vocabulary of {V}"),
    ("t5", {"dense_act_fn": "x" * 10**6}, "dense_act_fn is 'xxx"),
    ("llama", {"num_hidden_layers": 100_000_000}, "DecoderConfig.num_layers must be at most 10,000"),
    ("qwen2", {"num_hidden_layers": 100_000_000}, "num_hidden_layers must be at most 10,000, got 100000000"),
    ("llama", {"num_attention_heads": 0}, "DecoderConfig.num_heads must be at least 1, got 0"),
    ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
    ("llama", {"attention_bias": "false"}, "attention_bias must be true or false, got 'false'"),
    ("llama", {"mlp_bias": []}, r"mlp_bias must be true or false, got \[\]"),
    ("llama", {"rms_norm_eps": "x"}, "rms_norm_eps must be a number, got 'x'"),
    ("llama", {"rms_norm_eps": -1.0}, r"rms_norm_eps must be in \[0, 1\), got -1.0"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number, got nan"),
    ("llama", {"initializer_range": "0.02"}, "initializer_range must be a number"),
    ("llama", {"eos_token_id": "ab"}, "eos_token_id must be a token id or a list of them, got 'ab'"),
    ("llama", {"eos_token_id": [2, V]}, f"more_stop_ids={V} is outside"),
    ("llama", {"bos_token_id": "1"}, "bos_token_id must be a whole number, got '1'"),
    ("llama", {"rope_theta": "10000"}, "rope_theta must be a number above 0, got '10000'"),
    ("llama", {"rope_theta": float("nan")}, "rope_theta must be a number above 0, got nan"),
    ("llama", {"rope_theta": 0}, "rope_theta must be a number above 0, got 0"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling and rope_parameters must be objects or null, got 'linear'"),
    ("llama", {"rope_scaling": {"rope_type": ["linear"]}}, r"rotary positions of type \['linear'\] are not"),
    ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rotary positions of type 'longrope'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "LinearScaling.factor must be a number above 0"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": float("inf")}}, "factor must be a number above 0, got inf"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": "no"}}, "truncate must be True or False"),
    ("qwen3", {"use_sliding_window": "yes"}, "use_sliding_window must be true or false"),
    ("qwen3", {"layer_types": "full"}, "layer_types must be 2 times"),
    ("qwen3", {"layer_types": [["full_attention"]] * 2}, "layer_types must be 2 times"),
    ("mistral", {"sliding_window": "8"}, r"\['sliding_window'\] must be whole numbers or null"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "message"), WRONG)
def test_a_value_of_the_wrong_type_or_size_is_named(kind: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^config.json: .*{message}") as caught:
        read(kind, **values)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", CLASSES)
def test_numbers_written_otherwise_and_nulls_mean_what_they_say(kind: str) -> None:
    base = read(kind)
    floats = {key: float(value) for key, value in sizes_of(kind).items() if isinstance(value, int)}
    assert read(kind, **floats) == base
    assert isinstance(read(kind, **floats).num_layers, int)
    assert read(kind, tie_word_embeddings=int(base.tie_word_embeddings)) == base
    keys = ("layer_norm_epsilon", "rms_norm_eps", "dropout_rate", "tie_word_embeddings", "rope_theta", "hidden_act")
    for key in keys:
        assert read(kind, **{key: None}) == base


def test_a_model_type_that_is_no_name_is_named() -> None:
    for kind in (["t5"], {}, None, 5):
        with pytest.raises(ValueError, match="config: model_type is"):
            from_config({"model_type": kind}, jax.random.key(0))


def test_random_weights_beyond_all_memory_are_refused_before_they_are_made() -> None:
    huge = {"d_model": 1 << 20, "d_ff": 1 << 20, "num_layers": 100}
    with pytest.raises(ValueError, match=r"asks for [\d,]+ parameters, more than 10,000,000,000,000"):
        from_config({"model_type": "t5", **T5_SIZES, **huge}, jax.random.key(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = T5Config(**T5_SIZES, num_decoder_layers=1)
    rng = np.random.default_rng(0)
    leaves = param_shapes(T5, config).items()
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves}
    save(T5.from_params(config, params), tokenizer_of(V), tmp_path / "model")
    return tmp_path / "model"


def test_a_number_of_layers_is_held_against_the_tensors_before_anything_is_made(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    for layers, message in ((10_000, "missing encoder.block.10.layer"), (100_000_000, "must be at most 10,000")):
        (folder / "config.json").write_text(json.dumps(values | {"num_layers": layers}))
        with pytest.raises(ValueError, match=message):
            load(folder)
    (folder / "config.json").write_text(json.dumps(values | {"num_layers": 2.0, "gems_base_vocab_size": 37.0}))
    assert load(folder)[0].config.num_added_tokens == 3


def write_head(path: Path, head: Any, data: bytes = b"", length: int | None = None) -> None:
    written = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(written) if length is None else length) + written + data)


@pytest.mark.parametrize(
    ("head", "data", "length"),
    [
        ({}, b"", 1 << 62),
        ({}, b"", 200_000_000),
        ({name: {"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]} for name, at in (("a", 0), ("b", 4))},
         b"\0" * 12, None),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 60]}}, b"\0" * 8, None),
        ({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}, b"\0" * 8, None),
        ({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8, None),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8, None),
        ([1], b"", None),
    ],
)  # fmt: skip
def test_a_hostile_head_of_a_weights_file_is_named(head: Any, data: bytes, length: int | None, folder: Path) -> None:
    write_head(folder / "model.safetensors", head, data, length)
    with pytest.raises(ValueError, match=r"model\.safetensors is no whole safetensors file"):
        load(folder)


def test_the_type_of_the_tensors_is_checked_whatever_type_is_asked_for(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"shared.weight": tensors["shared.weight"].astype(np.int8)}, folder / "model.safetensors")
    for dtype in (None, "float32"):
        with pytest.raises(ValueError, match=r"tensor shared\.weight has dtype I8"):
            load(folder, dtype=dtype)


def test_a_second_table_of_tokens_must_be_a_copy(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    other = tensors["shared.weight"] + np.float32(1)
    save_file(tensors | {"encoder.embed_tokens.weight": other}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor encoder\.embed_tokens\.weight differs from shared\.weight"):
        load(folder)


def test_files_that_are_far_too_large_are_not_read(folder: Path) -> None:
    for name, size, message in (
        ("tokenizer.json", 80_000_000, r"tokenizer\.json has .* a tokenizer of 40 tokens is read up to"),
        ("config.json", 20_000_000, r"config\.json has 20,000,000 bytes"),
    ):
        with (folder / name).open("r+b") as file:
            file.truncate(size)
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_json_nested_without_end_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"config\.json is no valid JSON"):
        load(folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 200_000)
    (folder / "config.json").write_text(json.dumps(sizes_of("t5")))
    with pytest.raises(ValueError, match=r"index\.json is no index of weights"):
        load(folder)
