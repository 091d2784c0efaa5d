"""Per-task gradients against one task at a time, and the merging of the task axis."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gems_jax as gj


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w"])
    return gj.token_mean(jnp.sum((hidden - batch["y"]) ** 2, axis=-1), batch["mask"])


def problem(num_tasks=3, rows=5):
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    mask = jnp.asarray(np.arange(rows) < np.array([[5], [2], [0]])[:num_tasks], jnp.float32)
    return {"w": array(4, 3)}, {"x": array(num_tasks, rows, 4), "y": array(num_tasks, rows, 3), "mask": mask}


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 7])
def test_each_tasks_loss_and_gradient_are_its_own_however_many_at_a_time(chunk_size):
    params, batch = problem()
    losses, grads = jax.jit(gj.task_value_and_grad(loss_fn, chunk_size=chunk_size))(params, batch)
    for t in range(3):
        value, grad = jax.value_and_grad(loss_fn)(params, jax.tree.map(lambda x: x[t], batch))  # noqa: B023
        np.testing.assert_allclose(losses[t], value, rtol=1e-6)
        np.testing.assert_allclose(grads["w"][t], grad["w"], rtol=1e-5, atol=1e-7)


def test_a_task_without_tokens_has_loss_and_gradient_zero():
    params, batch = problem()
    batch["x"] = batch["x"].at[2].set(jnp.inf)
    losses, grads = gj.task_value_and_grad(loss_fn)(params, batch)
    assert losses[2] == 0
    batch["x"] = batch["x"].at[2].set(1.0)
    assert np.all(gj.task_value_and_grad(loss_fn)(params, batch)[1]["w"][2] == 0)


def test_the_weighted_sum_is_the_gradient_of_the_mean_over_all_tokens():
    params, batch = problem()
    _, grads = gj.task_value_and_grad(loss_fn)(params, batch)
    counts = jnp.sum(batch["mask"], axis=1)
    joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    merged, _ = gj.merge_tasks().update(grads, gj.merge_tasks().init(params), params, task_counts=counts)
    np.testing.assert_allclose(merged["w"], jax.grad(loss_fn)(params, joined)["w"], rtol=1e-5, atol=1e-7)


def test_scaling_a_tasks_loss_scales_its_gradient_alone():
    params, batch = problem()
    scaled = lambda params, batch: loss_fn(params, batch) * batch["scale"]  # noqa: E731
    one = gj.task_value_and_grad(scaled)(params, batch | {"scale": jnp.array([1.0, 1.0, 1.0])})[1]["w"]
    two = gj.task_value_and_grad(scaled)(params, batch | {"scale": jnp.array([1.0, 7.0, 1.0])})[1]["w"]
    np.testing.assert_allclose(two, one * np.array([1, 7, 1])[:, None, None], rtol=1e-6)


def test_auxiliary_values_come_stacked_and_losses_in_float32():
    params, batch = problem()
    half = lambda p, b: (loss_fn(p, b).astype(jnp.bfloat16), {"rows": b["mask"].sum()})  # noqa: E731
    (losses, aux), grads = gj.task_value_and_grad(half, has_aux=True)(params, batch)
    assert losses.dtype == jnp.float32
    assert aux["rows"].tolist() == [5, 2, 0]
    assert grads["w"].shape == (3, 4, 3)


def test_token_mean_ignores_what_the_mask_leaves_out():
    losses, mask = jnp.array([1.0, jnp.inf, 3.0]), jnp.array([1, 0, 1])
    assert gj.token_mean(losses, mask) == 2
    assert gj.token_mean(losses, jnp.zeros(3)) == 0
    grad = jax.grad(lambda x: gj.token_mean(x**2, mask))(jnp.array([1.0, 5.0, 3.0]))
    np.testing.assert_allclose(grad, [1, 0, 3])
    assert gj.token_mean(losses.astype(jnp.bfloat16), mask).dtype == jnp.float32


def test_task_weights_are_shares_of_the_counts():
    np.testing.assert_allclose(gj.task_weights(jnp.array([1, 3]), 2), [0.25, 0.75])
    np.testing.assert_allclose(gj.task_weights(None, 4), [0.25] * 4)
    np.testing.assert_allclose(gj.task_weights(jnp.zeros(2), 2), [0.5, 0.5])


def test_merging_makes_any_transform_take_stacked_gradients():
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    grads = {"w": jnp.stack([params["w"], 3 * params["w"]]), "b": jnp.full((1, 3), 5.0)}
    tx = optax.chain(gj.merge_tasks(), optax.sgd(1.0))
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -2 * params["w"])
    np.testing.assert_allclose(updates["b"], -5 * params["b"])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"x": jnp.ones((2, 3)), "y": jnp.ones((3, 3))},
            r"disagree on the number of tasks: 2 in 'x' of shape \[2, 3\], 3 in 'y' of shape \[3, 3\]; expected \[T, ",
        ),
        ({"x": jnp.ones((2, 3)), "n": jnp.ones(())}, r"batch leaf 'n' has shape \[\], expected \[T, ...\].*jnp.stack"),
        ({"x": jnp.ones((2, 3)), "n": 1.0}, r"batch leaf 'n' has shape \[\], expected \[T, ...\]"),
        ({"x": {"ids": jnp.ones((0, 3))}}, r"batch leaf 'x/ids' has shape \[0, 3\], expected \[T, ...\]"),
        ({"x": jnp.ones((2, 3)), "n": ["a", "b"]}, "batch leaf 'n/0' is of type str, expected an array of numbers"),
        ({"x": jnp.ones((2, 3)), "n": np.array(["a", "b"])}, "batch leaf 'n' is of type <U1, expected an array"),
        ({}, "no leaves"),
        (None, "no leaves"),
        ({"x": None}, "no leaves"),
    ],
    ids=["disagree", "scalar", "number", "no task", "text", "texts", "empty", "none", "none inside"],
)
def test_batches_without_one_task_axis_are_refused_by_name(batch, message):
    params = {"w": jnp.ones((4, 3))}
    tx = gj.gems(1e-2, num_tasks=2, rank=1)
    with pytest.raises(ValueError, match=message):
        gj.task_value_and_grad(loss_fn)(params, batch)
    if "disagree" not in message and "has shape" not in message:  # how many tasks there are is known there
        with pytest.raises(ValueError, match=message):
            gj.projected_task_grads(loss_fn, tx)(params, tx.init(params), batch)


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_leaf_whose_rows_are_missing_is_named_where_the_loss_fails_on_it(chunk_size):
    params, batch = problem()
    fn = gj.task_value_and_grad(loss_fn, chunk_size=chunk_size)
    with pytest.raises(
        ValueError, match=r"Batch leaf 'x' has shape \[3\], so .* expected \[T, B, ...\]: add"
    ) as failed:
        fn(params, batch | {"x": jnp.ones(3)})
    assert str(failed.value.__cause__) in str(failed.value)
    # Of other leaves the loss alone knows what they should be: its own error, and what it was given.
    with pytest.raises(TypeError, match="incompatible shapes") as failed:
        fn(params, batch | {"y": jnp.ones((3, 7, 2))})
    notes = " ".join(failed.value.__notes__)  # JAX has some of its own
    assert "one task, whose leaves are 'mask' [5], 'x' [5, 4], 'y' [7, 2]" in notes


def test_a_leaf_that_is_none_is_no_leaf():
    params, batch = problem()
    wanted, _ = gj.task_value_and_grad(loss_fn)(params, batch)
    losses, _ = gj.task_value_and_grad(loss_fn)(params, batch | {"extra": None})
    assert losses.tolist() == wanted.tolist()


@pytest.mark.parametrize("counts", [jnp.ones(3), jnp.ones((2, 1)), jnp.ones(1), 1.0], ids=["3", "2x1", "1", "scalar"])
def test_counts_that_are_not_one_a_task_are_refused(counts):
    params, grads = {"w": jnp.zeros(4)}, {"w": jnp.ones((2, 4))}
    merging = optax.chain(gj.merge_tasks(), optax.sgd(1.0))
    gathering = gj.accumulate(merging, 2, num_tasks=2)
    for tx in (merging, gathering, gj.baselines.joint(optax.sgd(1.0))):
        with pytest.raises(ValueError, match=r"task_counts has shape \[.*\], expected \[2\], one a task"):
            tx.update(grads, tx.init(params), params, task_counts=counts)
    with pytest.raises(ValueError, match=r"task_losses has shape \[.*\], expected \[2\], one a task"):
        gathering.update(grads, gathering.init(params), params, task_losses=counts)
    # Gradients that were merged before stand for any number of tasks.
    tx = gj.merge_tasks()
    merged, _ = tx.update({"w": jnp.ones((1, 4))}, tx.init(params), params, task_counts=jnp.ones(3))
    assert merged["w"].tolist() == [1.0] * 4


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="chunk_size"):
        gj.task_value_and_grad(loss_fn, chunk_size=0)
    tx, params = gj.merge_tasks(), {"w": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match=r"gradient leaf 'w' has shape \[4, 3\], expected \[T, 4, 3\]"):
        tx.update(params, tx.init(params), params)
