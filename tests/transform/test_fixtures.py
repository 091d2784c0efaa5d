"""Parity with trajectories of the authors' released optimiser, its null space and its gates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared import SHARED, needs_shared

import gems_jax as gj
from gems_jax.transform import gates as gates_lib
from gems_jax.transform.released import released

pytestmark = needs_shared
CASES = sorted(path.stem for path in (SHARED / "fixtures").glob("opt_*.npz"))
NULLS = sorted(path.stem for path in (SHARED / "fixtures").glob("null_*.npz"))


def load(name):
    with np.load(SHARED / "fixtures" / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def trajectory(case, dtype, stored_bases):
    """Parameters after every step, in the layout of the fixtures (``[out, in]``)."""
    names = [f"layer{i}" for i in range(int(case["n_tensors"]))]
    kernels = [n for i, n in enumerate(names) if str(case["kinds"][i]) == "galore"]
    projectors = {n: case[f"P_{i}"] for i, n in enumerate(names) if f"P_{i}" in case}
    array = lambda x: jnp.asarray(np.swapaxes(x, -1, -2) if x.ndim > 1 else x, dtype)  # noqa: E731

    def bases(count):
        found = {}
        for i, name in enumerate(names):
            if name in kernels:
                shared, rec, src = (
                    case[f"basis_{branch}_f64svd_{i}"] for branch in ("shared", "rec", "src")
                )  # [6, r, n] rows on the right, [6, m, r] columns on the left
                if str(case[f"side_{i}"]) == "right":
                    shared, rec, src = (np.swapaxes(x, 1, 2) for x in (shared, rec, src))
                found[name] = (jnp.asarray(shared)[count], jnp.asarray(np.stack([rec, src], 1))[count])
        return found

    rates = jnp.asarray(case["lr"], dtype)
    tx = released(
        lambda count: rates[count],
        num_tasks=2,
        rank=int(case["rank"]),
        gap=int(case["gap"]),
        scale=float(case["scale"]),
        weight_decay=float(case["weight_decay"]),
        b1=float(case["beta1"]),
        b2=float(case["beta2"]),
        eps=float(case["eps"]),
        null_space=projectors,
        matrix_dims=lambda path, leaf: gj.MatrixDims() if path in kernels else None,
        bases=bases if stored_bases else None,
    )
    params = {n: array(case[f"W0_{i}"]) for i, n in enumerate(names)}
    state = jax.jit(tx.init)(params)
    step = jax.jit(lambda g, s, p, e, m: tx.update(g, s, p, shared_grads=m, **e))
    seen, gates = [], []
    for t in range(6):
        grads = {
            n: jnp.stack([array(case[f"g_{task}_{i}"][t]) for task in ("rec", "src")]) for i, n in enumerate(names)
        }
        merged = {n: array(case[f"g_merged_{i}"][t]) for i, n in enumerate(names)}
        extra = {"task_losses": jnp.asarray(case["losses"][t], dtype), "task_counts": jnp.asarray(case["counts"][t])}
        updates, state = step(grads, state, params, extra, merged)
        params = optax.apply_updates(params, updates)
        gates.append(np.asarray(state.gates))
        seen.append([np.swapaxes(np.asarray(params[n]), -1, -2) if params[n].ndim > 1 else params[n] for n in names])
    return seen, gates


def worst(case, seen, reference):
    """Largest difference relative to how far the weights have moved."""
    errors = []
    for i in range(int(case["n_tensors"])):
        expected = case[f"{reference}_{i}"].astype(float)
        start = case[f"W0_{i}"].astype(float)
        for t in range(6):
            moved = np.max(np.abs(expected[t] - start))
            errors.append(np.max(np.abs(np.asarray(seen[t][i], float) - expected[t])) / moved)
    return max(errors)


@pytest.mark.parametrize("name", CASES)
def test_float64_with_the_stored_bases_follows_the_released_optimiser(name):
    case = load(name)
    with jax.enable_x64(True):
        seen, gates = trajectory(case, jnp.float64, stored_bases=True)
    assert worst(case, seen, "W_f64svd") < 1e-9
    np.testing.assert_allclose(gates, case["gates"], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if "degenerate" not in name])
def test_float32_with_canonical_signs_follows_the_released_optimiser(name):
    case = load(name)
    seen, _ = trajectory(case, jnp.float32, stored_bases=False)
    assert worst(case, seen, "W_f64canon") < 2e-4


@pytest.mark.parametrize("name", NULLS)
def test_null_space_by_threshold_is_the_released_projector(name):
    case = load(name)
    x, mask = jnp.asarray(case["activations"]), jnp.asarray(case["mask"])
    moment = gj.SecondMoment.zeros(x.shape[1])
    edges = np.cumsum([0, *case["chunk_sizes"]])
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        moment = moment.update(x[start:stop], mask[start:stop])
    np.testing.assert_allclose(moment.matrix(), case["cov_f64"], rtol=1e-5, atol=1e-6)
    ns = gj.NullSpace.from_moments({"w": moment}, threshold=float(case["threshold"]), side="out")
    factor = ns.factor("w")
    assert factor.dim - int(factor.kept) == int(case["null_dim"])
    projector = factor.projector().project(jnp.eye(factor.dim))
    np.testing.assert_allclose(projector, case["P_f64"], atol=5e-6)


def test_heuristic_gates_are_the_released_ones():
    case = load("gates")
    with jax.enable_x64(True):
        for row in range(len(case["gates"])):
            coefficients = [float(c) for c in case["coef_alpha_beta_gamma"][row]]
            gate = gates_lib.heuristic(*coefficients)
            signals = [jnp.asarray(case[key][row], float) for key in ("losses", "grad_norms", "counts")]
            found, _ = gate.update(gates_lib.Signals(*signals, progress=jnp.zeros(2)), gate.init(2))
            np.testing.assert_allclose(found, case["gates"][row], atol=1e-12)


@pytest.mark.slow
def test_gate_network_and_its_temperature_are_the_released_ones():
    case = load("gates")
    names = sorted(key for key in case if key.startswith("net_") and key not in ("net_temperature", "net_gates_f32"))
    weights = [case[n] for n in names if case[n].ndim == 2]
    biases = [case[n] for n in names if case[n].ndim == 1]
    layers = [{"kernel": jnp.asarray(w.T), "bias": jnp.asarray(b)} for w, b in zip(weights, biases, strict=True)]

    @jax.vmap
    def forward(*signals):
        features = jnp.concatenate(gates_lib.shares(gates_lib.Signals(*signals, progress=jnp.zeros(2))))
        return gates_lib.network(layers, features, float(case["net_temperature"]))

    signals = [jnp.asarray(case[key], jnp.float32) for key in ("losses", "grad_norms", "counts")]
    np.testing.assert_allclose(forward(*signals), case["net_gates_f32"], atol=2e-6)
    # The released schedule decays before its first use, ours after: shifted by one.
    gate = gates_lib.learned()
    update = jax.jit(lambda s: gate.update(gates_lib.Signals(*[jnp.ones(2)] * 4), s)[1])
    state, seen = jax.jit(lambda: gate.init(2))(), []
    for _ in range(5):
        state = update(state)
        seen.append(float(state.temperature))
    np.testing.assert_allclose(seen, [1.5, *case["temperature_schedule"][:4]], rtol=1e-6)
