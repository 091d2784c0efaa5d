"""Attention: its implementations against numpy and each other, and which of them runs where."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gems_jax.models import T5, T5Config
from gems_jax.models.attention import attend

B, T, S, HEADS, WIDTH = 2, 4, 6, 3, 8


def problem(dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    mask = rng.random((B, 1, T, S)) < 0.7
    mask[..., 0] = True
    return {
        "queries": rng.normal(size=(B, T, HEADS, WIDTH)).astype(dtype),
        "keys": rng.normal(size=(B, S, HEADS, WIDTH)).astype(dtype),
        "values": rng.normal(size=(B, S, HEADS, WIDTH)).astype(dtype),
        "bias": rng.normal(size=(1, HEADS, T, S)).astype(np.float32),
        "mask": mask,
    }


def expected(queries: Any, keys: Any, values: Any, bias: Any = 0.0, mask: Any = True, scale: float = 1.0) -> np.ndarray:
    scores = np.einsum("bthd,bshd->bhts", queries.astype(float), keys.astype(float)) * scale + bias
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), values.astype(float))


@pytest.mark.parametrize("path", ["einsum", "xla"])
@pytest.mark.parametrize("left_out", [(), ("bias",), ("mask",), ("bias", "mask")])
def test_each_path_equals_the_formula(path: str, left_out: tuple[str, ...]) -> None:
    arguments = {name: value for name, value in problem().items() if name not in left_out}
    found = attend(**arguments, scale=0.3, path=path)
    np.testing.assert_allclose(found, expected(**arguments, scale=0.3), atol=1e-5)


def test_the_paths_have_equal_gradients() -> None:
    arguments = problem()
    mask = arguments.pop("mask")
    weights = np.random.default_rng(1).normal(size=(B, T, HEADS, WIDTH)).astype(np.float32)
    grads = [
        jax.jit(jax.grad(lambda a, path=path: (attend(**a, mask=mask, path=path) * weights).sum()))(arguments)
        for path in ("einsum", "xla")
    ]
    for name in arguments:
        np.testing.assert_allclose(grads[0][name], grads[1][name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("path", ["einsum", "xla"])
def test_a_row_without_keys_is_finite(path: str) -> None:
    arguments = problem()
    arguments["mask"] = arguments["mask"].copy()
    arguments["mask"][0] = False
    grads = jax.grad(lambda q: attend(**{**arguments, "queries": q}, path=path).sum())(arguments["queries"])
    assert bool(jnp.isfinite(grads).all())


@pytest.mark.parametrize("path", ["einsum", "xla"])
def test_the_softmax_of_bfloat16_is_computed_in_float32(path: str) -> None:
    arguments = problem(jnp.bfloat16)
    found = attend(**arguments, path=path)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), expected(**arguments), atol=0.03)


def test_dropout_of_the_weights_keeps_their_mean() -> None:
    arguments = problem()
    del arguments["mask"]
    keys = jax.random.split(jax.random.key(0), 2000)
    found = jax.jit(jax.vmap(lambda key: attend(**arguments, dropout_rate=0.4, dropout_key=key)))(keys)
    np.testing.assert_allclose(found.mean(0), expected(**arguments), atol=0.1)
    assert float(found.std(0).mean()) > 0.1


def test_a_model_takes_the_path_of_its_backend_and_gives_the_same_on_either(monkeypatch: Any) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    model = T5.create(T5Config(vocab_size=20, **sizes), jax.random.key(0))
    ids = np.array([[3, 4, 5, 1]])
    mask = np.array([[1, 1, 1, 0]])
    called = []
    library = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, **k: called.append(1) or library(*a, **k))
    results = []
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        results.append(model(ids, mask, ids))
        assert bool(called) == (backend == "tpu")
    np.testing.assert_allclose(*results, atol=1e-5)
    with pytest.raises(ValueError, match="path must be one of .* got 'flash'"):
        attend(**problem(), path="flash")
