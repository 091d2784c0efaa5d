"""The products that `projected_task_grads` returns are those of whole gradients with the bases, for any model."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sharded_training import batch_of, model_of

import gems_jax as gj
from gems_jax.config.run import Config
from gems_jax.leaf_path import named_leaves
from gems_jax.training.losses import task_loss
from gems_jax.training.trainable import split_model
from gems_jax.transform.init_plans import init_shapes
from gems_jax.transform.low_rank_gradient import is_low_rank

TASKS, ROWS = 2, 6


def array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def mean_square(x):
    return jnp.mean(jnp.square(x - 0.3))


def rows(*shape):
    return array(TASKS, ROWS, *shape, seed=2)


def plain():
    params = {"a": array(8, 12), "bias": array(12), "b": array(12, 8, seed=1)}
    return lambda p, x: mean_square(jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]), params, rows(5, 8), {}


def tied():
    """A kernel that stands in two products, in one of them transposed: the products of both are summed."""
    return lambda p, x: mean_square(jnp.tanh(x @ p["w"]) @ p["w"].T), {"w": array(8, 12)}, rows(8), {}


def heads():
    """Linen's attention: kernels ``[d, heads, head_dim]`` and back."""
    model, x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8), rows(4, 8)
    params = model.init(jax.random.key(0), x[0])

    def rule(path, leaf):
        if leaf.ndim == 3:
            return gj.MatrixDims((0, 1), 2) if "out" in path else gj.MatrixDims(0, (1, 2))
        return None

    return lambda p, x: mean_square(model.apply(p, x)), params, x, {"matrix_dims": rule}


def scanned():
    """A scan whose body is computed again, kernels split to heads; layers taken by number, in a conditional."""
    params = {"scan": {"kernel": array(3, 8, 8)}, "taken": {"kernel": array(2, 8, 8, seed=1)}}

    @jax.checkpoint
    def body(x, kernel):
        return jnp.tanh(jnp.einsum("nd,dhk->nhk", x, kernel.reshape(8, 2, 4)).reshape(-1, 8)), None

    def loss(params, x):
        x, _ = jax.lax.scan(body, x, params["scan"]["kernel"])
        first, second = params["taken"]["kernel"]
        x = jax.lax.cond(jnp.sum(x) > 0, lambda w: x @ w, lambda w: 2 * x @ w, first)
        return mean_square(jnp.tanh(x) @ second)

    return loss, params, rows(8), {"matrix_dims": lambda path, leaf: gj.MatrixDims()}


def experts():
    params = {"kernel": array(3, 8, 6)}
    loss = lambda p, x: mean_square(jnp.einsum("end,edf->enf", jnp.stack([x, 2 * x, -x]), p["kernel"]))  # noqa: E731
    return loss, params, rows(8), {"matrix_dims": gj.stacked_matrix_dims}


