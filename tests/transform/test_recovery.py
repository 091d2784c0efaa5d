"""``recovery``: what lies outside the shared basis is added at the scale of what lies in it, inside the null space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import COUNTS, LOSSES, assert_no_leak, difference, make_grads, make_null_space, make_params, run
from reference import Reference

import gems_jax as gj

SHAPES = {"w": (8, 6), "bias": (6,)}
STEPS = 7


def outside(gradient, basis, adam, null, former):
    """Equations 6 and 7 of arXiv 2410.01623 and its limit on growth, in float64: one kernel, projected axis first.

    Written with loops over columns; ``null`` is the projector on the bases' side, the identity without one.
    """
    low = basis.T @ gradient
    step = (adam.m / (1 - 0.9**adam.t)) / (np.sqrt(adam.v / (1 - 0.999**adam.t)) + 1e-8)
    rest = null @ gradient - basis @ (basis.T @ (null @ gradient))
    for i in range(gradient.shape[1]):
        rest[:, i] *= np.linalg.norm(step[:, i]) / (np.linalg.norm(low[:, i]) + 1e-8)
    size = np.linalg.norm(rest)
    if former is not None and size > 1.01 * former:
        rest, size = rest * (1.01 * former / size), 1.01 * former
    return rest, size


def expected_updates(side, protected, task_rank, limited, num_tasks=2):
    """Updates of the kernel in each step; ``limited`` takes the steps in which the limit was reached."""
    options = {"sides": {"w": side}, "refresh_every": 3, "scale": 0.5, "protected": protected}
    reference = Reference(num_tasks, rank=3, task_rank=task_rank, **options)
    zero, former, updates = {"w": np.zeros(SHAPES["w"])}, None, []
    k = protected.get("w")
    null = np.eye(SHAPES["w"][0 if side == "in" else 1]) - (0 if k is None else k @ k.T)
    for i in range(STEPS):
        grads = {"w": gradients(i, num_tasks)["w"]}
        about = (np.asarray(f(i))[:num_tasks] for f in (LOSSES, COUNTS))
        update = -reference.step(zero, grads, *about)["w"]
        counts = np.asarray(COUNTS(i), float)[:num_tasks]
        shared = np.tensordot(counts / counts.sum(), grads["w"].astype(float), 1)
        shared = shared if side == "in" else shared.T
        found, size = outside(shared, reference.bases["w", "shared"], reference.inner["w", "shared"], null, former)
        if former is not None and size == 1.01 * former:
            limited.append(i)
        former = size
        updates.append(update + 0.5 * (found if side == "in" else found.T))
    return updates


def gradients(i, num_tasks=2):
    """Of changing size, so that the limit is reached in some steps and not in others."""
    grads = make_grads(i, num_tasks, SHAPES)
    grads["w"][..., 3 + i % 3] *= 1 + i % 4
    return grads


def transform(null_space=None, **options):
    given = {"rank": 3, "refresh_every": 3, "decomposition": "svd", "scale": 0.5, "recovery": "fira"}
    return gj.scale_by_gems(**{"num_tasks": 2, "null_space": null_space} | given | options)


@pytest.mark.parametrize(
    ("side", "constraint", "task_rank"),
    [("in", None, 1), ("out", None, 0), ("in", "update", 1), ("in", "gradient", 0)],
    ids=str,
)
def test_updates_follow_the_papers_formula(side, constraint, task_rank):
    null_space, protected = None, {}
    if constraint is not None:
        null_space, protected = make_null_space({"w": 8}, kept=2)
    limited = []
    expected = expected_updates(side, protected, task_rank, limited)
    assert 0 < len(limited) < STEPS - 1
    tx = transform(null_space, side=side, task_rank=task_rank, constraint=constraint or "update")
    _, state, found = run(tx, make_params(SHAPES), gradients, STEPS, task_losses=LOSSES, task_counts=COUNTS)
    for one, other in zip(found, expected, strict=True):
        assert difference(one["w"], other) < 2e-3
    assert state.recovered["w"].shape == (1,)


def test_with_one_task_and_no_null_space_it_is_fira():
    """The released method of the paper: one subspace of the gradient, and the rest of it."""
    expected = expected_updates("out", {}, 0, [], num_tasks=1)
    tx = transform(num_tasks=1, task_rank=0, side="out")
    _, _, found = run(tx, make_params(SHAPES), lambda i: gradients(i, 1), STEPS)
    for one, other in zip(found, expected, strict=True):
        assert difference(one["w"], other) < 2e-3


STACKED = {"w": (8, 6), "stack": (2, 8, 6), "row": (8, 6)}
RULE = lambda path, leaf: gj.MatrixDims()  # noqa: E731


@pytest.mark.parametrize("of", ["in", "out"])
def test_every_update_stays_in_the_null_space_whichever_side_the_bases_are_on(of):
    dims = {"w": 8, "row": 8} if of == "in" else {"w": 6, "row": 6}
    null_space, _ = make_null_space(dims, kept=2, side=of)
    tx = transform(null_space, side="in", matrix_dims=RULE)
    grads_of = lambda i: make_grads(i, 2, STACKED)  # noqa: E731
    _, state, found = run(tx, make_params(STACKED), grads_of, 4, task_losses=LOSSES, task_counts=COUNTS)
    for updates in found:
        assert_no_leak(updates, null_space)
    assert all(np.all(norms > 1e-2) for norms in jax.tree.leaves(state.recovered))  # something was added


def test_members_of_a_stack_are_limited_each_by_its_own_norm():
    def stack(i):
        grads = make_grads(i, 1, {"stack": (2, 8, 6)})["stack"]
        return {"stack": np.float32(grads * np.array([1, 30 ** (i % 2)])[:, None, None])}

    tx = transform(matrix_dims=RULE, num_tasks=1, task_rank=0)
    _, state, found = run(tx, make_params({"stack": (2, 8, 6)}), stack, 3)
    _, one, expected = run(tx, make_params({"w": (8, 6)}), lambda i: {"w": stack(i)["stack"][:, 1]}, 3)
    for updates, alone in zip(found, expected, strict=True):
        assert difference(updates["stack"][1], alone["w"]) < 1e-4
    np.testing.assert_allclose(state.recovered["stack"][1], one.recovered["w"][0], rtol=1e-4)


def test_a_step_without_anything_keeps_the_norm_and_adds_nothing():
    tx, params = transform(), jax.tree.map(jnp.asarray, make_params(SHAPES))
    _, state, _ = run(tx, params, gradients, 2, task_losses=LOSSES, task_counts=COUNTS)
    for grads in (jax.tree.map(jnp.zeros_like, gradients(0)), jax.tree.map(lambda g: g * jnp.nan, gradients(0))):
        updates, after = tx.update(grads, state, params, task_losses=LOSSES(2), task_counts=COUNTS(2))
        np.testing.assert_array_equal(updates["w"], 0)
        np.testing.assert_array_equal(after.recovered["w"], state.recovered["w"])


def test_gradients_whose_squares_no_float_holds_give_finite_updates():
    grads_of = lambda i: jax.tree.map(lambda g: np.float32(g * (1e-30, 1e30)[i % 2]), gradients(i))  # noqa: E731
    _, state, found = run(transform(), make_params(SHAPES), grads_of, 4, task_losses=LOSSES, task_counts=COUNTS)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, found)))


def test_it_holds_one_number_a_matrix_and_nothing_where_it_is_off():
    params = make_params(STACKED)
    tables = [gj.state_bytes(transform(matrix_dims=RULE, recovery=how), params) for how in ("none", "fira")]
    bytes_of = [{row.path: row.bytes for row in table.rows} for table in tables]
    assert {path: bytes_of[1][path] - bytes_of[0][path] for path in STACKED} == {"w": 4, "stack": 8, "row": 4}
    assert tables[1].total - tables[0].total == 16
    assert jax.tree.leaves(transform(recovery="none").init(params).recovered) == []


def test_projected_gradients_do_not_have_what_lies_outside_and_are_refused():
    params = {"w": jnp.ones((8, 6))}
    loss = lambda p, x: jnp.mean((x @ p["w"] - 1) ** 2)  # noqa: E731
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 8)), jnp.float32)
    given = {"decomposition": "auto", "refresh_every": 3}
    with_it, without = transform(**given), transform(**given, recovery="none")
    plan = str(gj.projection_plan(loss, with_it, params, batch))
    assert "recovery adds what of the whole gradient lies outside the bases" in plan
    losses, whole = gj.projected_task_grads(loss, with_it)(params, with_it.init(params), batch)
    assert whole["w"].shape == (2, 8, 6)  # it takes them by itself
    with_it.update(whole, with_it.init(params), params, task_losses=losses)
    losses, projected = gj.projected_task_grads(loss, without)(params, without.init(params), batch)
    with pytest.raises(ValueError, match=r"projected gradient of 'w' does not have it: take task_value_and_grad"):
        with_it.update(projected, with_it.init(params), params, task_losses=losses)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="recovery is 'full'; choose one of none, fira"):
        transform(recovery="full")
