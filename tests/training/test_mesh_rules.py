"""Where arrays of a run lie on a mesh: rules, rows of processes, the null space's factors; without any devices."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh
from problems import make_null_space, make_params

import gems_jax as gj
from gems_jax.config.train import MeshConfig
from gems_jax.leaf_path import leaf_path
from gems_jax.models import T5, Decoder, DecoderConfig, T5Config, load
from gems_jax.models.mesh_rules import keep_rows
from gems_jax.null_space.constraint import null_space_leak
from gems_jax.training.distributed.mesh import (
    make_mesh,
    optimiser_sharding,
    param_sharding,
    row_part,
    spec_of,
    task_axis,
)
from gems_jax.training.optimiser.factors import from_state, held_factors, initial_opt_state, with_factors
from gems_jax.training.step import leaks

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}


def one_device(kind=AxisType.Auto, names=("data", "fsdp", "tensor")):
    devices = np.array(jax.devices()[:1]).reshape((1,) * len(names))
    return Mesh(devices, names, axis_types=(kind,) * len(names))


# --- rules ------------------------------------------------------------------------------------------------------


def specs_of(model):
    state = nnx.eval_shape(model)
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(state, nnx.Param))
    return {leaf_path(path): tuple(spec_of(leaf_path(path), x.shape, SIZES)) for path, x in leaves}


FIRST, LAST = (None, "fsdp", "tensor"), (None, "tensor", "fsdp")


def test_kernels_of_a_decoder_are_split_by_output_and_the_last_of_a_layer_by_input():
    config = DecoderConfig(vocab_size=8, d_model=8, d_ff=8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4)
    config = dataclasses.replace(config, num_added_tokens=4, eos_token_id=1)
    found = specs_of(lambda: Decoder.create(config, jax.random.key(0)))
    kernels = {name.split("/")[-2]: spec for name, spec in found.items() if name.endswith("kernel")}
    assert kernels == dict.fromkeys(("q", "k", "v", "gate", "up"), FIRST) | dict.fromkeys(("o", "down"), LAST)
    tables = {name: spec for name, spec in found.items() if name.endswith("embedding")}
    assert set(tables.values()) == {("tensor", "fsdp")}
    assert not any(any(spec) for name, spec in found.items() if name.endswith("scale"))


def test_kernels_of_t5_are_split_alike_and_its_positions_are_whole():
    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_decoder_layers=2, num_heads=2)
    found = specs_of(lambda: T5.create(config, jax.random.key(0)))
    kernels = {name.split("/")[-2]: spec for name, spec in found.items() if name.endswith("kernel")}
    assert kernels == dict.fromkeys(("q", "k", "v", "wi_0", "wi_1"), FIRST) | dict.fromkeys(("o", "wo"), LAST)
    assert not any(found["encoder/relative_bias/embedding"])
    assert found["lm_head/embedding"] == ("tensor", "fsdp")


# --- meshes -----------------------------------------------------------------------------------------------------


def test_a_mesh_has_an_axis_of_tasks_where_it_is_asked_for():
    assert make_mesh(MeshConfig()).axis_names == ("data", "fsdp", "tensor")
    assert task_axis(make_mesh()) is None
    assert task_axis(one_device(names=("data", "fsdp", "task", "tensor"))) == "task"
    with pytest.raises(ValueError, match=r"mesh.fsdp=1 times mesh.task=3 times mesh.tensor=1 must divide the \d"):
        make_mesh(MeshConfig(task=3))


def processes_mesh(shape, processes, names=("data", "fsdp", "tensor")):
    """As much of a mesh as `row_part` looks at; ``processes``: of each device."""
    devices = np.array([SimpleNamespace(process_index=p) for p in processes]).reshape(shape)
    return SimpleNamespace(devices=devices, shape=dict(zip(names, shape, strict=True)))


WITH_TASKS = ("data", "fsdp", "task", "tensor")


@pytest.mark.parametrize(
    ("shape", "processes", "names", "expected"),
    [
        ((1, 8, 1), [0, 0, 0, 0, 1, 1, 1, 1], None, [(0, 2), (1, 2)]),
        ((1, 4, 2, 1), [0, 0, 0, 0, 1, 1, 1, 1], WITH_TASKS, [(0, 2), (1, 2)]),
        # Two processes share each part, as on a slice of TPUs of two by two chips a host.
        ((1, 4, 2), [0, 1, 0, 1, 2, 3, 2, 3], None, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8), [0, 0, 0, 0, 1, 1, 1, 1], None, [(0, 1), (0, 1)]),
        ((2, 2, 1), [0, 1, 0, 1], None, [(0, 2), (1, 2)]),
    ],
)
def test_processes_provide_the_rows_that_their_devices_work_on(shape, processes, names, expected):
    mesh = processes_mesh(shape, processes, names or ("data", "fsdp", "tensor"))
    assert [row_part(mesh, p) for p in sorted(set(processes))] == expected


@pytest.mark.parametrize(
    ("shape", "processes", "names"),
    [
        ((1, 3, 1), [0, 0, 1], ("data", "fsdp", "tensor")),  # of different sizes
        ((1, 3, 2), [0, 0, 0, 1, 1, 1], ("data", "fsdp", "tensor")),  # overlapping
        ((1, 1, 2, 1), [0, 1], WITH_TASKS),  # a process without one of the tasks
    ],
)
def test_meshes_whose_processes_would_share_rows_in_part_are_refused(shape, processes, names):
    with pytest.raises(ValueError, match=r"the mesh data=1, .* overlap or leave out tasks; let mesh.task times"):
        row_part(processes_mesh(shape, processes, names))


def test_axes_of_type_explicit_are_refused_by_name(tmp_path):
    explicit = one_device(AxisType.Explicit)
    message = "mesh axes data, fsdp, tensor are of type Explicit"
    with jax.set_mesh(explicit), pytest.raises(ValueError, match=message):
        keep_rows(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=message):
        load(tmp_path, mesh=explicit)
    params = jax.device_put(make_params({"kernel": (4, 4)}), param_sharding(make_params({"kernel": (4, 4)}), explicit))
    with pytest.raises(ValueError, match=message):
        optimiser_sharding(optax.adam(1e-3), params)


# --- rows of activations ----------------------------------------------------------------------------------------


def test_rows_stay_as_they_are_without_a_mesh_or_its_axes():
    x = jnp.ones((4, 3))
    assert keep_rows(x) is x
    with jax.set_mesh(one_device(names=("shard",))):
        assert keep_rows(x) is x
    with jax.set_mesh(one_device()):
        assert "sharding_constraint" in str(jax.make_jaxpr(keep_rows)(x))


# --- the null space's factors -----------------------------------------------------------------------------------

MATRIX = r'dense<("0x|\[\[)'  # a constant of two axes in the text of a program
SHAPES = {"a": (8, 16), "b": (16, 8), "bias": (4,)}


@pytest.fixture(scope="module")
def constrained():
    null_space, _ = make_null_space({"a": 8, "b": 16}, kept=2)
    mesh = one_device()
    params = make_params(SHAPES)
    return null_space, jax.device_put(params, param_sharding(params, mesh))


@pytest.mark.parametrize("kind", ["gems", "projected", "wrapped"])
def test_factors_are_put_into_the_first_state_and_taken_out_of_it(constrained, kind):
    null_space, params = constrained
    gems = gj.gems(1e-2, num_tasks=2, rank=2, null_space=null_space)
    tx = {
        "gems": gems,
        "projected": optax.chain(optax.sgd(1e-2), gj.constrain_to_null_space(null_space)),
        "wrapped": gj.accumulate(gj.apply_if_finite(gems, 2), 2),
    }[kind]
    wanted = tx.init(params)
    found = initial_opt_state(tx, params, optimiser_sharding(tx, params), null_space)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert set(held_factors(found)) == {"a", "b"}
    assert held_factors(with_factors(found, {})) == {}
    again = from_state(null_space, found)
    assert again.factors["a"].basis is held_factors(found)["a"]


def test_without_a_null_space_there_are_no_factors(constrained):
    _, params = constrained
    tx = optax.adam(1e-3)
    found = initial_opt_state(tx, params, optimiser_sharding(tx, params), None)
    jax.tree.map(np.testing.assert_array_equal, found, tx.init(params))
    assert held_factors(found) == {}


def test_neither_the_first_state_nor_the_leak_makes_a_program_with_the_factors_as_constants(constrained):
    null_space, params = constrained
    tx = gj.gems(1e-2, num_tasks=2, rank=2, null_space=null_space)
    state = tx.init(params)
    updates = jax.tree.map(jnp.ones_like, params)

    def measured(params, moved, updates, state):
        return leaks(params, moved, updates, from_state(null_space, state), jnp.asarray(True))

    jitted = jax.jit(measured)
    assert float(jitted(params, params, updates, state)["null_space/leak"]) == pytest.approx(
        max(float(x) for x in null_space_leak(updates, null_space).values()), rel=1e-6
    )
    for lowered in (
        jitted.lower(params, params, updates, state),
        jax.jit(lambda p: with_factors(tx.init(p), {})).lower(params),
    ):
        assert not re.search(MATRIX, lowered.as_text())
    closed = jax.jit(lambda u: null_space_leak(u, null_space)).lower(updates)
    assert re.search(MATRIX, closed.as_text())
