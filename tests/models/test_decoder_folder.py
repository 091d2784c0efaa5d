"""Decoders from and to Hugging Face folders."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from decoder_pairs import VARIANTS, ragged_batch, random_decoder, torch_decoder
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import gems_jax as gj
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.models.decoder.hf import config_values, read_config
from gems_jax.models.decoder.model import Decoder, DecoderConfig
from gems_jax.models.params import param_shapes

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["red lamps and blue chairs", "a lamp on a chair"], vocab_size=320, num_sentinels=2)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_of_transformers_comes_back_with_the_same_tensors_and_logits(name, tokenizer, tmp_path):
    reference = torch_decoder(name, vocab_size=len(tokenizer))
    reference.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    model, loaded_tokenizer = gj.models.load(tmp_path / "theirs")
    gj.models.save(model, loaded_tokenizer, tmp_path / "ours")

    theirs, ours = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours"))
    assert set(theirs) == set(ours)
    for tensor in theirs:
        assert theirs[tensor].dtype == ours[tensor].dtype
        np.testing.assert_array_equal(theirs[tensor], ours[tensor])

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    ids, mask = (torch.tensor(array % len(tokenizer)) for array in ragged_batch())
    with torch.no_grad():
        torch.testing.assert_close(again(ids, mask).logits, reference(ids, mask).logits, rtol=0, atol=0)
    assert gj.models.load(tmp_path / "ours")[0].config == model.config


def test_bfloat16_folders_keep_their_bits(tokenizer, tmp_path):
    reference = torch_decoder("qwen3 tied", vocab_size=len(tokenizer)).to(torch.bfloat16)
    reference.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    model, _ = gj.models.load(tmp_path / "theirs")
    assert model.config.param_dtype == "bfloat16"
    gj.models.save(model, tokenizer, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    expected = reference.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_item_rows_stand_behind_the_pretrained_ones_in_a_folder(tokenizer, tmp_path):
    config = DecoderConfig(
        vocab_size=len(tokenizer) - 3,
        num_added_tokens=3,
        d_model=8,
        d_ff=12,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        eos_token_id=1,
    )
    model = random_decoder(config)
    gj.models.save(model, tokenizer, tmp_path)
    again = gj.models.load(tmp_path)[0]
    assert again.config == config
    np.testing.assert_array_equal(again.item_head.embedding[...], model.item_head.embedding[...])
    ids = np.array([[3, len(tokenizer) - 1, 5]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor(ids)).logits
    np.testing.assert_allclose(again(ids), expected, atol=1e-4)


def _read(kind, **options):
    return read_config({"model_type": kind, **_SIZES, **options}, "config.json")


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_absent_keys_have_the_defaults_of_transformers(kind):
    values = AutoConfig.for_model(kind, **_SIZES).to_dict()
    if kind == "qwen2" or kind == "qwen3":
        values["num_key_value_heads"] = 4  # 32 heads for 4 cannot be
        assert _read(kind, num_key_value_heads=4) == read_config(values, "config.json")
    elif kind == "mistral":
        values["num_key_value_heads"] = 2
        assert _read(kind, num_key_value_heads=2) == read_config(values, "config.json")
    else:
        assert _read(kind) == read_config(values, "config.json")


_RELEASED = {
    # Qwen2.5-0.5B
    494_032_768: {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    # Llama-3.2-1B
    1_235_814_400: {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    # Mistral-7B-v0.1
    7_241_732_096: {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "vocab_size": 32000,
    },
}


@pytest.mark.parametrize("count", _RELEASED)
def test_released_configs_give_models_with_the_published_number_of_parameters(count):
    shapes = param_shapes(Decoder, read_config(_RELEASED[count], "config.json"))
    assert sum(leaf.size for leaf in shapes.values()) == count


@pytest.mark.parametrize(
    ("kind", "options", "windows"),
    [
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": 7}, 7),
        ("qwen2", {"sliding_window": 7, "max_window_layers": 1}, None),
        ("qwen2", {"sliding_window": 7, "max_window_layers": 1, "use_sliding_window": True}, (None, 7, 7)),
        ("qwen3", {"sliding_window": 7, "max_window_layers": 0, "use_sliding_window": True}, 7),
        ("qwen3", {"sliding_window": 7, "max_window_layers": 3, "use_sliding_window": True}, None),
    ],
)
def test_windows_hold_where_transformers_has_them(kind, options, windows):
    config = _read(kind, num_key_value_heads=2, **options)
    assert config.windows == windows
    assert read_config(config_values(config), "config.json") == config


def test_tokens_that_end_a_text_may_be_several_and_padding_none():
    config = _read("llama", eos_token_id=[5, 6, 7])
    assert (config.eos_token_id, config.more_stop_ids, config.stop_ids) == (5, (6, 7), (5, 6, 7))
    assert config.pad_token_id == 5
    assert config_values(config)["eos_token_id"] == [5, 6, 7]
    assert config_values(config)["pad_token_id"] is None
    endless = _read("qwen2", num_key_value_heads=2)
    assert (endless.eos_token_id, endless.pad_token_id, endless.stop_ids) == (None, 0, ())
    assert _read("llama", pad_token_id=9).pad_token_id == 9
    # Named as in the file, also where it is the end token.
    for pad in (9, 5):
        assert config_values(_read("llama", pad_token_id=pad, eos_token_id=5))["pad_token_id"] == pad


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', implemented for llama is 'silu'"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "config.json: rotary positions of type"),
        ("llama", {"quantization_config": {"bits": 4}}, r"unknown options \['quantization_config'\]"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures is"),
        ("qwen2", {"attention_bias": True}, "attention_bias is True, implemented for qwen2 is False"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias is True"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types must be 3 times"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window or sliding_window is not set"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types is .* its absence"),
        ("llama", {"num_hidden_layers": None}, r"needs whole numbers for \['num_hidden_layers'\]"),
        ("llama", {"vocab_size": "61"}, r"needs whole numbers for \['vocab_size'\]"),
        ("llama", {"head_dim": "8"}, r"\['head_dim'\] must be whole numbers or null, got \['8'\]"),
        ("llama", {"num_key_value_heads": 3}, "num_heads=4 must be a multiple of num_kv_heads=3"),
        ("llama", {"bos_token_id": 61}, "bos_token_id=61 is outside"),
        ("gemma3", {}, "model_type is 'gemma3', decoders are"),
    ],
)
def test_options_that_are_not_implemented_are_refused_by_name(kind, options, message):
    options = {"num_key_value_heads": 2, **options}
    with pytest.raises(ValueError, match=f"config.json: .*{message}|^{message}"):
        _read(kind, **options)


def test_options_without_effect_are_no_error():
    assert _read("llama", torch_dtype="float16", use_cache=False, use_mrope=False, rope_interleaved=None) == _read(
        "llama"
    )


def test_a_written_config_is_plain_json():
    config = dataclasses.replace(_read("llama"), model_type="qwen3", attention_bias=True)
    assert read_config(json.loads(json.dumps(config_values(config))), "config.json") == config
