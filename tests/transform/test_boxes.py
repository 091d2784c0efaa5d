"""Parameters in Flax's boxes, which name mesh axes: the same programs and paths as bare, states that can be placed."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from problems import make_grads, make_null_space, make_params

import gems_jax as gj
from gems_jax.boxes import is_box
from gems_jax.training.workdir.checkpoints import as_dict

P = PartitionSpec
EIGHT = AbstractMesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
SHAPES = {"a": (8, 16), "stack": (2, 16, 8), "bias": (16,)}
NAMES = {"a": ("fsdp", "tp"), "stack": (None, "tp", "fsdp"), "bias": ("tp",)}
RULE = lambda path, leaf: gj.MatrixDims() if len(leaf.shape) > 1 else None  # noqa: E731


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Measured(nn.meta.AxisMetadata):
    """Somebody's own box, whose field has another name."""

    array: jax.Array
    units: tuple = dataclasses.field(metadata={"static": True})

    def unbox(self):
        raise AssertionError("may do more than hand out the array")

    def replace_boxed(self, val):
        return Measured(val, self.units)

    def add_axis(self, index, params):
        return self

    def remove_axis(self, index, params):
        return self


BOXES = {
    "Partitioned": nn.Partitioned,
    "LogicallyPartitioned": nn.LogicallyPartitioned,
    "NNX variable": lambda x, names: nnx.Param(x, out_sharding=names, eager_sharding=False, lr_axes=names),
    "own": Measured,
    "two": lambda x, names: nn.Partitioned(Measured(x, names), names),
}


def in_boxes(kind, arrays):
    return {name: BOXES[kind](jnp.asarray(x), NAMES[name]) for name, x in arrays.items()}


NULL_SPACE, _ = make_null_space({"a": 8})
FACTORED = optax.scale_by_factored_rms(min_dim_size_to_factor=2)


def gems(**options):
    return gj.gems(1e-2, **({"num_tasks": 2, "rank": 2, "refresh_every": 2, "matrix_dims": RULE} | options))


def by_path(tree):
    return jax.tree_util.tree_map_with_path(lambda path, _: "rest" if "bias" in gj.leaf_path(path) else "gems", tree)


# A transform, and the box it is tried with: each kind of box meets states of every kind.
TRANSFORMS = {
    "null space, learned gate, decay": (
        "Partitioned",
        lambda: gems(
            null_space=NULL_SPACE,
            gate=gj.gates.learned(hidden=4),
            weight_decay=0.1,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    ),
    "factored moments": ("two", lambda: gems(inner=FACTORED, fallback=FACTORED)),
    "partition": (
        "LogicallyPartitioned",
        lambda: optax.partition({"gems": gems(), "rest": optax.chain(gj.merge_tasks(), optax.adam(1e-2))}, by_path),
    ),
    "wrappers": ("own", lambda: gj.apply_if_finite(gj.accumulate(gems(), 2), 2)),
    "constrained Adam": (
        "own",
        lambda: optax.chain(gj.merge_tasks(), optax.adam(1e-2), gj.constrain_to_null_space(NULL_SPACE)),
    ),
    "released": ("own", lambda: gj.presets.released(1e-2, num_tasks=2, rank=2, matrix_dims=RULE)),
    "galore": ("NNX variable", lambda: gj.baselines.galore(optax.scale_by_adam(), rank=2)),
}
PARAMS, GRADS = (jax.tree.map(jnp.asarray, tree) for tree in (make_params(SHAPES), make_grads(0, shapes=SHAPES)))


def program(tx, params, grads):
    """What a step computes, and the shapes of a state, of updates, of the state after."""
    state = jax.eval_shape(tx.init, params)
    step = lambda g, s, p: tx.update(g, s, p, task_losses=jnp.ones(2))  # noqa: E731
    jaxpr, (updates, after) = jax.make_jaxpr(step, return_shape=True)(grads, state, params)
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr)), state, updates, after


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_step_is_the_same_program_with_boxes_and_without(name):
    kind, make = TRANSFORMS[name]
    params = in_boxes(kind, PARAMS)
    expected, bare, _, _ = program(make(), PARAMS, GRADS)
    found, state, updates, after = program(make(), params, in_boxes(kind, GRADS))
    assert found == expected
    assert jax.tree.structure(updates) == jax.tree.structure(params)  # so that optax.apply_updates takes them
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert as_dict(state) == as_dict(bare)  # the same paths, as a checkpoint has them


def test_what_has_its_parameters_shape_keeps_the_box_and_all_else_has_none():
    params = in_boxes("Partitioned", PARAMS)
    state = jax.eval_shape(gems().init, params)[0]
    assert state.fallback.mu["bias"].names == ("tp",)
    assert not any(map(is_box, jax.tree.leaves(state._replace(fallback=()), is_leaf=is_box)))
    assert state.fallback.mu["a"] == optax.MaskedNode()
    specs = nn.get_partition_spec(state)
    assert (specs.fallback.nu["bias"], specs.shared_basis["a"], specs.task_inner.mu["stack"]) == (P("tp"), P(), P())
    marked = optax.tree.map_params(gems(), lambda x: "param", (state, optax.EmptyState()))[0]
    assert marked.fallback.mu["bias"].value == marked.shared_basis["a"] == marked.task_inner.nu["stack"] == "param"


