"""Arguments of another type than expected: one error that names the argument, what was expected and what came."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gems_jax as gj

NS = gj.NullSpace.from_moments({"w": np.diag([2.0, 1.0])}, rank=1)
PARAMS = {"w": jnp.ones((2, 3))}
TEXT = [{"x": jnp.eye(2)}]
SGD = optax.sgd(1.0)


def model(params, x):
    return x @ params["w"]


def gems(**options):
    return gj.gems(options.pop("learning_rate", 1e-3), num_tasks=2, **options)


def released(**options):
    return gj.presets.released(options.pop("learning_rate", 1e-3), num_tasks=2, rank=2, **options)


def calibrated(text=TEXT, **options):
    return gj.estimate_null_space(model, text, **({"rank": 1, "params": PARAMS, "progress": False} | options))


WRONG = {
    "learning_rate is '1e-3' (str); expected a number, or a schedule": lambda: gems(learning_rate="1e-3"),
    "learning_rate is None (NoneType); expected a number": lambda: gems(learning_rate=None),
    "weight_decay is '0.1' (str); expected a number": lambda: gems(weight_decay="0.1"),
    "scale is '2' (str); expected a number": lambda: gj.scale_by_gems(num_tasks=2, scale="2"),
    "scale is an array [2] of float32; expected a number": lambda: gems(scale=jnp.ones(2)),
    "gate is 'learned' (str); expected a gate": lambda: gems(gate="learned"),
    "gate is learned (function); expected a gate: ": lambda: gems(gate=gj.gates.learned),
    "null_space is 'ns.npz' (str); expected a NullSpace": lambda: gems(null_space="ns.npz"),
    "inner is 'adam' (str); expected an optax transform": lambda: gems(inner="adam"),
    "fallback is scale_by_adam (function)": lambda: gems(fallback=optax.scale_by_adam),
    "rank=None: give an int (columns) or a float": lambda: gems(rank=None),
    "seed is 'a' (str); expected a whole number": lambda: gems(seed="a"),
    "stagger is 'no' (str); expected True or False": lambda: gems(stagger="no"),
    "an entry of mask is 'no' (str); expected True or False": lambda: first_step(
        gems(mask={"w": "no"}, weight_decay=0.1)
    ),
    "weights is 3 (int); expected a number for each task": lambda: gj.gates.constant(3),
    "an entry of weights is 'a' (str); expected a number": lambda: gj.gates.constant(["a", 1]),
    "loss is '0.4' (str); expected a number": lambda: gj.gates.heuristic(loss="0.4"),
    "hidden is '8' (str); expected a whole number": lambda: gj.gates.learned(hidden="8"),
    "energy is '0.9' (str); expected a number": lambda: calibrated(energy="0.9", rank=None),
    "max_directions is 1.5 (float); expected a number of directions": lambda: calibrated(max_directions=1.5),
    "memory_limit is '1G' (str); expected a number of bytes": lambda: calibrated(memory_limit="1G"),
    "unit_norm is 'no' (str); expected True or False": lambda: calibrated(unit_norm="no"),
    "mesh is 'data' (str); expected a jax.sharding.Mesh": lambda: calibrated(mesh="data"),
    "matrix_dims is MatrixDims(in_axes=-2, out_axes=-1)": lambda: calibrated(matrix_dims=gj.MatrixDims()),
    "batches is {'x': ": lambda: calibrated(TEXT[0]),
    "batches is 'text.txt' (str); expected a list of dictionaries": lambda: calibrated("text.txt"),
    "batch 0 of general text is an array [2] of float32; expected a dictionary": lambda: calibrated(jnp.eye(2)),
    "batch 1 of general text is 'x' (str); expected a dictionary": lambda: calibrated([*TEXT, "x"]),
    "the batch of general text is an array [2, 2]": lambda: gj.observed_matrix_dims(model, jnp.eye(2), PARAMS),
    "moments is [] (list); expected a mapping": lambda: gj.NullSpace.from_moments([], rank=1),
    "energy is '1' (str); expected a number": lambda: gj.NullSpace.from_weights(PARAMS, energy="1"),
    "null_space is None (NoneType); expected a NullSpace": lambda: gj.constrain_to_null_space(None),
    "matrix_dims is 'in' (str); expected a function": lambda: gj.constrain_to_null_space(NS, "in"),
    "null_space is 'ns' (str); expected a NullSpace": lambda: gj.null_space_leak(PARAMS, "ns"),
    "probes is 8.0 (float); expected a number of vectors": lambda: gj.null_space_leak(PARAMS, NS, probes=8.0),
    "k is '4' (str); expected the number of micro-batches": lambda: gj.accumulate(gems(), "4"),
    "num_tasks is 2.0 (float); expected a whole number": lambda: gj.accumulate(gems(), 4, num_tasks=2.0),
    "tx is 'gems' (str); expected an optax transform": lambda: gj.accumulate("gems", 4),
    "max_consecutive_errors is '1' (str)": lambda: gj.apply_if_finite(gems(), "1"),
    "tx is gems (function); expected an optax transform": lambda: gj.state_bytes(gj.gems, PARAMS),
    "tx is 'adam' (str); expected an optax transform": lambda: gj.orbit("adam", 1.0),
    "max_distance is '10' (str); expected a number": lambda: gj.orbit(optax.sgd(1.0), "10"),
    "max_distance is None (NoneType)": lambda: gj.orbit(optax.sgd(1.0), None),
    "share is True (bool); expected a number": lambda: gj.orbit(optax.sgd(1.0), 1.0, share=True),
    "learning_rate is '5e-4' (str); expected a number": lambda: released(learning_rate="5e-4"),
    "num_tasks is 2.0 (float); expected a whole": lambda: gj.presets.released(1e-3, num_tasks=2.0, rank=2),
    "gap is 1.5 (float); expected a whole number": lambda: released(gap=1.5),
    "eps is '1e-6' (str); expected a number": lambda: released(eps="1e-6"),
    "gate is 'heuristic' (str); expected a gate": lambda: released(gate="heuristic"),
    "null_space is 'ns.npz' (str); expected a NullSpace of side 'out'": lambda: released(null_space="ns.npz"),
    "bases is 3 (int); expected a function of the step": lambda: released(bases=3),
    "inner_tx is 'sgd' (str); expected an optax transform": lambda: gj.baselines.upgrad("sgd"),
    "inner_tx is adam (function); expected an optax transform": lambda: gj.baselines.galore(optax.adam, rank=2),
    "num_tasks is '2' (str); expected a whole number": lambda: gj.baselines.upgrad(SGD, num_tasks="2"),
    "c is '0.5' (str); expected a number": lambda: gj.baselines.cagrad(SGD, c="0.5"),
    "temperature is None (NoneType)": lambda: gj.baselines.dwa(SGD, num_tasks=2, temperature=None),
    "window is 2.5 (float); expected a whole": lambda: gj.baselines.dwa(SGD, num_tasks=2, window=2.5),
    "seed is 0.5 (float); expected a whole number": lambda: gj.baselines.pcgrad(SGD, seed=0.5),
    "scale is '2' (str); expected": lambda: gj.baselines.galore(SGD, rank=2, scale="2"),
    "refresh_every is None (NoneType); expected a number of steps": lambda: gj.baselines.galore(
        SGD, refresh_every=None
    ),
    "variance_tx is 'sgd' (str)": lambda: gj.baselines.uncertainty(SGD, num_tasks=2, variance_tx="sgd"),
    "loss_fn is 0.5 (float); expected a function (params, batch) -> scalar": lambda: gj.task_value_and_grad(0.5),
    "has_aux is 'no' (str)": lambda: gj.projected_task_grads(model, gems(), has_aux="no"),
    "chunk_size is 1.5 (float); expected the number of tasks": lambda: gj.task_value_and_grad(model, chunk_size=1.5),
}


def first_step(tx):
    grads = {"w": jnp.ones((2, 2, 3))}
    return jax.eval_shape(lambda: tx.update(grads, tx.init(PARAMS), PARAMS)[0])


@pytest.mark.parametrize("message", WRONG)
def test_an_argument_of_another_type_is_named_with_what_was_expected(message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        WRONG[message]()


def test_numbers_may_be_schedules_and_arrays_and_change_under_jit():
    rate = optax.linear_schedule(0.0, 1e-3, 10)
    first_step(gems(learning_rate=rate, scale=np.float32(2), weight_decay=jnp.asarray(0.1), seed=np.int64(3)))
    traced = lambda rate, scale: first_step(gems(learning_rate=rate, scale=scale, weight_decay=scale))  # noqa: E731
    jax.eval_shape(traced, 1e-3, 2)
    jax.vmap(lambda rate: first_step(gems(learning_rate=rate)) and rate)(jnp.ones(3))
    calibrated(energy=np.float64(0.5), rank=None, max_directions=np.int32(1))


def test_losses_of_a_batch_without_an_axis_of_tasks_are_refused_with_the_shape_that_it_needs():
    losses, grads = gj.task_value_and_grad(lambda p, x: jnp.sum(model(p, x)))(PARAMS, jnp.ones((16, 2)))
    with pytest.raises(ValueError, match=r"task_losses has shape \[16\], expected \[2\].*leaves begin .*\[2, B, ...\]"):
        gems().update(grads, gems().init(PARAMS), PARAMS, task_losses=losses)


def test_general_inputs_that_are_not_finite_or_all_zeros_are_told_apart_from_outliers():
    with pytest.raises(ValueError, match="moment of 'w' is not finite: nan or inf in the general text's arrays"):
        calibrated([{"x": jnp.full((3, 2), jnp.nan)}])
    with pytest.warns(UserWarning, match=r"1 of 1 inputs are zero for all of general text \('w', ...\)"):
        calibrated([{"x": jnp.zeros((3, 2))}], energy=0.9, rank=None)
