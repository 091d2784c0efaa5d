"""Second moments found in a model's program, against brute force in numpy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gems_jax as gj
from gems_jax.leaf_path import leaf_path
from gems_jax.linalg.matrix_dims import MatrixDims, matrix_specs, resolve
from gems_jax.null_space.estimate import observed_matrix_dims
from gems_jax.null_space.second_moment import symmetric
from gems_jax.null_space.tracing.kernel_inputs import add_moments, kernel_inputs
from gems_jax.null_space.tracing.position_masks import Masks


def second_moment(x, mask=None):
    rows = np.asarray(x, float).reshape(-1, np.asarray(x).shape[-1])
    rows = rows if mask is None else rows[np.asarray(mask).reshape(-1) > 0]
    return rows.T @ rows / len(rows)


def find(apply, params, batch, side="in", rule=lambda path, leaf: MatrixDims(), masks=None):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    specs = {leaf_path(p): s for (p, _), s in zip(leaves, matrix_specs(params, rule), strict=True) if s is not None}
    found = kernel_inputs(apply, params, batch, specs, side)
    zeros = {entry.name: entry.zeros() for entry in found.inputs}

    def add(params, batch, moments):
        return add_moments(apply, params, batch, moments, specs, side, masks)

    return found.names(), jax.jit(add)(params, batch, zeros)


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
    _, moments = find(lambda p, x: x @ p["w"], params, x, masks=Masks(mask))
    assert_moment(moments["w"], second_moment(x, mask))
    assert int(moments["w"].count) == 8
    _, moments = find(lambda p, x: x.reshape(12, 4) @ p["w"], params, x, masks=Masks(mask))
    assert_moment(moments["w"], second_moment(x, mask))


def test_kernels_in_another_precision_and_under_jit_are_recognised():
    params, x = {"w": array(4, 3), "unused": array(4, 4)}, array(2, 6, 4)
    apply = lambda p, x: jax.jit(lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16))(p["w"], x)  # noqa: E731
    inputs, moments = find(apply, params, x)
    assert set(inputs) == {"w"}
    assert_moment(moments["w"], second_moment(np.asarray(x.astype(jnp.bfloat16), np.float32)))


def test_an_input_is_one_however_each_kernel_casts_or_lays_it_out():
    params, x = {"q": array(4, 3), "k": array(4, 3, seed=1), "v": array(4, 3, seed=2)}, array(2, 6, 4)

    def apply(p, x):
        casts = [x.astype(jnp.bfloat16) @ p[name].astype(jnp.bfloat16) for name in "qk"]
        return casts, x.reshape(12, 4) @ p["v"], jnp.einsum("dh,bsd->hsb", p["v"], x)

    inputs, moments = find(apply, params, x)
    assert set(moments) == {"k"}
    assert inputs == {"q": "k", "k": "k", "v": "k"}
    assert_moment(moments["k"], second_moment(np.asarray(x.astype(jnp.bfloat16), np.float32)))


def test_heads_joined_for_an_output_kernel_keep_their_order_and_their_mask():
    params, x = {"o": array(6, 4)}, array(2, 3, 5, 2)  # batch, heads, tokens, width
    mask = jnp.asarray(np.arange(5) < np.array([[5], [2]]), jnp.int32)
    _, moments = find(lambda p, x: x.swapaxes(1, 2).reshape(10, 6) @ p["o"], params, x, masks=Masks(mask))
    assert_moment(moments["o"], second_moment(np.asarray(x).transpose(0, 2, 1, 3).reshape(2, 5, 6), mask))
    assert int(moments["o"].count) == 7


def test_layers_of_a_stack_taken_one_by_one_fill_its_moments():
    params, x = {"w": array(3, 4, 4)}, array(2, 6, 4)

    def apply(p, x):
        for layer in (0, 2):
            x = jnp.tanh(x @ p["w"][layer])
        return x

    _, moments = find(apply, params, x)
    assert moments["w"].count.tolist() == [12, 0, 12]
    hidden = np.tanh(np.asarray(x) @ np.asarray(params["w"][0]))
    np.testing.assert_allclose(
        moments["w"].matrix(), [second_moment(x), np.zeros((4, 4)), second_moment(hidden)], rtol=2e-5, atol=1e-5
    )


def test_a_kernel_that_is_used_twice_has_the_moment_of_both_inputs():
    params, x, y = {"w": array(4, 4)}, array(2, 6, 4), array(5, 4)
    _, moments = find(lambda p, b: (b[0] @ p["w"], b[1] @ p["w"]), params, (x, y))
    assert_moment(moments["w"], second_moment(np.concatenate([np.asarray(x).reshape(-1, 4), y])))


def test_experts_have_a_moment_each_and_share_what_all_of_them_see():
    params, x, routed = {"w": array(3, 4, 5), "wide": array(3, 4, 5)}, array(2, 6, 4), array(3, 7, 4)

    def apply(p, batch):
        x, routed = batch
        return jax.vmap(jnp.matmul)(routed, p["w"]), jnp.einsum("bsd,edf->ebsf", x, p["wide"])

    _, moments = find(apply, params, (x, routed))
    np.testing.assert_allclose(moments["w"].matrix(), [second_moment(one) for one in routed], rtol=2e-5, atol=1e-5)
    assert_moment(moments["wide"], second_moment(x))
    _, moments = find(apply, params, (x, routed), side="out")
    products = np.einsum("bsd,edf->ebsf", np.asarray(x, float), np.asarray(params["wide"], float))
    np.testing.assert_allclose(moments["wide"].matrix(), [second_moment(one) for one in products], rtol=2e-5, atol=1e-5)


def test_scans_within_scans_and_backwards_index_every_layer():
    params, x = {"w": array(2, 3, 4, 4)}, array(5, 4)

    def apply(p, x):
        inner = lambda x, w: (jnp.tanh(x @ w), x.sum())  # noqa: E731
        outer = lambda x, ws: jax.lax.scan(inner, x, ws, reverse=True)  # noqa: E731
        return jax.lax.scan(outer, x, p["w"])

    _, moments = find(apply, params, x)
    state, expected = np.asarray(x, float), np.zeros((2, 3, 4, 4))
    for i in range(2):
        for j in (2, 1, 0):
            expected[i, j] = second_moment(state)
            state = np.tanh(state @ np.asarray(params["w"][i, j], float))
    np.testing.assert_allclose(moments["w"].matrix(), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("taken", [False, True])
def test_branches_count_where_they_are_taken(taken):
    params, x = {"yes": array(4, 4), "both": array(4, 4, seed=1)}, array(5, 4)

    def apply(p, batch):
        x, flag = batch
        return jax.lax.cond(flag, lambda x: jnp.tanh(x @ p["yes"]) @ p["both"], lambda x: x @ p["both"], x)

    _, moments = find(apply, params, (x, jnp.asarray(taken)))
    assert int(moments["yes"].count) == 5 * taken
    seen = np.tanh(np.asarray(x) @ np.asarray(params["yes"])) if taken else x
    assert_moment(moments["both"], second_moment(seen))


def test_loops_count_every_step():
    params, x = {"w": array(4, 4) / 3}, array(5, 4)

    def apply(p, x):
        step = lambda state: (state[0] + 1, jnp.tanh(state[1] @ p["w"]))  # noqa: E731
        return jax.lax.while_loop(lambda state: state[0] < 3, step, (0, x))

    _, moments = find(apply, params, x)
    states = [np.asarray(x, float)]
    for _ in range(2):
        states.append(np.tanh(states[-1] @ np.asarray(params["w"], float)))
    assert int(moments["w"].count) == 15
    assert_moment(moments["w"], second_moment(np.concatenate(states)))


def test_functions_with_derivatives_of_their_own_are_looked_into():
    @jax.custom_vjp
    def product(w, x):
        return x @ w

    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (kept[1].T @ g, g @ kept[0].T))
    params, x = {"w": array(4, 3), "v": array(4, 3)}, array(5, 4)
    relu = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    relu.defjvp(lambda primals, tangents: (relu(*primals), tangents[0] * (primals[0] > 0)))
    _, moments = find(lambda p, x: product(p["w"], x) + relu(x) @ p["v"], params, x)
    assert_moment(moments["w"], second_moment(x))
    assert_moment(moments["v"], second_moment(np.maximum(x, 0)))


def test_blocks_above_the_diagonal_are_left_out_of_wide_moments():
    params, x = {"w": array(300, 2), "stack": array(2, 300, 2)}, array(7, 300)
    apply = lambda p, x: (x @ p["w"], jax.lax.scan(lambda c, w: (c * 2, c @ w), x, p["stack"]))  # noqa: E731
    _, moments = find(apply, params, x)
    assert np.all(moments["w"].total[:128, 128:] == 0)
    np.testing.assert_allclose(symmetric(np.asarray(moments["w"].matrix())), second_moment(x), rtol=2e-5, atol=1e-5)
    for n in range(2):
        expected = second_moment(np.asarray(x) * 2**n)
        np.testing.assert_allclose(symmetric(np.asarray(moments["stack"].matrix()[n])), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (lambda p, x: x, "the pass does not use it"),
        (lambda p, x: x @ (p["w"] * p["w"]), "it goes into 'mul', which calibration does not look into"),
        (lambda p, x: x @ p["w"].T, r"it is used as MatrixDims\(in_axes=\(1,\), out_axes=\(0,\)\), not in the role"),
        (lambda p, x: jax.lax.scan(lambda w, x: (w * x[0], x @ w), p["w"], x), "it is changed in the carry of a scan"),
        (lambda p, x: x @ (p["w"] @ p["w"]), "it is multiplied with another kernel"),
        (lambda p, x: x @ p["w"].reshape(2, 8).reshape(4, 4), "it goes through 'reshape' in a way that is not"),
        (lambda p, x: x[:, :2] @ p["w"][:2] + x[:, 2:] @ p["w"][2:], "it is multiplied with activations in parts"),
        (lambda p, x: (x * 1j) @ p["w"], "it is multiplied with activations as complex numbers"),
        (lambda p, x: jnp.einsum("nd,nde->e", x, jnp.broadcast_to(p["w"], (2, 4, 4))), "it is .* after it was copied"),
    ],
    ids=["unused", "times w", "transposed", "carried", "joined", "reshaped", "in parts", "complex", "copies summed"],
)
def test_uses_that_are_not_seen_are_told(apply, reason):
    specs = {"w": resolve(MatrixDims(), (4, 4))}
    found = kernel_inputs(apply, {"w": array(4, 4)}, array(2, 4), specs)
    assert not found.inputs
    assert re.match(reason, found.remarks["w"])


def test_parts_of_a_stack_in_loops_of_their_own_count_for_their_own_layers():
    params, x = {"w": array(5, 4, 4)}, array(3, 2, 4)

    def apply(p, x):
        layer = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
        first, _ = jax.lax.scan(layer, x, p["w"][:2])
        then, _ = jax.lax.scan(layer, first, p["w"][2:4], reverse=True)
        return then @ p["w"][4]

    _, moments = find(apply, params, x)
    h = np.asarray(x, float)
    for layer in (0, 1, 3, 2, 4):
        found = symmetric(np.asarray(moments["w"].matrix()[layer]))
        np.testing.assert_allclose(found, second_moment(h), rtol=2e-5, atol=1e-5)
        h = np.tanh(h @ np.asarray(params["w"][layer]))


def test_kernels_that_are_split_scaled_or_copied_keep_their_inputs():
    params, x = {name: array(4, 4, seed=n) for n, name in enumerate("abc")}, array(2, 6, 4)

    def apply(p, x):
        left, right = jnp.split(p["a"], 2, axis=1)
        x = jnp.concatenate([x @ left, x @ right], -1)
        return jnp.matmul(jnp.tanh(x @ (-p["b"] * 2 / 3)), jnp.broadcast_to(p["c"], (2, 4, 4)))

    _, moments = find(apply, params, x)
    h = np.asarray(x, float)
    for name, after in (("a", lambda h: h), ("b", lambda h: np.tanh(-h * 2 / 3)), ("c", None)):
        assert_moment(moments[name], second_moment(h))
        h = None if after is None else after(h @ np.asarray(params[name]))


def test_batches_of_another_kind_are_refused():
    params, specs = {"w": array(4, 4)}, {"w": resolve(MatrixDims(), (4, 4))}
    apply = lambda p, x: x @ p["w"] if x.ndim == 2 else x  # noqa: E731
    (entry,) = kernel_inputs(apply, params, array(2, 4), specs).inputs
    with pytest.raises(ValueError, match="no input of its own at 'w'"):
        add_moments(apply, params, array(3, 2, 4), {"w": entry.zeros()}, specs)


@pytest.mark.slow
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
        found = np.asarray(ns.factor(path).projector().project(jnp.eye(rows.shape[-1])))
        np.testing.assert_allclose(found, np.eye(rows.shape[-1]) - vectors @ vectors.T, atol=1e-4)
    ns.check_weights(nnx.state(model, nnx.Param))


@pytest.mark.slow
def test_a_flax_model_with_head_split_kernels_is_calibrated_by_the_roles_observed():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Embed(11, 6, rngs=rngs)
            self.q = nnx.LinearGeneral(6, (2, 3), rngs=rngs)
            self.o = nnx.LinearGeneral((2, 3), 6, axis=(-2, -1), rngs=rngs)
            self.mix = nnx.Einsum("bsd,dhf->bshf", (6, 2, 4), rngs=rngs)
            self.dense = nnx.Linear(6, 5, rngs=rngs)

        def __call__(self, ids):
            x = self.table(ids)
            return self.mix(x), self.dense(self.o(jnp.tanh(self.q(x))))

    model = Model(nnx.Rngs(0))
    batch = {"ids": np.random.default_rng(0).integers(0, 11, (3, 7))}
    rule = observed_matrix_dims(model, batch)
    ns = gj.estimate_null_space(model, [batch], rank=2, progress=False, matrix_dims=rule)
    assert set(ns.inputs) == {"q/kernel", "o/kernel", "mix/kernel", "dense/kernel"}
    assert ns.inputs["q/kernel"] == ns.inputs["mix/kernel"]
    x = np.asarray(model.table.embedding[...], float)[batch["ids"]]
    heads = np.tanh(np.einsum("bsd,dhf->bshf", x, np.asarray(model.q.kernel[...], float)) + model.q.bias[...])
    hidden = np.einsum("bshf,hfd->bsd", heads, np.asarray(model.o.kernel[...], float)) + model.o.bias[...]
    for path, rows in (("mix/kernel", x), ("o/kernel", heads.reshape(3, 7, 6)), ("dense/kernel", hidden)):
        vectors = np.linalg.eigh(second_moment(rows))[1][:, -2:]
        found = np.asarray(ns.factor(path).projector().project(jnp.eye(rows.shape[-1])))
        np.testing.assert_allclose(found, np.eye(rows.shape[-1]) - vectors @ vectors.T, atol=1e-4)
    updates = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    tx = gj.constrain_to_null_space(ns, rule)
    assert max(gj.null_space_leak(tx.update(updates, tx.init(updates))[0], ns, rule).values()) < 1e-5


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
