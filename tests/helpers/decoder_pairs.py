"""Small decoders with random weights, ours beside the one of transformers on torch."""

import dataclasses
import json
import logging

import numpy as np
import torch
import transformers

from gems_jax.models.decoder.hf import read_config
from gems_jax.models.decoder.model import Decoder
from gems_jax.models.params import param_shapes
from gems_jax.models.registry import FAMILIES

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

VARIANTS = {
    "llama-2": ("Llama", {"num_key_value_heads": 4}),
    "llama-3 tied": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **_LLAMA3},
            "head_dim": 8,
            "tie_word_embeddings": True,
        },
    ),
    "llama biases, linear": (
        "Llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 10,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_theta": 1e4,
        },
    ),
    "qwen2 tied, yarn": ("Qwen2", {"rope_scaling": {"rope_type": "yarn", **_YARN}, "tie_word_embeddings": True}),
    "qwen2 window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "rope_theta": 1e6},
    ),
    "qwen3 tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3 window": (
        "Qwen3",
        {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": _ALTERNATING,
            "attention_bias": True,
        },
    ),
    "mistral": ("Mistral", {"head_dim": 8, "sliding_window": 4}),
}


def torch_decoder(name, **options):
    """A model of transformers with every parameter random, biases and norms too."""
    kind, variant = VARIANTS[name]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = getattr(transformers, f"{kind}Config")(**{**_SIZES, **variant, **options})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.25 * noise if parameter.ndim == 2 else 0.3 * noise + parameter)
    return model


def ours(model, **options):
    """Our decoder with the weights of one of transformers."""
    config = read_config(json.loads(model.config.to_json_string()), "config")
    config = dataclasses.replace(config, **options)
    return Decoder.from_params(config, leaves(config, model.state_dict()))


def random_decoder(config):
    """Our decoder with random weights, drawn without compiling anything."""
    rng = np.random.default_rng(0)
    shapes = param_shapes(Decoder, config)
    return Decoder.from_params(config, {leaf: 0.3 * rng.normal(size=of.shape) for leaf, of in shapes.items()})


def leaves(config, tensors):
    """Leaf path -> array, from tensors by the names of transformers."""
    found = {}
    for leaf, weight in FAMILIES[config.model_type].weights(config).items():
        parts = [tensors[name].detach().numpy() for name in weight.names()]
        parts = [part.T for part in parts] if weight.transposed else parts
        found[leaf] = parts[0] if weight.layers is None else np.stack(parts)
    return found


def ragged_batch():
    """Ids ``[3, 11]`` and mask: a row padded on the left, one on the right, one whole."""
    ids = np.random.default_rng(0).integers(3, 61, (3, 11))
    mask = np.ones_like(ids)
    mask[0, :4] = 0
    mask[1, 7:] = 0
    return np.where(mask, ids, 0), mask


def torch_t5():
    """A T5 of transformers with random weights, and ours with the same."""
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "vocab_size": 61}
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    family = FAMILIES["t5"]
    ours_config = family.read_config(json.loads(config.to_json_string()), "config")
    return model, family.model.from_params(ours_config, leaves(ours_config, model.state_dict()))
