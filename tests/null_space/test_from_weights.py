"""A null space read off the weights: against numpy's singular vectors in float64, on both sides of the kernels."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from problems import assert_no_leak, make_grads, make_params, run

import gems_jax as gj

SHAPES = {"tall/kernel": (8, 5), "wide/kernel": (5, 8), "stack/kernel": (2, 6, 4)}


def weights(seed=0):
    return make_params(SHAPES, seed)


def leading(matrix, kept):
    left, _, right = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return left[:, :kept], right[:kept].T


def kept_by_energy(matrix, energy):
    squares = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False) ** 2
    return int(np.searchsorted(np.cumsum(squares) / squares.sum(), energy) + 1)


def as_stack(x):
    return np.asarray(x, np.float64).reshape(-1, *x.shape[-2:])


@pytest.mark.parametrize(
    "rule", [{"energy": 0.6}, {"rank": 3}, {"rank": 0.5}, {"energy": 0.1, "min_share": 0.4}], ids=str
)
@pytest.mark.parametrize("sides", ["in", "out", "both"])
def test_updates_are_projected_off_the_leading_singular_vectors_of_each_side(rule, sides):
    params, grads = weights(), {name: g[0] for name, g in make_grads(0, 1, SHAPES).items()}
    ns = gj.NullSpace.from_weights(params, **rule, sides=sides)
    tx = gj.constrain_to_null_space(ns)
    updates, _ = tx.update(jax.tree.map(jnp.asarray, grads), tx.init(params))
    for name, update in updates.items():
        for i, (w, g, found) in enumerate(zip(*map(as_stack, (params[name], grads[name], update)), strict=True)):
            smaller = min(w.shape)
            by_share = round(rule.get("min_share", 0) * smaller)
            rank = rule.get("rank", 0)
            kept = (
                max(kept_by_energy(w, rule["energy"]), by_share)
                if "energy" in rule
                else round(rank * smaller if isinstance(rank, float) else rank)
            )
            u, v = leading(w, kept)
            expected = g
            if sides != "out":
                expected = expected - u @ (u.T @ expected)
            if sides != "in":
                expected = expected - (expected @ v) @ v.T
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(g).max(), err_msg=f"{name} {i}")
    assert_no_leak(updates, ns)
    whole = gj.null_space_leak(grads, ns)
    assert min(float(leak) for leak in whole.values()) > 0.1


def test_behind_an_optimiser_what_the_weights_do_to_their_leading_directions_stays():
    params = weights()
    ns = gj.NullSpace.from_weights(params, rank=2)
    tx = optax.chain(optax.adamw(1e-2, weight_decay=0.1), gj.constrain_to_null_space(ns))
    moved, _, seen = run(tx, params, lambda i: {name: g[0] for name, g in make_grads(i, 1, SHAPES).items()}, 3)
    for updates in seen:
        assert_no_leak(updates, ns)
    for name in SHAPES:
        for before, after in zip(as_stack(params[name]), as_stack(moved[name]), strict=True):
            u, v = leading(before, 2)
            assert np.abs(after - before).max() > 1e-3
            np.testing.assert_allclose(u.T @ after, u.T @ before, atol=1e-5)
            np.testing.assert_allclose(after @ v, before @ v, atol=1e-5)


def test_the_leak_of_both_sides_is_the_larger_one():
    params = {"w": np.diag([5.0, 1.0, 0.5])}
    ns = gj.NullSpace.from_weights(params, rank=1)
    update = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    for turned in (update, update.T):
        assert float(gj.null_space_leak({"w": turned}, ns)["w"]) == pytest.approx(0.6)


def test_bfloat16_weights_and_tables_beside_kernels():
    params = {"q/kernel": jnp.asarray(weights()["tall/kernel"], jnp.bfloat16), "embedding": jnp.ones((9, 4))}
    ns = gj.NullSpace.from_weights(params, rank=1)
    assert set(ns.inputs) == {"q/kernel"}
    assert ns.left_out == {"embedding": "no kernel by its name"}
    ns.check_weights(params)
    with pytest.raises(ValueError, match="for other weights"):
        ns.check_weights(params | {"q/kernel": params["q/kernel"] + 1})


def test_gems_makes_its_bases_inside_one_side_and_refuses_both():
    shapes = {"tall/kernel": SHAPES["tall/kernel"]}
    params = make_params(shapes)
    with pytest.raises(ValueError, match="on both sides .*sides='in' or 'out', or chain"):
        gj.gems(1e-2, num_tasks=2, null_space=gj.NullSpace.from_weights(params, rank=2))
    ns = gj.NullSpace.from_weights(params, rank=2, sides="out")
    tx = gj.gems(1e-2, num_tasks=2, rank=2, null_space=ns)
    _, _, seen = run(tx, params, lambda i: make_grads(i, 2, shapes), 1)
    assert_no_leak(seen[0], ns)


def test_files_keep_both_sides_and_a_lost_side_is_damage(tmp_path):
    ns = gj.NullSpace.from_weights(weights(), energy=0.5)
    ns.save(tmp_path)
    back = gj.NullSpace.load(tmp_path)
    assert (back.side, back.inputs, back.outputs, set(back.roles)) == ("both", ns.inputs, ns.outputs, set(ns.roles))
    for name, factor in ns.factors.items():
        np.testing.assert_array_equal(back.factors[name].basis, factor.basis)
    assert [line.split()[0] for line in ns.summary().splitlines()[1:]] == [*ns.inputs, *ns.inputs]
    about = json.loads((tmp_path / "null_space.json").read_text())
    about["outputs"].pop("tall/kernel")
    (tmp_path / "null_space.json").write_text(json.dumps(about))
    (tmp_path / "checksums.json").unlink()
    with pytest.raises(ValueError, match="is damaged"):
        gj.NullSpace.load(tmp_path)


def test_factors_lie_on_a_mesh_as_the_side_that_they_span():
    mesh = jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    layout = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    params = {"w": jax.device_put(jnp.eye(8), layout)}
    tx = gj.constrain_to_null_space(gj.NullSpace.from_weights(params, rank=2))
    factors = gj.state_sharding(tx, params).factors
    assert {name: tuple(f.spec)[0] for name, f in factors.items()} == {"w": "fsdp", "w (outputs)": "tensor"}


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ({"w": np.eye(3)}, {}, "exactly one of energy, rank and threshold, got none"),
        ({"w": np.eye(3)}, {"rank": 1, "sides": "left"}, "sides is 'left'"),
        ({"w": np.full((3, 3), np.nan)}, {"rank": 1}, "the weights of 'w' are not finite"),
        ({"embedding": np.eye(3), "scale": np.ones(3)}, {"rank": 1}, r"no kernels under matrix_dims \(embedding\)"),
    ],
    ids=range(4),
)
def test_weights_and_rules_that_make_no_sense_are_refused(params, options, message):
    with pytest.raises(ValueError, match=message):
        gj.NullSpace.from_weights(params, **options)


def test_kernels_of_zeros_protect_nothing_and_roles_of_the_caller_are_kept():
    dims = gj.MatrixDims(0, (1, 2))
    params = {"q": np.random.default_rng(0).normal(size=(4, 2, 3)), "zero": np.zeros((4, 2, 3))}
    ns = gj.NullSpace.from_weights(params, energy=0.9, matrix_dims=lambda path, leaf: dims)
    assert ns.roles == {"q": dims, "zero": dims}
    assert ns.factors["q (outputs)"].dim == 6
    update = {name: np.ones((4, 2, 3), np.float32) for name in params}
    tx = gj.constrain_to_null_space(ns)
    found, _ = tx.update(jax.tree.map(jnp.asarray, update), tx.init(params))
    np.testing.assert_array_equal(found["zero"], update["zero"])
    assert_no_leak(found, ns)