def test_reports_null_spaces_and_fingerprints_see_through_boxes():
    params, tx = in_boxes("own", PARAMS), gems(null_space=NULL_SPACE)
    assert gj.state_bytes(tx, params) == gj.state_bytes(tx, PARAMS)
    NULL_SPACE.check_weights(params)
    leaks = gj.null_space_leak(params, NULL_SPACE)
    assert leaks == gj.null_space_leak(PARAMS, NULL_SPACE)
    assert set(leaks) == {"a"}


def test_a_null_space_estimated_in_boxes_under_a_mesh_is_that_of_the_bare_weights():
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    layer, x = nn.Dense(3, use_bias=False), jnp.asarray(make_params({"x": (9, 4)})["x"])
    bare = {"kernel": jnp.asarray(make_params({"kernel": (4, 3)})["kernel"])}

    def estimate(params):
        apply = lambda params, x: layer.apply({"params": params}, x)  # noqa: E731
        return gj.estimate_null_space(apply, [{"x": x}], rank=2, params=params, progress=False)

    expected = estimate(bare)
    boxed = {"kernel": nn.Partitioned(bare["kernel"], ("fsdp", "tp"))}
    with jax.set_mesh(mesh):
        found = estimate(boxed)
    assert (found.inputs, found.roles, found.fingerprint) == (expected.inputs, expected.roles, expected.fingerprint)
    np.testing.assert_array_equal(found.factor("kernel").basis, expected.factor("kernel").basis)
    expected.check_weights(boxed)
    found.check_weights(bare)


class Layers(nnx.Module):
    def __init__(self, rngs):
        kernel = lambda *names: nnx.with_partitioning(  # noqa: E731
            nnx.initializers.lecun_normal(), names, lr_axes=names, optimizer_sharding=names[::-1]
        )
        bias = nnx.with_partitioning(nnx.initializers.zeros, ("tp",))
        self.a = nnx.Linear(8, 16, kernel_init=kernel("fsdp", "tp"), bias_init=bias, rngs=rngs)
        self.b = nnx.Linear(16, 8, use_bias=False, kernel_init=kernel("tp", "fsdp"), rngs=rngs)

    def __call__(self, x):
        return self.b(self.a(x))


@pytest.mark.slow
def test_nnx_s_optimizer_keeps_arrays_that_their_names_fit():
    batch = jnp.ones((2, 4, 8))

    def train():
        model = Layers(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, gj.accumulate(gems(matrix_dims=None), 2), wrt=nnx.Param)
        for _ in range(2):
            graph, params, rest = nnx.split(model, nnx.Param, ...)
            loss = lambda params, x: jnp.mean(nnx.merge(graph, params, rest, copy=True)(x) ** 2)  # noqa: E731, B023
            losses, grads = gj.task_value_and_grad(loss)(params, batch)
            optimizer.update(model, grads, task_losses=losses)
        return nnx.state(optimizer, nnx.optimizer.OptState)

    with jax.sharding.use_abstract_mesh(EIGHT):
        state = jax.eval_shape(train)
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    sizes = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_variable):
        spec = nnx.get_partition_spec(x).get_value()
        sizes[gj.leaf_path(path)] = NamedSharding(EIGHT, spec).shard_shape(x.shape)
    assert sizes["opt_state/inner/0/fallback/mu/a/bias"] == (8,)
    assert sizes["opt_state/inner/0/shared_basis/a/kernel"] == (1, 8, 2)
    with pytest.raises(ValueError, match="partitioned 4 times"):  # what the kernel's own names would come to
        NamedSharding(EIGHT, P("fsdp", "tp")).shard_shape((1, 8, 2))


@pytest.mark.slow
def test_a_train_state_of_boxes_is_saved_and_restored_where_its_parameters_lie(tmp_path):
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    params = jax.tree.map(
        lambda x, names: nn.Partitioned(jax.device_put(x, NamedSharding(mesh, P(*names))), names), PARAMS, NAMES
    )
    train = TrainState.create(apply_fn=None, params=params, tx=gems())
    where = gj.state_sharding(train.tx, params)
    assert jax.tree.structure(where) == jax.tree.structure(train.opt_state)
    assert where[0].fallback.mu["bias"].value.spec == P("tp")
    assert where[0].shared_basis["a"].spec == P(None, "fsdp", None)
    filled = jax.tree.map(lambda x: (jnp.arange(x.size) % 2).astype(x.dtype).reshape(x.shape), train.opt_state)
    saved = {"params": params, "state": jax.device_put(filled, where)}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(0, args=ocp.args.StandardSave(saved))
        manager.wait_until_finished()
        back = manager.restore(0, args=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, saved)))
    assert jax.tree.structure(back) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding == b.sharding