def odd():
    """A stack that the same rows go into, a stack of one layer, a column, small integers times a kernel."""
    shapes = {"beside": (3, 8, 6), "layer": (1, 6, 6), "column": (6, 1), "counted": (8, 6)}
    params = {name: array(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}

    def loss(p, x):
        beside, layer, column, counted = (p[name] for name in shapes)
        whole = jax.lax.dot_general(
            jnp.round(3 * x).astype(jnp.int8), counted, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        x = jnp.tanh(jnp.sum(jax.vmap(lambda w: jnp.tanh(x @ w))(beside), 0) + whole) @ layer[0]
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layer)
        return mean_square(x @ column)

    return loss, params, rows(8), {"matrix_dims": lambda path, leaf: gj.MatrixDims()}


def bfloat16():
    params = {"kernel": array(8, 12).astype(jnp.bfloat16)}
    return lambda p, x: mean_square((x.astype(jnp.bfloat16) @ p["kernel"]).astype(jnp.float32)), params, rows(5, 8), {}


def ours(family, some=""):
    """A model's loss; subspaces for the kernels whose paths match ``some``."""
    graphdef, params, frozen = split_model(model_of(family), Config())
    loss = task_loss(graphdef, "items")
    rule = lambda path, leaf: gj.stacked_matrix_dims(path, leaf) if re.search(some, path) else None  # noqa: E731
    return lambda p, batch: loss(p, frozen, batch), params, batch_of(family, 0), {"matrix_dims": rule}


# Each with how many kernels are served.
MODELS = {
    "plain": (plain, 2),
    "tied": (tied, 1),
    "heads": (heads, 4),
    "scanned": (scanned, 2),
    "experts": (experts, 1),
    "odd": (odd, 4),
    "bfloat16": (bfloat16, 1),
    "t5": (functools.partial(ours, "t5", "cross_attention|encoder/block/mlp"), 7),
    "decoder": (functools.partial(ours, "decoder"), 7),
}


def low_rank_leaves(tree):
    return {path: leaf for path, leaf in named_leaves(tree, is_low_rank) if is_low_rank(leaf)}


DEAR = ("heads", "odd", "scanned", "t5", "decoder", "experts", "tied", "bfloat16")
CASES = [pytest.param(name, "in", marks=[pytest.mark.slow] if name in DEAR else []) for name in MODELS]
CASES += [pytest.param(name, "out", marks=[pytest.mark.slow]) for name in ("plain", "tied", "experts")]


@pytest.mark.parametrize(("name", "side"), CASES)
def test_products_are_those_of_the_whole_gradient_with_the_bases(name, side):
    make, count = MODELS[name]
    loss, params, batch, options = make()
    tx = gj.gems(1e-2, num_tasks=TASKS, rank=3, side=side, **options)
    losses, grads = jax.jit(gj.projected_task_grads(loss, tx))(params, tx.init(params), batch)
    expected, whole = jax.jit(gj.task_value_and_grad(loss))(params, batch)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    (entry,) = init_shapes(tx, params)[1]
    kernels, served, whole = {k.path: k for k in entry.plan.kernels}, low_rank_leaves(grads), dict(named_leaves(whole))
    assert len(served) == count
    tolerance = 0.02 if name == "bfloat16" else 1e-5
    for path, leaf in served.items():
        k = kernels[path]
        g = np.asarray(k.spec.to_matrices(jnp.asarray(whole[path], jnp.float32), 1), np.float64)
        g = (g if side == "in" else g.mT).reshape(TASKS, *k.batch_shape, k.kept, k.other)
        for low, basis in ((leaf.shared, leaf.shared_basis), (leaf.task, leaf.task_basis)):
            assert np.all(np.asarray(leaf.done))
            right = np.asarray(basis, np.float64).mT @ g
            assert np.max(np.abs(low - right)) < tolerance * np.max(np.abs(right)), path
    for path, leaf in named_leaves(grads, is_low_rank):
        if path not in served:
            np.testing.assert_allclose(leaf, whole[path], rtol=1e-4, atol=1e-5 * np.max(np.abs(whole[path])))
    rows_of_plan = gj.projection_plan(loss, tx, params, batch).rows
    assert {row.path for row in rows_of_plan if row.treatment == "projected"} == set(served)


@pytest.mark.parametrize(("family", "count"), [("t5", 18), ("decoder", 7)])
def test_all_kernels_of_a_models_layers_are_served(family, count):
    loss, params, batch, options = ours(family)
    plan = gj.projection_plan(loss, gj.gems(1e-2, num_tasks=TASKS, rank=3, **options), params, batch)
    assert [row.treatment for row in plan.rows if row.path.endswith("kernel")] == ["projected"] * count


@pytest.mark.slow
def test_kernels_that_products_cannot_serve_are_listed_with_the_reason_and_come_whole():
    @jax.custom_vjp
    def own_rule(x, w):
        return x @ w

    own_rule.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, dy: (dy @ kept[1].T, kept[0].T @ dy))
    names = ("served", "squared", "looped", "ruled", "sliced", "unused", "multiplied", "stopped")
    params = {name: array(8, 8, seed=n) for n, name in enumerate(names)}

    def loss(p, x):
        x = jnp.tanh(x @ p["served"] + x @ p["squared"] ** 2 + own_rule(x, p["ruled"]))
        x = jax.lax.scan(lambda y, _: (jnp.tanh(y @ p["looped"]), None), x, length=2)[0]
        x = x.at[:, :4].add(x @ p["sliced"][:, :4]) @ (p["multiplied"] @ p["multiplied"])
        return mean_square(x + x @ jax.lax.stop_gradient(p["stopped"]))

    tx = gj.gems(1e-2, num_tasks=TASKS, rank=2)
    plan = {row.path: row for row in gj.projection_plan(loss, tx, params, rows(8)).rows}
    assert plan["served"].treatment == plan["looped"].treatment == "projected"
    assert plan["squared"].why == "it goes into integer_pow"
    assert plan["multiplied"].why == "it is multiplied with another kernel"
    assert plan["sliced"].why == "a part of it is sliced out"
    assert plan["unused"].why == "the loss does not multiply anything with it"
    assert "custom_vjp" in plan["ruled"].why
    assert "stop_gradient" in plan["stopped"].why
    grads = gj.projected_task_grads(loss, tx)(params, tx.init(params), rows(8))[1]
    whole = gj.task_value_and_grad(loss)(params, rows(8))[1]
    for path in set(names) - {"served", "looped"}:
        np.testing.assert_allclose(grads[path], whole[path], rtol=1e-4, atol=1e-6 * np.max(np.abs(whole[path])))
    assert set(low_rank_leaves(grads)) == {"served", "looped"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"decomposition": "eigh"}, "decomposition 'eigh' is of the whole gradient"),
        ({"gate": gj.gates.learned()}, "the gate scores each task's former update"),
        ({"stagger": True}, "a staggered refresh"),
    ],
)
def test_options_that_need_whole_gradients_are_named_in_the_plan(options, why):
    loss, params, batch, _ = plain()
    plan = gj.projection_plan(loss, gj.gems(1e-2, num_tasks=TASKS, rank=2, **options), params, batch)
    assert [row.treatment for row in plan.rows] == ["full", "full", "fallback"]
    assert why in str(plan)


