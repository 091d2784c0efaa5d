"""Policies of recomputation: the same gradients, from more or less memory."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from t5_rows import SIZES, batch_of

from gems_jax.models import T5, T5Config
from gems_jax.models.params import params_of
from gems_jax.models.remat import checkpointed


def test_the_policies_of_recomputation_give_the_same_gradients_from_more_or_less_memory() -> None:
    ids = batch_of()["input_ids"]
    config = T5Config(**SIZES)
    flat = params_of(T5.create(config, jax.random.key(0)))
    results, sizes = {}, {}
    for remat in ("none", "dots", "full"):
        graph, params = nnx.split(T5.from_params(dataclasses.replace(config, remat=remat), flat).encoder, nnx.Param)

        def loss(params: Any, x: jax.Array, graph: Any = graph) -> jax.Array:
            return (nnx.merge(graph, params)(x, lambda block, x, bias, key: block(x, bias, None, key), None) ** 3).sum()

        x = jax.random.normal(jax.random.key(1), (*ids.shape, 16))
        compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
        results[remat] = compiled(params, x)
        sizes[remat] = compiled.memory_analysis().temp_size_in_bytes
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), results["none"], results[remat]
        )
    assert sizes["full"] < sizes["dots"] < sizes["none"]


def test_an_unknown_policy_is_named() -> None:
    for policy in ("all", True, None):
        with pytest.raises(ValueError, match="remat must be one of 'none', 'full', 'dots', got"):
            checkpointed(lambda x, y: (x, y), policy)  # type: ignore[arg-type]
