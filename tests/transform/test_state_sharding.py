"""Where the optimiser state lies on a mesh: from shapes alone, and in steps on eight devices."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sharded_steps
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from problems import make_null_space, make_params

import gems_jax as gj

P = PartitionSpec
SHAPES, SPECS, RULE = sharded_steps.SHAPES, sharded_steps.SPECS, sharded_steps.rule


def make_mesh(*names, kind=AxisType.Auto):
    return Mesh(np.array(jax.devices()[:1]).reshape((1,) * len(names)), names, axis_types=(kind,) * len(names))


MESH = make_mesh("task", "fsdp", "tensor")


def abstract(shapes=SHAPES, specs=SPECS, mesh=MESH, dtype=jnp.float32):
    place = {name: NamedSharding(mesh, P(*specs[name])) for name in shapes}
    return {name: jax.ShapeDtypeStruct(s, dtype, sharding=place[name]) for name, s in shapes.items()}


def specs(tree):
    return jax.tree.map(lambda s: s.spec, tree, is_leaf=lambda x: isinstance(x, NamedSharding))


def gems(**options):
    return gj.gems(1e-3, **({"num_tasks": 2, "rank": 4, "matrix_dims": RULE} | options))


def test_bases_lie_as_the_side_they_keep_and_moments_as_the_other():
    found = specs(gj.state_sharding(gems(side="auto"), abstract()))[0]
    assert found.shared_basis == {
        "a": P(None, "fsdp", None),
        "b": P(None, "fsdp", None),
        "wide": P(None, "tensor", None),  # 16 x 8: kept on the output side
        "stack": P(None, "tensor", None),
        "heads": P(None, "fsdp", None),
        "bias": optax.MaskedNode(),
    }
    assert found.shared_inner.mu["a"] == found.shared_inner.nu["a"] == P(None, None, "tensor")
    assert found.shared_inner.mu["wide"] == P(None, None, "fsdp")
    assert found.shared_inner.mu["heads"] == P(None, None, "tensor")  # heads x head_dim, split by heads
    assert found.task_basis["a"] == P(None, None, "fsdp", None)
    assert found.task_inner.nu["wide"] == P(None, None, None, "fsdp")
    assert found.fallback.mu["bias"] == P("tensor")
    assert found.count == found.fallback.count == P()
    assert set(jax.tree.leaves(found.diagnostics)) == {P()}


def test_the_side_option_is_followed():
    found = specs(gj.state_sharding(gems(side="out"), abstract()))[0]
    assert found.shared_basis["a"] == P(None, "tensor", None)
    assert found.shared_inner.mu["a"] == P(None, None, "fsdp")


def test_thin_axes_are_split_over_the_kernel_s_other_mesh_axes_where_these_divide_them():
    mesh = AbstractMesh((2, 2, 4), ("task", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    shapes, placed = {"a": (8, 16), "o": (4, 4, 24)}, {"a": ("fsdp", "tensor"), "o": ("fsdp", "tensor", None)}
    rule = lambda path, leaf: gj.MatrixDims((0, 1), 2) if path == "o" else gj.MatrixDims()  # noqa: E731
    null_space, _ = make_null_space({"a": 8}, kept=4)
    tx = gems(rank=4, task_rank=2, matrix_dims=rule, side="in", null_space=null_space)
    found = specs(gj.state_sharding(tx, abstract(shapes, placed, mesh), task_axis="task"))[0]
    assert found.shared_basis == {"a": P(None, "fsdp", "tensor"), "o": P(None, ("fsdp", "tensor"), None)}
    assert found.null_space["a"] == P("fsdp", "tensor")
    assert found.shared_inner.mu == {"a": P(None, "fsdp", "tensor"), "o": P(None, "fsdp", None)}
    # Two columns: not over the four devices of "tensor".
    assert found.task_basis["a"] == P("task", None, "fsdp", None)
    assert found.task_inner.nu["a"] == P("task", None, "fsdp", "tensor")


def test_stacks_and_experts_are_split_as_their_batch_axes():
    shapes, placed = {"experts": (4, 2, 8, 16)}, {"experts": ("task", None, "fsdp", "tensor")}
    rule = lambda path, leaf: gj.MatrixDims()  # noqa: E731
    found = specs(gj.state_sharding(gems(matrix_dims=rule), abstract(shapes, placed)))[0]
    assert found.shared_basis["experts"] == P("task", None, "fsdp", None)
    assert found.task_basis["experts"] == P(None, "task", None, "fsdp", None)
    assert found.task_inner.mu["experts"] == P(None, "task", None, None, "tensor")
    assert found.shared_inner.count["experts"] == P("task", None)


def test_axes_flattened_into_one_side_are_split_over_all_their_mesh_axes():
    shapes, placed = (
        {"o": (4, 4, 8), "one": (8, 1, 16)},
        {"o": ("fsdp", "tensor", None), "one": ("fsdp", None, "tensor")},
    )
    rule = lambda path, leaf: gj.MatrixDims((0, 1), 2)  # noqa: E731
    found = specs(gj.state_sharding(gems(matrix_dims=rule, side="in"), abstract(shapes, placed)))[0]
    assert found.shared_basis["o"] == P(None, ("fsdp", "tensor"), None)
    assert found.shared_inner.mu["o"] == P(None, None, None)
    assert found.shared_inner.mu["one"] == P(None, None, "tensor")


@pytest.mark.parametrize(("side", "expected"), [("in", "fsdp"), ("out", "tensor")])
def test_null_space_factors_lie_as_the_axis_they_project(side, expected):
    dims = {n: SHAPES[n][0 if side == "in" else 1] for n in ("a", "b")}
    ns, _ = make_null_space(dims, side=side)
    stack = np.stack([np.diag(np.arange(16.0 if side == "in" else 8.0))] * 2)
    stacked = gj.NullSpace.from_moments({"stack": stack}, rank=3, side=side)
    for null_space, name, lead in ((ns, "a", ()), (stacked, "stack", (None,))):
        tx = optax.chain(gems(null_space=null_space), optax.clip(1.0))
        assert specs(gj.state_sharding(tx, abstract()))[0][0].null_space[name] == P(*lead, expected, None)
        alone = optax.chain(optax.sgd(1e-2), gj.constrain_to_null_space(null_space))
        assert specs(gj.state_sharding(alone, abstract()))[1].factors[name] == P(*lead, expected, None)
    # Outside the subspaces a leaf is constrained all the same.
    none = gems(null_space=ns, matrix_dims=lambda path, leaf: RULE(path, leaf) if path == "wide" else None)
    assert specs(gj.state_sharding(none, abstract()))[0].null_space["a"] == P(expected, None)


def test_a_chain_a_partition_and_wrappers_are_seen_through():
    labels = {name: "rest" if name == "bias" else "gems" for name in SHAPES}
    rest = optax.chain(gj.merge_tasks(), optax.adam(1e-3))
    parts = {"gems": gems(), "rest": rest}
    parted = specs(gj.state_sharding(optax.partition(parts, labels), abstract())).inner_states
    assert parted["gems"].inner_state[0].shared_basis["wide"] == P(None, "tensor", None)
    assert parted["rest"].inner_state[1][0].mu["bias"] == P("tensor")
    tx = optax.chain(gj.apply_if_finite(gems(), 2), optax.trace(0.9))
    found = specs(gj.state_sharding(tx, abstract()))
    assert found[0].inner[0].shared_basis["a"] == P(None, "fsdp", None)
    assert found[1].trace["a"] == P("fsdp", "tensor")
    baseline = specs(gj.state_sharding(gj.baselines.mgda(optax.adam(1e-3)), abstract()))
    assert baseline.inner[0].mu["stack"] == P(None, "fsdp", "tensor")
    injected = optax.inject_hyperparams(gj.gems, static_args=gj.STATIC_ARGS)(
        learning_rate=1e-3, num_tasks=2, rank=4, matrix_dims=RULE
    )
    found = specs(gj.state_sharding(injected, abstract()))
    assert found.inner_state[0].shared_basis["a"] == P(None, "fsdp", None)
    assert found.hyperparams["learning_rate"] == P()


@pytest.mark.parametrize("task", [None, "task"])
def test_the_task_axis_is_split_where_asked_also_of_gradients_being_accumulated(task):
    tx = gj.accumulate(gems(gate=gj.gates.learned()), 2)
    found = specs(gj.state_sharding(tx, abstract(), task_axis=task))
    assert found.gradients["a"] == P(task, "fsdp", "tensor")
    assert found.losses == P()
    assert found.inner[0].task_basis["a"] == P(task, None, "fsdp", None)
    assert found.inner[0].previous["a"] == P(task, None, None, "tensor")
    assert found.inner[0].shared_basis["a"] == P(None, "fsdp", None)
    assert set(jax.tree.leaves(found.inner[0].gate)) == {P()}


def test_factored_and_single_moments_of_other_inner_transforms():
    factored = gems(inner=optax.scale_by_factored_rms(min_dim_size_to_factor=2), fallback=optax.scale_by_lion())
    found = specs(gj.state_sharding(factored, abstract()))[0]
    sides = {found.shared_inner.v_row["a"], found.shared_inner.v_col["a"]}
    assert sides == {P(None, None), P(None, "tensor")}
    assert found.fallback.mu["bias"] == P("tensor")


def test_the_tree_is_that_of_the_state_and_places_it():
    few = {n: SHAPES[n] for n in ("a", "bias")}
    params = jax.device_put(make_params(few), {n: NamedSharding(MESH, P(*SPECS[n])) for n in few})
    tx = gems(null_space=make_null_space({"a": 8})[0], gate=gj.gates.learned())
    where = gj.state_sharding(tx, params)
    state = jax.jit(tx.init)(params)
    assert jax.tree.structure(where) == jax.tree.structure(state)
    placed = jax.device_put(state, where)
    assert all(x.sharding == s for x, s in zip(jax.tree.leaves(placed), jax.tree.leaves(where), strict=True))
    assert where == gj.state_sharding(tx, abstract(few))


def test_nnx_states_have_their_state_s_sharding():
    from flax import nnx

    state = nnx.state(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.Param)
    place = {"kernel": P("fsdp", "tensor"), "bias": P("tensor")}
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.device_put(x, NamedSharding(MESH, place[gj.leaf_path(path)])), state
    )
    found = gj.state_sharding(gems(matrix_dims=None), params)[0]
    by_path = {gj.leaf_path(p): s.spec for p, s in jax.tree_util.tree_leaves_with_path(found)}
    assert by_path["shared_basis/kernel"] == P(None, "fsdp", None)
    assert by_path["shared_inner/mu/kernel"] == P(None, None, "tensor")
    assert by_path["fallback/nu/bias"] == P("tensor")


def test_what_cannot_be_placed_is_refused_by_name():
    tx = gems(matrix_dims=None)
    params = abstract()
    with pytest.raises(ValueError, match="parameter 'wide' has no NamedSharding but None; place it"):
        gj.state_sharding(tx, params | {"wide": jax.ShapeDtypeStruct((16, 8), jnp.float32)})
    with pytest.raises(ValueError, match="parameter 'a' has no NamedSharding but SingleDevice"):
        gj.state_sharding(tx, {"a": jnp.zeros((8, 16))})
    other = abstract({"wide": (16, 8)}, mesh=make_mesh("fsdp", "tensor"))
    with pytest.raises(ValueError, match="parameter 'wide' is on the mesh .* use one"):
        gj.state_sharding(tx, params | other)
    explicit = abstract(mesh=make_mesh("fsdp", "tensor", kind=AxisType.Explicit))
    with pytest.raises(ValueError, match=r"mesh axes fsdp, tensor are of type Explicit.*AxisType.Auto,\) \* 2"):
        gj.state_sharding(tx, explicit)
    with pytest.raises(ValueError, match="task_axis is 'tasks'; the mesh has the axes task, fsdp, tensor"):
        gj.state_sharding(tx, params, task_axis="tasks")
    with pytest.raises(ValueError, match="no parameters"):
        gj.state_sharding(tx, {})


# --- eight devices ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight_devices():
    program = Path(sharded_steps.__file__)
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", sharded_steps.MESHES)
def test_sharded_steps_equal_those_on_one_device_over_a_refresh(eight_devices, mesh):
    found = eight_devices[mesh]
    assert max(found["params"]) < 5e-6  # of weights of order 1, moved by a tenth
    assert found["bases"] < 2e-5
    assert found["moved"] > 5e-2


@pytest.mark.slow
@pytest.mark.parametrize("mesh", sharded_steps.MESHES)
def test_the_state_stays_where_it_was_put_and_nothing_compiles_again(eight_devices, mesh):
    found = eight_devices[mesh]
    assert found["as asked"] == [True] * (1 + sharded_steps.STEPS)
    assert found["compiled"] == 1
    assert found["abstract is the same"]


@pytest.mark.slow
def test_a_state_of_named_parameters_is_placed_by_their_names_where_it_has_their_shape(eight_devices):
    """16 entries, split in two."""
    assert eight_devices["task 2 x fsdp 2 x tensor 2"]["bias's moments by name"] == "(8,)"


@pytest.mark.slow
def test_each_device_holds_its_part_alone(eight_devices):
    # Kept on the output side (16 x 8), which is split over "tensor"; its two columns over "fsdp" where that divides
    # them, the tasks over "task".
    held = {mesh: found["held of a task basis"] for mesh, found in eight_devices.items()}
    assert held == {"fsdp 8": 1.0, "task 2 x fsdp 2 x tensor 2": 0.125}