def test_a_gate_that_scores_updates_of_tasks_needs_nothing_where_these_have_no_bases():
    loss, params, batch, _ = plain()
    tx = gj.gems(1e-2, num_tasks=TASKS, rank=2, task_rank=0, gate=gj.gates.learned())
    plan = gj.projection_plan(loss, tx, params, batch)
    assert [row.treatment for row in plan.rows] == ["projected", "projected", "fallback"]


def test_the_backward_pass_keeps_the_projected_input_alone():
    loss, params, batch, _ = plain()
    plan = {
        row.path: row.kept for row in gj.projection_plan(loss, gj.gems(1e-2, num_tasks=2, rank=4), params, batch).rows
    }
    # 30 rows of 4 + 2 columns for each task; for "b", whose bases span its outputs, the 12 inputs themselves.
    assert plan == {"a": 4 * TASKS * ROWS * 5 * 6, "b": 4 * TASKS * ROWS * 5 * 12, "bias": 0}


def test_a_kernel_in_aux_is_an_array_and_as_the_loss_it_is_not_served():
    params, tx = {"w": array(4, 6), "one": array(1, 1)}, gj.gems(1e-2, num_tasks=TASKS, rank=2)
    loss = lambda p, x: (jnp.sum(x @ p["w"]) * p["one"][0, 0], p)  # noqa: E731
    fn = gj.projected_task_grads(loss, tx, has_aux=True)
    (losses, aux), grads = jax.eval_shape(fn, params, jax.eval_shape(tx.init, params), rows(4)[:, :0])
    assert jax.tree.map(jnp.shape, aux) == {"w": (TASKS, 4, 6), "one": (TASKS, 1, 1)}
    assert set(low_rank_leaves(grads)) == {"w"}
    plan = gj.projection_plan(lambda p, x: jnp.reshape(p["one"], ()) + loss(p, x)[0], tx, params, rows(4))
    assert {row.path: row.treatment for row in plan.rows} == {"w": "projected", "one": "full"}


@pytest.mark.slow
def test_bad_input_is_one_clear_error():
    loss, params, batch, _ = plain()
    tx = gj.gems(1e-2, num_tasks=TASKS, rank=2)
    fn, state = gj.projected_task_grads(loss, tx), tx.init(params)
    with pytest.raises(ValueError, match=r"batch leaf '' has shape \[3, .*its leading axis is the task, 2 of them"):
        fn(params, state, jnp.concatenate([batch, batch[:1]]))
    with pytest.raises(ValueError, match=r"batch leaf 'n' has shape \[\], expected \[2, ...\]: its leading axis is"):
        gj.projection_plan(lambda p, b: loss(p, b["x"]), tx, params, {"x": batch, "n": 1.0})
    for nothing in ({}, None, {"x": None}):
        with pytest.raises(ValueError, match=r"the task batch has no leaves; expected arrays \[T, B, ...\]"):
            fn(params, state, nothing)
    with pytest.raises(ValueError, match="batch leaf 'n' is of type str, expected an array of numbers"):
        fn(params, state, {"x": batch, "n": "a"})
    with pytest.raises(
        ValueError, match=r"fails on the batch of one task .*Batch leaf '' has shape \[2\], so .*scalar"
    ):
        gj.projected_task_grads(lambda p, b: loss(p, b[:, :]), tx)(params, state, jnp.ones(TASKS))
    for other in ({"task_rank": 0}, {"rank": 3}):
        with pytest.raises(ValueError, match="opt_state is not what tx.init"):
            fn(params, gj.gems(1e-2, num_tasks=TASKS, **{"rank": 2} | other).init(params), batch)
    with pytest.raises(ValueError, match="opt_state is None: pass the state that"):
        fn(params, None, batch)
    with pytest.raises(ValueError, match=r"task_counts has shape \[\], expected \[2\]"):
        fn(params, state, batch, task_counts=1)
    with pytest.raises(ValueError, match="gems inside tx gets a leaf '' that is no parameter"):
        gj.projection_plan(loss, optax.flatten(tx), params, batch)
    with pytest.raises(ValueError, match="two parameters have the path 'a/b'"):
        gj.projection_plan(loss, tx, {"a": {"b": params["a"]}, "a/b": params["a"]}, batch)
    with pytest.raises(ValueError, match="tx contains 0 transforms of gems"):
        gj.projected_task_grads(loss, gj.merge_tasks())(params, gj.merge_tasks().init(params), batch)
    grads, other = fn(params, state, batch)[1], gj.gems(1e-2, num_tasks=TASKS, rank=3)
    with pytest.raises(ValueError, match=r"projected gradient of 'a' is in bases of shape \[1, 8, 2\]"):
        other.update(grads, other.init(params), params)
    with pytest.raises(ValueError, match="shared_grads are whole gradients"):
        tx.update(grads, state, params, shared_grads=params)
