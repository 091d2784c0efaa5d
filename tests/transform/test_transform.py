"""The transform against a numpy implementation of the whole step, and the effect of every option."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    COUNTS,
    LOSSES,
    SHAPES,
    SIDES,
    assert_no_leak,
    difference,
    make_grads,
    make_null_space,
    make_params,
    orthonormal,
    run,
)
from reference import Reference

import gems_jax as gj

KERNEL = {"w": (8, 6)}


def reference_case(constrained, names, decomposition, dtype=np.float32, **options):
    shapes = {n: SHAPES[n] for n in names}
    params = make_params(shapes, dtype=dtype)
    tolerance, of_gates = (3e-3, 1e-5) if dtype == np.float32 else (1e-12, 1e-14)
    null_space, protected = None, {}
    if constrained:
        null_space, protected = make_null_space({n: SHAPES[n][0] for n in names if SIDES.get(n) == "in"}, kept=2)
    sides = {n: SIDES[n] for n in names if n in SIDES}
    reference = Reference(
        2, rank=3, task_rank=1, sides=sides, refresh_every=3, learning_rate=0.01, protected=protected, **options
    )
    tx = gj.gems(
        0.01, num_tasks=2, rank=3, refresh_every=3, decomposition=decomposition, null_space=null_space, **options
    )
    expected = {k: v.astype(float) for k, v in params.items()}
    grads_of = lambda i: make_grads(i, shapes=shapes, dtype=dtype)  # noqa: E731
    found, state, _ = run(tx, params, grads_of, 7, task_losses=LOSSES, task_counts=COUNTS)
    for i in range(7):
        expected = reference.step(expected, grads_of(i), np.asarray(LOSSES(i)), np.asarray(COUNTS(i)))
    moved = {k: np.asarray(found[k]) - params[k] for k in params}
    assert difference(moved, {k: expected[k] - params[k] for k in params}) < tolerance
    np.testing.assert_allclose(gj.diagnostics(state)["gates"], reference.gates, rtol=of_gates)
    assert {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)} == {np.dtype(dtype)}


@pytest.mark.slow
@pytest.mark.parametrize("constrained", [False, True])
def test_follows_the_numpy_reference_over_refreshes(constrained):
    reference_case(constrained, list(SHAPES), "svd", weight_decay=0.1, scale=0.5)


@pytest.mark.parametrize(
    ("constrained", "options"),
    [
        (True, {"weight_decay": 0.1, "moments": "reset"}),
        pytest.param(True, {"complementary": True}, marks=pytest.mark.slow),
        (False, {"complementary": True, "scale": 0.5}),
        (False, {"signs": "align"}),
    ],
    ids=str,
)
def test_eigh_and_each_option_follow_the_numpy_reference(constrained, options):
    reference_case(constrained, ["square", "out_bias"] if constrained else ["tall", "out_bias"], "eigh", **options)


@pytest.mark.slow
def test_in_float64_it_follows_the_numpy_reference_to_float64_s_accuracy():
    with jax.enable_x64(True):
        reference_case(True, ["square", "out_bias"], "svd", np.float64, signs="align", weight_decay=0.1)


@pytest.mark.parametrize(("shape", "side"), [((12, 6), "in"), ((6, 10), "out")])
def test_one_task_without_a_branch_is_galore_where_both_keep_the_same_side(shape, side):
    params = make_params({"w": shape})
    grads_of = lambda i: make_grads(i, 1, {"w": shape})  # noqa: E731
    ours = gj.scale_by_gems(num_tasks=1, rank=3, task_rank=0, side=side, scale=0.5, decomposition="svd")
    theirs = optax.chain(gj.merge_tasks(), optax.contrib.scale_by_galore(rank=3, scale=0.5))
    _, _, found = run(ours, params, grads_of, 4)
    _, _, expected = run(theirs, params, grads_of, 4)
    assert difference(found, expected) < 1e-4


# --- the constraint ---------------------------------------------------------------------------------------


CONSTRAINED = {"tall": (12, 6), "wide": (6, 10), "stack": (4, 8, 8)}


def constrained_problem(names=tuple(CONSTRAINED)):
    """Kernels of all forms; factors held as K and as Q; in a stack gradients of rank 1 and of equal singular values."""
    rng = np.random.default_rng(0)
    rows = {"tall": [3], "wide": [5], "stack": [2, 6, 3, 3]}  # how many directions are protected
    moments = {
        name: np.stack([(x := rng.normal(size=(k, CONSTRAINED[name][-2]))).T @ x for k in ks]).reshape(
            *CONSTRAINED[name][:-2], CONSTRAINED[name][-2], CONSTRAINED[name][-2]
        )
        for name, ks in rows.items()
    }
    shapes = {name: CONSTRAINED[name] for name in names}
    ns = gj.NullSpace.from_moments({name: moments[name] for name in names}, energy=1 - 1e-9)
    assert [ns.factor(name).complement for name in names] == [name == "wide" for name in names]

    def grads_of(i):
        grads = make_grads(i, shapes=shapes)
        rng = np.random.default_rng([3, i])
        grads["stack"][:, 2] = rng.normal(size=(2, 8, 1)) * rng.normal(size=(2, 1, 8))
        grads["stack"][:, 3] = np.stack([orthonormal(8, 8, [4, i, t]) for t in range(2)])
        return grads

    return make_params(shapes), ns, grads_of


INNERS = {
    "adam": None,
    "adamw-like": optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.3)),
    "lion": optax.scale_by_lion(),
    "rmsprop": optax.scale_by_rms(),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("inner", INNERS)
def test_no_update_leaves_the_null_space_whatever_the_inner_transform(inner):
    params, ns, grads_of = constrained_problem()
    tx = gj.gems(
        1e-2, num_tasks=2, rank=4, refresh_every=2, inner=INNERS[inner], null_space=ns, weight_decay=0.1,
        matrix_dims=lambda path, leaf: gj.MatrixDims(),
    )  # fmt: skip
    new, state, seen = run(tx, params, grads_of, 4, task_losses=LOSSES)
    for updates in seen:
        assert_no_leak(updates, ns)
        assert all(np.max(np.abs(u)) > 1e-5 for u in updates.values())
    assert gj.diagnostics(state)["refreshed"] == 0  # the last step was no refresh, the first and third were


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"decomposition": "subspace"}, {"complementary": True, "signs": "align", "stagger": True}, {"side": "out"}],
    ids=str,
)
def test_no_update_leaves_the_null_space_whatever_the_bases(options):
    params, ns, grads_of = constrained_problem()
    rule = lambda path, leaf: gj.MatrixDims()  # noqa: E731
    tx = gj.gems(
        1e-2, num_tasks=2, rank=4, refresh_every=2, null_space=ns, weight_decay=0.1, matrix_dims=rule, **options
    )
    _, _, seen = run(tx, params, grads_of, 4)
    for updates in seen:
        assert_no_leak(updates, ns)
        assert all(np.max(np.abs(u)) > 1e-5 for u in updates.values())


@pytest.mark.slow
def test_a_constrained_kernel_outside_the_subspaces_is_projected_too():
    ns, _ = make_null_space({"w": 8, "v": 8})
    shapes = {"w": (8, 6), "v": (8, 5)}
    rule = lambda path, leaf: gj.MatrixDims() if path == "w" else None  # noqa: E731
    tx = gj.gems(1e-2, num_tasks=2, rank=2, null_space=ns, matrix_dims=rule, weight_decay=0.1)
    _, _, seen = run(tx, make_params(shapes), lambda i: make_grads(i, shapes=shapes), 2)
    assert_no_leak(seen[-1], ns)
    assert np.max(np.abs(seen[-1]["v"])) > 1e-4


@pytest.mark.slow
def test_constraint_on_the_gradient_leaks_under_adam_where_the_one_on_the_update_does_not():
    ns, protected = make_null_space({"w": 6}, side="out")
    rule = {"num_tasks": 2, "rank": 3, "null_space": ns}
    _, _, exact = run(gj.gems(1e-2, **rule), make_params(KERNEL), lambda i: make_grads(i, shapes=KERNEL), 3)
    assert_no_leak(exact[-1], ns)
    # With bases across the constraint, Adam's elementwise steps leave it.
    tx = gj.gems(1e-2, constraint="gradient", side="in", **rule)
    _, _, crossed = run(tx, make_params(KERNEL), lambda i: make_grads(i, shapes=KERNEL), 3)
    assert gj.null_space_leak(crossed[-1], ns)["w"] > 0.05


def test_the_constraint_holds_over_a_thousand_steps_and_so_do_the_weights():
    ns, protected = make_null_space({"w": 8})
    params = make_params(KERNEL)
    tx = gj.gems(1e-3, num_tasks=2, rank=3, refresh_every=50, null_space=ns)

    @partial(jax.jit)
    def loop(params, state, key):
        def body(i, carry):
            params, state, worst, key = carry
            key, now = jax.random.split(key)
            grads = {"w": jax.random.normal(now, (2, 8, 6))}
            updates, state = tx.update(grads, state, params)
            worst = jnp.maximum(worst, gj.null_space_leak(updates, ns)["w"])
            return optax.apply_updates(params, updates), state, worst, key

        return jax.lax.fori_loop(0, 1000, body, (params, state, jnp.zeros(()), key))

    new, state, worst, _ = loop(params, tx.init(params), jax.random.key(0))
    assert worst <= 1e-5
    moved = np.asarray(new["w"], float) - params["w"]
    assert np.linalg.norm(moved) > 0.1
    # What accumulates carries the rounding of the float32 weights as well.
    assert np.linalg.norm(protected["w"].T @ moved) < 1e-4 * np.linalg.norm(moved)


def test_a_kernel_whose_null_space_is_empty_does_not_move():
    ns = gj.NullSpace.from_moments({"w": np.eye(8)}, rank=8)
    tx = gj.gems(1e-2, num_tasks=2, rank=2, null_space=ns, weight_decay=0.1)
    params = make_params({"w": (8, 6), "v": (8, 6)})
    new, _, _ = run(tx, params, lambda i: make_grads(i, shapes={"w": (8, 6), "v": (8, 6)}), 2)
    np.testing.assert_array_equal(new["w"], params["w"])
    assert np.max(np.abs(new["v"] - params["v"])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("constraint", ["update", "gradient"])
def test_kernels_without_a_protected_direction_move_as_if_unconstrained(constraint):
    """And those without a free one do not, whether they have subspaces or take the fallback."""
    shapes = dict.fromkeys(("free", "full", "free_table", "full_table"), (8, 6)) | {"free_stack": (2, 8, 6)}
    roles = {name: None if "table" in name else gj.MatrixDims() for name in shapes}
    zero, one = np.zeros((8, 8)), np.eye(8)
    moments = {"free": zero, "full": one, "free_table": zero, "full_table": one, "free_stack": np.zeros((2, 8, 8))}
    rank = {name: 8 if "full" in name else 0 for name in shapes}
    factors = {n: gj.NullSpace.from_moments({n: m}, rank=rank[n]).factor(n) for n, m in moments.items()}
    ns = gj.NullSpace(factors, {name: name for name in shapes})
    options = {"num_tasks": 2, "rank": 2, "side": "in", "matrix_dims": roles, "constraint": constraint}
    grads_of = lambda i: make_grads(i, shapes=shapes)  # noqa: E731
    _, _, seen = run(gj.scale_by_gems(null_space=ns, **options), make_params(shapes), grads_of, 2)
    _, _, unbound = run(gj.scale_by_gems(**options), make_params(shapes), grads_of, 2)
    for name in shapes:
        if "free" in name:
            np.testing.assert_allclose(seen[1][name], unbound[1][name], atol=2e-6)
        elif constraint == "update" or name == "full":
            np.testing.assert_array_equal(seen[1][name], 0)


# --- options ------------------------------------------------------------------------------------------------


def one_kernel(steps=3, shapes=KERNEL, num_tasks=2, grads_of=None, params=None, extra=None, **options):
    options = {"rank": 3, "decomposition": "svd"} | options
    tx = gj.scale_by_gems(num_tasks=num_tasks, **options)
    grads_of = grads_of or (lambda i: make_grads(i, num_tasks, shapes))
    return run(tx, make_params(shapes) if params is None else params, grads_of, steps, **(extra or {}))


def shapes_of_state(**options):
    return jax.eval_shape(gj.scale_by_gems(num_tasks=2, **options).init, make_params(KERNEL))


@pytest.mark.slow
def test_side_decides_which_axis_the_bases_keep():
    for side, kept, other in (("in", 8, 6), ("out", 6, 8), ("auto", 6, 8)):
        state = shapes_of_state(side=side, rank=3)
        assert state.shared_basis["w"].shape == (1, kept, 3)
        assert state.shared_inner.mu["w"].shape == (1, 3, other)
    _, state, seen = one_kernel(2, side="in")
    # Three shared columns and one of each task: every update is inside what they span.
    bases = np.concatenate([state.shared_basis["w"][0], *state.task_basis["w"][:, 0]], axis=1)
    assert bases.shape == (8, 5)
    outside = seen[1]["w"] - bases @ np.linalg.lstsq(bases, seen[1]["w"], rcond=None)[0]
    assert np.linalg.norm(outside) < 1e-4 * np.linalg.norm(seen[1]["w"])


def test_ranks_as_fractions_capped_and_without_task_branches():
    state = shapes_of_state(rank=0.5, task_rank=0)
    assert state.shared_basis["w"].shape == (1, 6, 3)
    assert isinstance(state.task_basis["w"], optax.MaskedNode)
    assert shapes_of_state(rank=4).task_basis["w"].shape == (2, 1, 6, 2)
    assert shapes_of_state(rank=99, task_rank=1.0).task_basis["w"].shape == (2, 1, 6, 6)
    assert shapes_of_state(rank=4, task_rank=4, complementary=True).task_basis["w"].shape == (2, 1, 6, 2)
    ns, _ = make_null_space({"w": 8}, kept=6)
    assert shapes_of_state(rank=4, null_space=ns).shared_basis["w"].shape == (1, 8, 2)


@pytest.mark.parametrize("kind", [int, np.int64], ids=str)
def test_rank_one_is_one_column_and_rank_one_point_nought_the_whole_side(kind):
    assert shapes_of_state(rank=kind(1)).shared_basis["w"].shape == (1, 6, 1)
    for share in (1.0, np.float32(1)):
        assert shapes_of_state(rank=share).shared_basis["w"].shape == (1, 6, 6)
    with pytest.raises(TypeError, match="rank=1.0: give a whole number of columns"):
        gj.presets.released(1e-3, num_tasks=2, rank=1.0)


@pytest.mark.slow
def test_scale_multiplies_subspace_updates_and_nothing_else():
    shapes = {"w": (8, 6), "bias": (6,)}
    _, _, one = one_kernel(2, shapes)
    _, _, three = one_kernel(2, shapes, scale=3.0)
    np.testing.assert_allclose(three[1]["w"], 3 * one[1]["w"], rtol=1e-5)
    np.testing.assert_array_equal(three[1]["bias"], one[1]["bias"])


def test_refreshes_happen_before_the_first_step_and_then_every_so_many():
    for every, expected in ((2, [3, 0, 3, 0]), (lambda count: (count == 0) | (count == 3), [3, 0, 0, 3])):
        tx = gj.scale_by_gems(num_tasks=2, rank=2, refresh_every=every)
        state, params = tx.init(make_params(KERNEL)), make_params(KERNEL)
        step = jax.jit(lambda g, s: tx.update(g, s, params)[1])  # noqa: B023
        counts = []
        for i in range(4):
            state = step(make_grads(i, shapes=KERNEL), state)
            counts.append(int(gj.diagnostics(state)["refreshed"]))
        assert counts == expected


@pytest.mark.slow
def test_stagger_spreads_a_stacks_refresh_over_the_steps_between():
    shapes = {"stack": (4, 8, 6)}
    rule = lambda path, leaf: gj.MatrixDims()  # noqa: E731
    tx = gj.scale_by_gems(num_tasks=2, rank=2, refresh_every=4, stagger=True, matrix_dims=rule)
    params = make_params(shapes)
    state = tx.init(params)
    step = jax.jit(lambda g, s: tx.update(g, s, params)[1])
    seen, bases = [], []
    for i in range(6):
        state = step(make_grads(i, shapes=shapes), state)
        seen.append(int(gj.diagnostics(state)["refreshed"]))
        bases.append(np.asarray(state.shared_basis["stack"]))
    assert seen == [12, 3, 3, 3, 3, 3]
    for i in range(1, 6):
        changed = np.any(bases[i] != bases[i - 1], axis=(1, 2))
        assert changed.tolist() == [j == i % 4 for j in range(4)]


@pytest.mark.slow
def test_moments_reset_starts_adam_anew_at_a_refresh():
    for moments, steps in (("keep", 3), ("reset", 1)):
        _, state, _ = one_kernel(3, refresh_every=2, moments=moments)
        assert int(state.shared_inner.count["w"][0]) == steps


@pytest.mark.slow
def test_complementary_task_bases_are_orthogonal_to_the_shared_one():
    _, plain, _ = one_kernel(1)
    _, apart, _ = one_kernel(1, complementary=True)
    overlap = lambda s: np.max(np.abs(np.einsum("lpr,tlps->trs", s.shared_basis["w"], s.task_basis["w"])))  # noqa: E731
    assert overlap(plain) > 0.5
    assert overlap(apart) < 1e-5


@pytest.mark.slow
def test_other_decompositions_capture_what_svd_captures():
    svd, eigh, subspace = (
        one_kernel(4, refresh_every=1, rank=2, decomposition=name)[1].diagnostics.captured
        for name in ("svd", "eigh", "subspace")
    )
    np.testing.assert_allclose(eigh, svd, rtol=1e-5)
    np.testing.assert_allclose(subspace, svd, rtol=5e-3)


def test_auto_decomposition_is_eigh_off_tpu():
    def program(decomposition):
        tx = gj.scale_by_gems(num_tasks=2, rank=2, decomposition=decomposition)
        params = make_params(KERNEL)
        return str(jax.make_jaxpr(tx.update)(make_grads(0, shapes=KERNEL), tx.init(params), params))

    assert program("auto") == program("eigh") != program("svd")


def test_auto_decomposition_is_subspace_iteration_on_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    params = make_params(KERNEL)

    def program(decomposition):
        tx = gj.scale_by_gems(num_tasks=2, rank=2, decomposition=decomposition)
        return str(jax.make_jaxpr(tx.update)(make_grads(0, shapes=KERNEL), tx.init(params), params))

    assert program("auto") == program("subspace")
    assert "eigh" not in program("auto")


@pytest.mark.slow
def test_seed_decides_how_bases_of_poor_gradients_are_completed():
    ns, _ = make_null_space({"w": 8})
    thin = lambda i: {"w": np.ones((2, 8, 6), np.float32)}  # noqa: E731
    states = [
        one_kernel(1, grads_of=thin, null_space=ns, decomposition="eigh", side="in", seed=seed)[1] for seed in (0, 0, 1)
    ]
    first, same, other = (np.asarray(s.shared_basis["w"]) for s in states)
    np.testing.assert_array_equal(first, same)
    assert np.max(np.abs(first - other)) > 1e-2
    np.testing.assert_allclose(first[..., 0], other[..., 0], atol=1e-5)


@pytest.mark.slow
def test_decay_acts_on_the_leaves_of_its_mask():
    shapes = {"w": (8, 6), "v": (8, 6), "bias": (6,)}
    grads = {n: np.zeros((2, *s), np.float32) for n, s in shapes.items()}
    grads["bias"] += 1
    params = make_params(shapes)
    mask = {"w": True, "v": False, "bias": False}
    for given in (mask, lambda params: mask):
        tx = gj.gems(0.1, num_tasks=2, rank=2, weight_decay=0.5, mask=given)
        new, _, _ = run(tx, params, lambda i: grads, 1)
        np.testing.assert_allclose(new["w"], params["w"] * 0.95, rtol=1e-5)
        np.testing.assert_array_equal(new["v"], params["v"])
        np.testing.assert_allclose(new["bias"], params["bias"] - 0.1, rtol=1e-4)


def test_inner_and_fallback_transforms_are_the_ones_given():
    shapes = {"w": (8, 6), "bias": (6,)}
    _, _, seen = one_kernel(1, shapes, inner=optax.identity(), fallback=optax.scale(7.0), rank=6, task_rank=0)
    mean = {n: g.mean(axis=0) for n, g in make_grads(0, shapes=shapes).items()}
    np.testing.assert_allclose(seen[0]["w"], mean["w"], atol=1e-4)  # a full-rank basis loses nothing
    np.testing.assert_allclose(seen[0]["bias"], 7 * mean["bias"], rtol=1e-5)


def test_an_inner_transform_that_looks_at_parameters_sees_them_in_the_subspace():
    inner = optax.chain(optax.scale(0.0), optax.add_decayed_weights(1.0))
    params = make_params(KERNEL)
    _, state, seen = one_kernel(1, inner=inner, task_rank=0)
    v = np.asarray(state.shared_basis["w"][0])
    np.testing.assert_allclose(seen[0]["w"], params["w"] @ v @ v.T, atol=1e-5)


def test_extra_arguments_reach_inner_and_fallback():
    def init(params):
        return optax.EmptyState()

    def update(updates, state, params=None, *, factor, **extra):
        return jax.tree.map(lambda u: u * factor, updates), state

    tx = optax.GradientTransformationExtraArgs(init, update)
    shapes = {"w": (8, 6), "bias": (6,)}
    _, _, one = one_kernel(1, shapes, inner=tx, fallback=tx, extra={"factor": 1.0})
    _, _, two = one_kernel(1, shapes, inner=tx, fallback=tx, extra={"factor": 2.0})
    assert difference(two, jax.tree.map(lambda u: 2 * u, one)) < 1e-6


@pytest.mark.slow
def test_head_split_and_expert_kernels_are_their_reshaped_matrices():
    rng = np.random.default_rng(0)
    flat = {"a": rng.normal(size=(8, 6)).astype(np.float32), "b": rng.normal(size=(2, 8, 6)).astype(np.float32)}
    grads = lambda i: make_grads(i, shapes={"a": (8, 6), "b": (2, 8, 6)})  # noqa: E731
    split = lambda tree, lead: {  # noqa: E731
        "a": tree["a"].reshape(*lead, 8, 2, 3),
        "b": tree["b"].reshape(*lead, 2, 8, 2, 3),
    }
    rule = lambda path, leaf: gj.MatrixDims(-3, (-2, -1))  # noqa: E731
    _, _, expected = one_kernel(3, params=flat, grads_of=grads, matrix_dims=lambda path, leaf: gj.MatrixDims())
    _, _, found = one_kernel(3, params=split(flat, ()), grads_of=lambda i: split(grads(i), (2,)), matrix_dims=rule)
    assert found[-1]["a"].shape == (8, 2, 3)
    assert difference(found, [split(u, ()) for u in expected]) < 1e-5


@pytest.mark.slow
def test_unrolled_layers_and_their_stack_get_the_same_updates():
    names = ["l0", "l1", "l2"]
    ns_stack, ns_apart = stacked_null_spaces()
    shapes = dict.fromkeys(names, (8, 6))
    params = make_params(shapes)
    grads = lambda i: make_grads(i, shapes=shapes)  # noqa: E731
    extra = {"task_losses": LOSSES}
    options = {"refresh_every": 2, "decomposition": "eigh"}
    _, _, apart = one_kernel(3, params=params, grads_of=grads, extra=extra, null_space=ns_apart, **options)
    stacked = {"stack": np.stack([params[n] for n in names])}
    grads_of = lambda i: {"stack": np.stack([grads(i)[n] for n in names], axis=1)}  # noqa: E731
    _, _, together = one_kernel(
        3, params=stacked, grads_of=grads_of, extra=extra, null_space=ns_stack, **options,
        matrix_dims=lambda path, leaf: gj.MatrixDims(),
    )  # fmt: skip
    for found, expected in zip(together, apart, strict=True):
        assert difference(found["stack"], np.stack([expected[n] for n in names])) < 1e-5


def stacked_null_spaces():
    ks = [orthonormal(8, 3, j) for j in range(3)]
    moments = [k @ np.diag([3.0, 2.0, 1.0]) @ k.T for k in ks]
    stack = gj.NullSpace.from_moments({"stack": np.stack(moments)}, rank=3)
    return stack, gj.NullSpace.from_moments({f"l{j}": m for j, m in enumerate(moments)}, rank=3)


def equations(jaxpr):
    count = 0
    for eqn in jaxpr.eqns:
        count += 1
        for value in eqn.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                count += equations(inner) if hasattr(inner, "eqns") else 0
    return count


@pytest.mark.slow
def test_the_program_does_not_grow_with_depth():
    def size(depth):
        shapes = {f"layer{j}_{n}": s for j in range(depth) for n, s in (("q", (8, 8)), ("wi", (8, 12)))}
        params = {n: np.zeros(s, np.float32) for n, s in shapes.items()} | {"embedding": np.zeros((9, 8), np.float32)}
        ns, _ = make_null_space(dict.fromkeys(shapes, 8))
        tx = gj.gems(1e-3, num_tasks=2, rank=2, null_space=ns, weight_decay=0.1)
        state = jax.eval_shape(tx.init, params)
        grads = jax.tree.map(lambda p: np.zeros((2, *p.shape), np.float32), params)
        return equations(jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p))(grads, state, params).jaxpr)

    assert size(48) <= 1.1 * size(6)
