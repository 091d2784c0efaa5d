"""Low-rank adapters: closed forms in numpy, and a model with them beside the one they are merged into."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gems_jax.leaf_path import leaf_path
from gems_jax.linalg.matrix_dims import MatrixDims
from gems_jax.models import T5, T5Config, lora

RANK, ALPHA = 2, 6.0
CONFIG = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2)


def heads(path, leaf):
    """A kernel [batch, heads, head_dim, d] that contracts heads and head_dim, and a plain one."""
    return {"o": MatrixDims((1, 2), 3), "w": MatrixDims()}.get(path)


def tree():
    rng = np.random.default_rng(0)
    shapes = {"o": (2, 3, 4, 5), "w": (6, 4), "scale": (4,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def trained(adapters, seed=1):
    """Adapters with values of their own in ``b``, too."""
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(adapters)))
    leaves, treedef = jax.tree.flatten(adapters)
    return treedef.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


@pytest.fixture(scope="module")
def model():
    return T5.create(CONFIG, jax.random.key(0))


def logits(graph, params):
    ids = jnp.arange(2, 8).reshape(2, 3)
    return nnx.merge(graph, params)(ids, decoder_input_ids=ids)


def test_at_first_nothing_changes_and_afterwards_adapted_kernels_alone():
    params = tree()
    adapters = lora.init(params, RANK, jax.random.key(0), heads)
    jax.tree.map(np.testing.assert_array_equal, lora.apply(params, adapters, alpha=ALPHA, matrix_dims=heads), params)
    adapters = trained(adapters)
    changed = jax.jit(lambda p, a: lora.apply(p, a, alpha=ALPHA, matrix_dims=heads))(params, adapters)
    a, b = (np.asarray(adapters["o"][part], float) for part in "ab")
    expected = np.asarray(params["o"], float) + ALPHA / RANK * (a @ b).reshape(2, 3, 4, 5)
    np.testing.assert_allclose(changed["o"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(changed["scale"], params["scale"])


def test_first_factors_are_normal_with_the_variance_of_the_inputs_inverse():
    adapters = lora.init({"kernel": jnp.ones((3, 400, 50))}, 20, jax.random.key(0))
    a, b = np.asarray(adapters["kernel"]["a"]), np.asarray(adapters["kernel"]["b"])
    assert abs(a.var() * 400 - 1) < 0.05
    assert abs(np.mean(a**4) / a.var() ** 2 - 3) < 0.1
    assert not b.any()
    assert np.abs(a[0] - a[1]).max() > 0
    assert lora.init({"kernel": jnp.ones((4, 4))}, 1, jax.random.key(0), dtype=jnp.bfloat16)["kernel"]["a"].dtype == (
        jnp.bfloat16
    )


def test_gradients_are_those_of_the_product():
    params, adapters = tree(), trained(lora.init(tree(), RANK, jax.random.key(0), heads))
    x, y = np.random.default_rng(1).normal(size=(7, 6)), np.random.default_rng(2).normal(size=(7, 4))

    def loss(adapters):
        w = lora.apply(params, adapters, alpha=ALPHA, matrix_dims=heads)["w"]
        return jnp.sum((x.astype(np.float32) @ w - y) ** 2) / 2

    grads = jax.jit(jax.grad(loss))(adapters)
    a, b = (np.asarray(adapters["w"][part], float) for part in "ab")
    full = x.T @ (x @ (np.asarray(params["w"], float) + ALPHA / RANK * a @ b) - y)
    np.testing.assert_allclose(grads["w"]["a"], ALPHA / RANK * full @ b.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(grads["w"]["b"], ALPHA / RANK * a.T @ full, rtol=1e-4, atol=1e-3)
    assert not np.any(np.asarray(grads["o"]["a"]))


def test_a_models_adapters_train_alone_and_merge_into_a_model_with_the_same_logits(model):
    graph, params = nnx.split(model)
    before = jax.tree.map(np.asarray, params)
    adapters = lora.init(params, RANK, jax.random.key(1))
    tx = optax.adam(1e-2)

    def loss(adapters):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(graph, lora.apply(params, adapters, alpha=ALPHA)), jnp.ones((2, 3), jnp.int32)
        ).mean()

    def step(adapters, state):
        value, grads = jax.value_and_grad(loss)(adapters)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(adapters, updates), state, value

    step, state, losses = jax.jit(step), tx.init(adapters), []
    for _ in range(5):
        adapters, state, value = step(adapters, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
    merged = lora.merge(model, adapters, alpha=ALPHA)
    applied = logits(graph, lora.apply(params, adapters, alpha=ALPHA))
    np.testing.assert_allclose(logits(*nnx.split(merged)), applied, rtol=1e-6, atol=1e-6)
    assert np.abs(applied - logits(graph, params)).max() > 1e-3
    changed = {
        leaf_path(path)
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(nnx.state(merged)), jax.tree.leaves(before), strict=True
        )
        if not np.array_equal(new, old)
    }
    assert changed == set(adapters)


def test_the_number_of_trainable_parameters_is_rank_times_both_sides(model):
    adapters = lora.init(nnx.state(model, nnx.Param), RANK, jax.random.key(0))
    square, wide = RANK * (8 + 8), RANK * (8 + 16)
    expected = 2 * (4 * square + 3 * wide) + 2 * (8 * square + 3 * wide)  # encoder and decoder of two layers
    assert sum(x.size for x in jax.tree.leaves(adapters)) == expected
    assert not any("embedding" in path or "norm" in path for path in adapters)


def test_kernels_in_bfloat16_stay_so_and_are_summed_in_float32():
    params = {"kernel": jnp.full((4, 4), 256.0, jnp.bfloat16)}
    adapters = {"kernel": {"a": jnp.full((4, 1), 1.0), "b": jnp.full((1, 4), 1.5)}}
    merged = lora.apply(params, adapters, alpha=1.0)["kernel"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged.astype(jnp.float32), 258.0)  # 257.5 rounded once


@pytest.mark.parametrize("rank", [0, 5])
def test_ranks_that_a_kernel_cannot_have_are_refused(rank):
    with pytest.raises(ValueError, match=rf"rank={rank} does not suit 'kernel', a kernel of 4 x 6: 1 to 4"):
        lora.init({"kernel": jnp.ones((4, 6))}, rank, jax.random.key(0))


def test_adapters_of_other_parameters_are_refused():
    adapters = lora.init({"kernel": jnp.ones((4, 6))}, 2, jax.random.key(0))
    with pytest.raises(ValueError, match="an adapter for 'kernel', which is no kernel of these parameters"):
        lora.apply({"other": {"kernel": jnp.ones((4, 6))}}, adapters, alpha=1.0)
    with pytest.raises(ValueError, match=r"'kernel' has 'a' of shape \[4, 2\], the kernel \[5, 6\] needs \[5, 2\]"):
        lora.apply({"kernel": jnp.ones((5, 6))}, adapters, alpha=1.0)
    with pytest.raises(ValueError, match=r"has \['a'\], expected arrays 'a' and 'b'"):
        lora.apply({"kernel": jnp.ones((4, 6))}, {"kernel": {"a": jnp.ones((4, 2))}}, alpha=1.0)
    with pytest.raises(ValueError, match="nothing to adapt"):
        lora.init({"scale": jnp.ones(3)}, 1, jax.random.key(0))
