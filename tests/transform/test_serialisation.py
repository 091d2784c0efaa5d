"""The state on disk and back: orbax, flax's msgpack, numpy; training goes on with the same bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from problems import COUNTS, LOSSES, make_grads, make_null_space, make_params

import gems_jax as gj

SHAPES = {"w": (8, 6), "stack": (2, 6, 8), "bias": (6,)}
PARAMS = jax.tree.map(jnp.asarray, make_params(SHAPES))
RULE = lambda path, leaf: gj.MatrixDims() if len(leaf.shape) > 1 else None  # noqa: E731


def transform():
    """Everything a state can hold: factors, former updates, a gate's network, moments of a partner in the chain."""
    ns, _ = make_null_space({"w": 8})
    gate = gj.gates.learned(learning_rate=1e-2, hidden=8)
    tx = gj.gems(
        1e-2, num_tasks=2, rank=3, refresh_every=4, null_space=ns, gate=gate, matrix_dims=RULE, recovery="fira"
    )
    return optax.chain(tx, optax.trace(0.5))


TX = transform()


@functools.partial(jax.jit)
def step(grads, state, params, losses, counts):
    updates, state = TX.update(grads, state, params, task_losses=losses, task_counts=counts)
    return optax.apply_updates(params, updates), state


def go_on(params, state, first, last):
    for i in range(first, last):
        params, state = step(make_grads(i, shapes=SHAPES), state, params, LOSSES(i), COUNTS(i))
    return params, state


@pytest.fixture(scope="module")
def trained():
    """After three steps (what is saved) and after six (what it must come to), over the refresh at step 4."""
    half = go_on(PARAMS, jax.jit(TX.init)(PARAMS), 0, 3)
    return half, go_on(*half, 3, 6)


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, gj.leaf_path(path)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=gj.leaf_path(path))


@pytest.mark.slow
def test_the_state_is_arrays_alone(trained):
    for leaf in jax.tree.leaves(trained[0][1]):
        assert isinstance(leaf, jax.Array)
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # which not every format can hold
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.bool)


@pytest.mark.slow
def test_orbax_gives_the_bare_state_back_from_its_shapes(trained, tmp_path):
    (params, state), expected = trained
    abstract = jax.eval_shape(TX.init, PARAMS)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(3, args=ocp.args.StandardSave({"params": params, "state": state}))
        manager.wait_until_finished()
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)  # noqa: E731
    target = jax.tree.map(place, {"params": PARAMS, "state": abstract})
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        back = manager.restore(3, args=ocp.args.StandardRestore(target))
    assert_same_bits(back["state"], state)
    assert_same_bits(go_on(back["params"], back["state"], 3, 6), expected)


@pytest.mark.slow
def test_orbax_puts_the_state_where_state_sharding_says(trained, tmp_path):
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    spec = lambda x: NamedSharding(mesh, PartitionSpec(*("fsdp", "tensor")[: x.ndim]))  # noqa: E731
    params = jax.device_put(PARAMS, jax.tree.map(spec, PARAMS))
    where, (_, state) = gj.state_sharding(TX, params), trained[0]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(TX.init, PARAMS)
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)
        back = checkpointer.restore(tmp_path / "state", target)
    assert_same_bits(back, state)
    assert jax.tree.map(lambda x: x.sharding, back) == where


@pytest.mark.slow
def test_flax_msgpack_gives_the_state_back(trained):
    (params, state), expected = trained
    data = serialization.to_bytes(state)
    back = serialization.from_bytes(jax.eval_shape(TX.init, PARAMS), data)
    assert_same_bits(jax.tree.map(jnp.asarray, back), state)
    assert_same_bits(go_on(params, jax.tree.map(jnp.asarray, back), 3, 6), expected)


def test_numpy_gives_the_leaves_back_by_their_paths_without_pickle(trained, tmp_path):
    (params, state), expected = trained
    leaves = {gj.leaf_path(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}
    assert len(leaves) == len(jax.tree.leaves(state))  # no two leaves share a path
    np.savez(tmp_path / "state.npz", **leaves)
    abstract = jax.eval_shape(TX.init, PARAMS)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        paths = [gj.leaf_path(p) for p, _ in jax.tree_util.tree_leaves_with_path(abstract)]
        assert set(paths) == set(file.files)
        back = jax.tree.unflatten(jax.tree.structure(abstract), [jnp.asarray(file[p]) for p in paths])
    assert_same_bits(go_on(params, back, 3, 6), expected)


@pytest.mark.slow
def test_a_transform_made_anew_takes_the_state_of_another(trained):
    """Nothing passes from ``init`` to ``update`` but the state: another process need not call ``init``."""
    (params, state), expected = trained
    fresh = transform()
    update = lambda g, s, p, losses, counts: fresh.update(g, s, p, task_losses=losses, task_counts=counts)  # noqa: E731
    update = jax.jit(update)
    for i in range(3, 6):
        updates, state = update(make_grads(i, shapes=SHAPES), state, params, LOSSES(i), COUNTS(i))
        params = optax.apply_updates(params, updates)
    for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=1e-6)
