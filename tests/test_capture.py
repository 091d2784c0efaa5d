"""Second moments found in a model's program, against brute force in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import QUICK

import gems_jax as gj
from gems_jax.capture import kernel_moments
from gems_jax.leaf_path import leaf_path
from gems_jax.matrix_dims import MatrixDims, matrix_specs


def second_moment(x, mask=None):
    rows = np.asarray(x, float).reshape(-1, np.asarray(x).shape[-1])
    rows = rows if mask is None else rows[np.asarray(mask).reshape(-1) > 0]
    return rows.T @ rows / len(rows)


def find(apply, params, batch, side="in", rule=lambda path, leaf: MatrixDims(), masks=None):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    specs = {leaf_path(p): s for (p, _), s in zip(leaves, matrix_specs(params, rule), strict=True) if s is not None}
    names = {}

    def moments_of(params, batch):
        inputs, moments = kernel_moments(apply, params, batch, specs, side, masks)
        names.update(inputs)
        return moments

    moments = jax.jit(moments_of, compiler_options=QUICK)(params, batch)
    return names, moments


def array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def assert_moment(found, expected):
    np.testing.assert_allclose(found.matrix(), expected, rtol=2e-5, atol=1e-5)


def test_kernels_that_share_an_input_share_its_moment():
    params = {"q": array(4, 3), "k": array(4, 3, seed=1), "out": array(3, 5)}
    x = array(2, 6, 4)
    apply = lambda p, x: jnp.tanh((x @ p["q"]) * (x @ p["k"])) @ p["out"]  # noqa: E731
    inputs, moments = find(apply, params, x)
    assert inputs["q"] == inputs["k"] != inputs["out"]
    assert set(moments) == {inputs["q"], "out"}
    assert_moment(moments[inputs["q"]], second_moment(x))
    assert_moment(moments["out"], second_moment(np.tanh((x @ params["q"]) * (x @ params["k"]))))


def test_outputs_are_found_as_well():
    params, x = {"w": array(4, 3)}, array(2, 6, 4)
    _, moments = find(lambda p, x: jnp.einsum("oi,bsi->bos", p["w"].T, x), params, x, side="out")
    assert_moment(moments["w"], second_moment(np.asarray(x) @ np.asarray(params["w"])))


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_have_a_moment_each(remat):
    params = {"wi": array(3, 4, 5), "wo": array(3, 5, 4)}
    x = array(2, 6, 4)

    def block(x, layer):
        return x + jnp.tanh(x @ layer["wi"]) @ layer["wo"], None

    body = jax.checkpoint(block) if remat else block
    inputs, moments = find(lambda p, x: jax.lax.scan(body, x, p)[0], params, x)
    state, expected = np.asarray(x, float), {"wi": [], "wo": []}
    for layer in range(3):
        hidden = np.tanh(state @ np.asarray(params["wi"][layer], float))
        expected["wi"].append(second_moment(state))
        expected["wo"].append(second_moment(hidden))
        state = state + hidden @ np.asarray(params["wo"][layer], float)
    for name in ("wi", "wo"):
        found = moments[inputs[name]]
        np.testing.assert_allclose(found.total / found.count[:, None, None], expected[name], rtol=2e-5, atol=1e-5)


def test_a_scan_over_layers_that_attend_to_one_constant_counts_it_once():
    params = {"k": array(3, 4, 5)}
    memory = array(2, 6, 4)
    apply = lambda p, m: jax.lax.scan(lambda c, w: (c + (m @ w).sum(), None), 0.0, p["k"])[0]  # noqa: E731
    _, moments = find(apply, params, memory)
    assert moments["k"].total.shape == (4, 4)
    assert_moment(moments["k"], second_moment(memory))


def test_head_split_kernels_are_seen_through_einsum():
    params = {"q": array(4, 2, 3), "o": array(2, 3, 4)}
    x = array(2, 6, 4)

    def apply(p, x):
        return jnp.einsum("bshd,hdm->bsm", jnp.einsum("bsm,mhd->bshd", x, p["q"]), p["o"])

    rule = lambda path, leaf: MatrixDims(0, (1, 2)) if path == "q" else MatrixDims((0, 1), 2)  # noqa: E731
    _, moments = find(apply, params, x, rule=rule)
    assert_moment(moments["q"], second_moment(x))
    heads = np.einsum("bsm,mhd->bshd", np.asarray(x, float), np.asarray(params["q"], float)).reshape(2, 6, 6)
    assert_moment(moments["o"], second_moment(heads))


def test_masks_are_matched_by_shape_and_padding_is_left_out():
    params, x = {"w": array(4, 3)}, array(2, 6, 4)
    mask = jnp.asarray(np.arange(6) < np.array([[6], [2]]), jnp.int32)
    _, moments = find(lambda p, x: x @ p["w"], params, x, masks={(2, 6): mask})
    assert_moment(moments["w"], second_moment(x, mask))
    assert int(moments["w"].count) == 8
    _, moments = find(lambda p, x: x.reshape(12, 4) @ p["w"], params, x, masks={(2, 6): mask})
    assert_moment(moments["w"], second_moment(x, mask))


def test_kernels_in_another_precision_and_under_jit_are_recognised():
    params, x = {"w": array(4, 3), "unused": array(4, 4)}, array(2, 6, 4)
    apply = lambda p, x: jax.jit(lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16))(p["w"], x)  # noqa: E731
    inputs, moments = find(apply, params, x)
    assert set(inputs) == {"w"}
    assert_moment(moments["w"], second_moment(np.asarray(x.astype(jnp.bfloat16), np.float32)))


def test_a_flax_model_is_calibrated_as_it_is():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(6, 8, rngs=rngs)
            self.second = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x, attention_mask=None):
            return self.second(nnx.relu(self.first(x)))

    model = Model(nnx.Rngs(0))
    mask = np.arange(7) < np.array([[7], [3], [5]])
    batches = [{"x": array(3, 7, 6, seed=s), "attention_mask": jnp.asarray(mask, jnp.int32)} for s in range(3)]
    ns = gj.estimate_null_space(model, batches, rank=2, progress=False)
    x = np.concatenate([np.asarray(b["x"], float) for b in batches])
    hidden = np.maximum(x @ np.asarray(model.first.kernel[...]) + np.asarray(model.first.bias[...]), 0)
    keep = np.concatenate([mask] * 3)
    for path, rows in (("first/kernel", x), ("second/kernel", hidden)):
        vectors = np.linalg.eigh(second_moment(rows, keep))[1][:, ::-1][:, :2]
        found = np.asarray(ns.factor(path).frame().project(jnp.eye(rows.shape[-1])))
        np.testing.assert_allclose(found, np.eye(rows.shape[-1]) - vectors @ vectors.T, atol=1e-4)
    ns.check_weights(nnx.state(model, nnx.Param))


def test_an_empty_corpus_and_a_model_without_kernels_are_refused():
    params = {"w": array(4, 3)}
    model = lambda params, x: x @ params["w"]  # noqa: E731
    with pytest.raises(ValueError, match="no batches"):
        gj.estimate_null_space(model, [], rank=1, params=params, progress=False)
    with pytest.raises(ValueError, match="no kernels"):
        gj.estimate_null_space(
            model, [{"x": array(2, 4)}], rank=1, params=params, progress=False, matrix_dims=lambda p, x: None
        )
    with pytest.raises(ValueError, match="uses none of its kernels"):
        gj.estimate_null_space(lambda params, x: x, [{"x": array(2, 4)}], rank=1, params=params, progress=False)
