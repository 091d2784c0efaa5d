"""Rotary positions are those of transformers at the sizes of released models."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gems_jax.models.decoder.hf_rope import read_rope, rope_values
from gems_jax.models.decoder.rope import LinearScaling, Llama3Scaling, YarnScaling, rotate, rotation

_LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
_SCALINGS = [
    {"rope_type": "linear", "factor": 4.0},
    _LLAMA31,
    _LLAMA31 | {"factor": 32.0},
    _YARN,
    _YARN | {"attention_factor": 0.9, "beta_fast": 24.0, "beta_slow": 2.0, "truncate": False},
    _YARN | {"mscale": 0.8, "mscale_all_dim": 0.5},
]


@pytest.mark.parametrize("scaling", _SCALINGS)
@pytest.mark.parametrize("theta", [5e5, 1e6])
def test_frequencies_are_those_of_transformers(scaling, theta):
    config = LlamaConfig(max_position_embeddings=131072, head_dim=128, rope_parameters={**scaling, "rope_theta": theta})
    expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    found_theta, found = read_rope({"rope_parameters": {**scaling, "rope_theta": theta}}, 131072)
    assert found_theta == theta
    positions = np.array([0, 1, 500])
    cos, sin = rotation(jnp.asarray(positions), 128, theta, found)
    angles = positions[:, None] * expected.numpy().astype(np.float64)
    np.testing.assert_allclose(cos, np.cos(angles) * factor, atol=1e-4)
    np.testing.assert_allclose(sin, np.sin(angles) * factor, atol=1e-4)
    inverse = theta ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(found(inverse, theta)[0], expected, rtol=1e-5)


def test_scores_depend_on_the_distance_only():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 8)).astype(np.float32)

    def score(first, second):
        rotated = [rotate(jnp.asarray(x), *rotation(jnp.array([p]), 8, 100.0)) for x, p in ((q, first), (k, second))]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert score(9, 5) == pytest.approx(score(4, 0), abs=1e-5)
    assert abs(score(9, 5) - score(9, 6)) > 1e-3


@pytest.mark.parametrize("scaling", [None, LinearScaling(2.0), Llama3Scaling(8.0, 1.0, 4.0, 64), YarnScaling(4.0, 64)])
def test_written_positions_are_read_again(scaling):
    assert read_rope(rope_values(1e6, scaling), 256) == (1e6, scaling)


def test_keys_of_older_and_newer_files_are_read():
    scaling = {"type": "linear", "factor": 2.0}
    for values in (
        {"rope_theta": 5e5, "rope_scaling": scaling},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    ):
        assert read_rope(values, 64) == (5e5, LinearScaling(2.0))
    assert read_rope({}, 64) == (10000.0, None)
    assert read_rope({"rope_theta": 5e5, "rope_scaling": None}, 64) == (5e5, None)


def test_the_original_length_is_the_longest_text_where_none_is_named():
    yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    assert read_rope(yarn, 64)[1].original_max_positions == 64
    assert read_rope(yarn | {"original_max_position_embeddings": 16}, 64)[1].original_max_positions == 16
    no_factor = {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 16}}
    assert read_rope(no_factor, 64)[1].factor == 4.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' are not implemented"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' are not implemented"),
        ({"rope_scaling": {"type": "linear"}}, r"'linear' need \['factor'\]"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "LinearScaling.factor must be a number above 0, got 0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, r"unknown options \['mscale'\]"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ by kind of layer"),
        ({"rope_scaling": _LLAMA31 | {"high_freq_factor": 1.0}}, "must exceed"),
    ],
)
def test_positions_that_are_not_implemented_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        read_rope(values, 64)
