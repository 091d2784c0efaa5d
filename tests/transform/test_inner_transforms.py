"""Any optax transform inside and beside the subspaces, and stacks of experts: against optax, kernel by kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import LOSSES, difference, make_grads, make_params, orthonormal, run

import gems_jax as gj

TRANSFORMS = {
    "adamw-like": optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.3)),
    "lion": optax.scale_by_lion(),
    "rmsprop": optax.scale_by_rms(),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=2),
}
SHAPES = {"w": (8, 6), "table": (7, 5), "bias": (6,)}
BROKEN = 2  # the step in which nothing is finite


def grads_of(step):
    grads = make_grads(step, shapes=SHAPES)
    if step == BROKEN:
        grads["w"][:] = np.nan
    return grads


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS)
def test_kernels_and_other_leaves_take_the_steps_of_the_transforms_given(name):
    """``dW = U inner(U^T G, params=U^T W)``, other leaves ``fallback(G, params=W)``; a broken step is none at all."""
    tx = TRANSFORMS[name]
    rule = lambda path, leaf: gj.MatrixDims() if path == "w" else None  # noqa: E731
    params = jax.tree.map(jnp.asarray, make_params(SHAPES))
    ours = gj.scale_by_gems(num_tasks=2, rank=4, task_rank=0, side="in", inner=tx, fallback=tx, matrix_dims=rule)
    _, state, seen = run(ours, params, grads_of, 4)
    u = np.asarray(state.shared_basis["w"][0])

    low = lambda w: {"w": u.T @ np.asarray(w)}  # noqa: E731
    rest = lambda tree: {n: tree[n] for n in ("table", "bias")}  # noqa: E731
    update = jax.jit(tx.update)
    inner, fallback = tx.init(low(params["w"])), tx.init(rest(params))
    for i in range(4):
        if i == BROKEN:
            assert optax.tree.norm(seen[i]) == 0
            continue
        mean = {n: g.mean(0) for n, g in grads_of(i).items()}
        step, inner = update(low(mean["w"]), inner, low(params["w"]))
        others, fallback = update(rest(mean), fallback, rest(params))
        expected = {"w": u @ np.asarray(step["w"]), **others}
        for leaf in expected:
            assert difference(seen[i][leaf], expected[leaf]) < 2e-3, (leaf, i)
        params = jax.tree.map(lambda p, du: p + du, params, seen[i])


@pytest.mark.slow
def test_stacks_of_experts_are_their_experts_one_by_one():
    """``[E, m, n]`` and ``[L, E, m, n]``, under a transform that looks at whole matrices and a null space each."""
    rng = np.random.default_rng(0)
    stacked = {"experts": (3, 8, 6), "layers": (2, 2, 8, 6)}
    params = make_params(stacked)
    moments = {
        n: np.stack([(k := orthonormal(8, 3, [j, len(s)])) @ k.T for j in range(int(np.prod(s[:-2])))]).reshape(
            *s[:-2], 8, 8
        )
        for n, s in stacked.items()
    }
    decline = rng.uniform(0.5, 2.0, size=(2, 3, 1, 1)).astype(np.float32)

    def together(i):
        grads = make_grads(i, shapes=stacked)
        # Singular values apart, so that bases are determined.
        spread = np.geomspace(4, 0.3, 6).astype(np.float32)
        return {"experts": grads["experts"] * spread * decline, "layers": grads["layers"] * spread}

    members = [("experts", (e,)) for e in range(3)] + [("layers", (i, e)) for i in range(2) for e in range(2)]
    name_of = lambda n, at: "_".join([n, *map(str, at)])  # noqa: E731
    apart = lambda tree, lead=(): {name_of(n, at): tree[n][(*lead, *at)] for n, at in members}  # noqa: E731
    options = {
        "num_tasks": 2,
        "rank": 3,
        "refresh_every": 2,
        "inner": TRANSFORMS["adafactor"],
        "matrix_dims": lambda path, leaf: gj.MatrixDims(),
    }
    ns = gj.NullSpace.from_moments(moments, rank=3)
    ns_apart = gj.NullSpace.from_moments(apart(moments), rank=3)
    _, state, seen = run(gj.scale_by_gems(null_space=ns, **options), params, together, 3, task_losses=LOSSES)
    _, _, expected = run(
        gj.scale_by_gems(null_space=ns_apart, **options),
        apart(params),
        lambda i: apart(together(i), (slice(None),)),
        3,
        task_losses=LOSSES,
    )
    assert state.shared_basis["layers"].shape == (2, 2, 8, 3)
    assert state.task_basis["experts"].shape == (2, 3, 8, 1)
    for ours, theirs in zip(seen, expected, strict=True):
        assert difference(apart(ours), theirs) < 1e-4
