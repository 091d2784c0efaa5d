"""When bases are refreshed: turns within an interval, branches that never get one, decompositions that fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import make_grads, make_null_space, make_params

import gems_jax as gj
from gems_jax.linalg.orthonormal import orthonormal_inside
from gems_jax.linalg.projection import Projector
from gems_jax.linalg.subspace import make_basis
from gems_jax.transform import refresh_batches
from gems_jax.transform.plan import make_plan
from gems_jax.transform.refresh import Request
from gems_jax.transform.settings import Settings

RULE = lambda path, leaf: gj.MatrixDims() if len(leaf.shape) > 1 else None  # noqa: E731


def states_of(tx, params, grads_of, steps, **extra):
    """The `GemsState` after each step."""
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    step = jax.jit(lambda g, s: tx.update(g, s, params, **extra)[1])
    found = []
    for i in range(steps):
        state = step(grads_of(i), state)
        found.append(state)
    return found


def project(state):
    """What does not depend on the signs and order of a basis' columns: its span."""
    span = lambda u: np.asarray(u, np.float64) @ np.swapaxes(np.asarray(u, np.float64), -1, -2)  # noqa: E731
    return jax.tree.map(span, (state.shared_basis, state.task_basis))


def changed(basis, before, axes):
    return np.any(np.asarray(basis) != np.asarray(before), axis=axes)


# --- groups that are refreshed together -----------------------------------------------------------------------------


def null_space_of_stacks():
    """Of each stack, other directions and other numbers of them; of some the factor spans those, of others the rest."""
    rng = np.random.default_rng(0)
    moments = {}
    for name, kept in (("a", 1), ("b", 3), ("c", 6), ("d", 5), ("none", 0)):
        x = rng.normal(size=(2, kept, 8))
        moments[name] = np.einsum("lni,lnj->lij", x, x)
    return gj.NullSpace.from_moments(moments, energy=0.9999)


def thin_grads(i):
    """Of fewer directions than a basis has, also none at all."""
    rng = np.random.default_rng([1, i])
    grads = {name: rng.normal(size=(2, 2, 8, 6)).astype(np.float32) for name in ("a", "b", "c", "d", "none", "free")}
    grads["b"] = grads["b"][..., :1] * np.ones(6, np.float32)
    grads["d"][1] = 0
    grads["free"][0, 1] = np.nan if i == 1 else 0
    return grads


@pytest.mark.slow
@pytest.mark.parametrize("decomposition", ["eigh", "subspace"])
def test_groups_refreshed_together_get_the_bases_that_each_gets_alone(decomposition, monkeypatch):
    params = {name: np.ones((2, 8, 6), np.float32) for name in thin_grads(0)}
    tx = gj.scale_by_gems(
        num_tasks=2, rank=3, refresh_every=2, decomposition=decomposition, null_space=null_space_of_stacks(),
        matrix_dims=RULE,
    )  # fmt: skip
    decomposed = []
    monkeypatch.setattr(
        "gems_jax.transform.refresh.make_basis", lambda *a, **o: decomposed.append(1) or make_basis(*a, **o)
    )
    programs = {}
    for most in (refresh_batches.MOST_BYTES, 0):
        monkeypatch.setattr(refresh_batches, "MOST_BYTES", most)
        decomposed.clear()
        programs[most] = states_of(tx, params, thin_grads, 3), len(decomposed)
    (together, traced), (alone, all_traced) = programs.values()
    assert traced < all_traced
    for one, other in zip(together, alone, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), project(one), project(other))
        for name in ("refreshed", "failed", "waiting"):
            assert int(getattr(one.diagnostics, name)) == int(getattr(other.diagnostics, name))


def test_a_batch_of_groups_holds_no_more_than_its_share_of_gradients(monkeypatch):
    def request(kernels, rank=2, columns=3, complement=False):
        array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        old = (array(kernels, 8, rank), None)
        gradients = (array(kernels, 8, 4), None)
        projector = Projector(array(kernels, 8, columns), complement)
        return Request(
            old,
            gradients,
            (None, None),
            array(1, kernels),
            None,
            projector,
            (None, None),
            (0,) * kernels,
            array(kernels),
        )

    monkeypatch.setattr(refresh_batches, "MOST_BYTES", 4 * 8 * 4 * 4)
    requests = [request(1), request(2), request(1, rank=3), request(1, columns=5), request(9), request(1)]
    requests += [request(1, complement=True), request(1, columns=0)]
    assert refresh_batches.batches_of(requests) == [[0, 1, 3], [2], [4], [5], [6], [7]]


# --- turns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3, 5, 200])
def test_every_matrix_has_one_turn_in_an_interval_whatever_the_size_of_its_stack(every):
    sizes = range(1, 10)
    shapes = {f"stack of {k}": (k, 2, 2 + k) for k in sizes} | {f"alone {k}": (2, 20 + k) for k in range(7)}
    shapes |= {f"like {k}": (3, 3) for k in range(4)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    plan = make_plan(params, Settings(num_tasks=2, rank=1, matrix_dims=RULE))
    turns = plan.turns(every)
    assert {plan.paths[i]: len(mine) for i, mine in turns.items()} == {
        name: shape[0] if len(shape) == 3 else 1 for name, shape in shapes.items()
    }
    assert all(0 <= turn < every for mine in turns.values() for turn in mine)
    for group in plan.groups:
        mine = [turn for k in group for turn in turns[k.index]]
        assert mine == sorted(mine)  # so that those of a step follow each other in the stack
        assert max(map(mine.count, mine)) == -(-len(mine) // every)  # no more at a time than it takes
    alone = [turns[i][0] for i, path in enumerate(plan.paths) if path.startswith("alone")]
    assert max(map(alone.count, alone)) == -(-len(alone) // every) or every > len(alone)


SHAPES = {"one": (4, 6), "other": (1, 5, 4), "pair a": (3, 4), "pair b": (3, 4), "stack": (4, 3, 5)}


@pytest.mark.slow
def test_staggered_every_member_of_every_stack_is_refreshed_once_an_interval():
    every = 3
    tx = gj.scale_by_gems(num_tasks=2, rank=1, refresh_every=every, stagger=True, matrix_dims=RULE)
    states = states_of(tx, make_params(SHAPES), lambda i: make_grads(i, shapes=SHAPES), 1 + 2 * every)
    for name in SHAPES:
        for kind, axes in (("shared_basis", (1, 2)), ("task_basis", (2, 3))):
            bases = [getattr(state, kind)[name] for state in states]
            seen = np.array([changed(b, a, axes) for a, b in zip(bases[:-1], bases[1:], strict=True)])
            for interval in (seen[:every], seen[every:]):
                np.testing.assert_array_equal(interval.sum(axis=0), 1, err_msg=f"{name} {kind}")
    assert [int(s.diagnostics.refreshed) for s in states[1:]] == [12, 0, 12] * 2


@pytest.mark.slow
def test_a_turn_that_finds_the_task_merged_or_absent_is_made_up_for_at_its_next_step():
    """Also of a kernel alone of its shape, and where several steps make one update."""
    shapes = {"alone": (4, 6), "stack": (2, 3, 5)}
    tx = gj.accumulate(gj.gems(1.0, num_tasks=2, rank=1, refresh_every=4, stagger=True, matrix_dims=RULE), 2)

    def grads_of(i):
        grads = make_grads(i, shapes=shapes)
        if i // 2 in (4, 5):  # updates: the turn of "alone" and of the first of the stack, then of the second
            grads["stack"][1] = 0
            grads["alone"][1] = 0
        return grads

    params = {name: jnp.asarray(p) for name, p in make_params(shapes).items()}
    states = [s.inner[0] for s in states_of(tx, params, grads_of, 14)][1::2]
    bases = {name: [np.asarray(s.task_basis[name]) for s in states] for name in shapes}
    when = lambda name, *at: [i for i in range(1, 7) if changed(bases[name][i][at], bases[name][i - 1][at], None)]  # noqa: E731
    assert (when("alone", 0), when("alone", 1)) == ([4], [6])
    assert (when("stack", 0, 0), when("stack", 0, 1)) == ([4], [1, 5])
    assert (when("stack", 1, 0), when("stack", 1, 1)) == ([6], [1, 6])
    assert [int(s.diagnostics.waiting) for s in states] == [0, 0, 0, 0, 2, 3, 0]


@pytest.mark.slow
def test_a_turn_in_a_step_whose_gradients_came_merged_waits_for_one_that_has_them_apart():
    shapes = {"stack": (2, 3, 5)}
    tx = gj.scale_by_gems(num_tasks=2, rank=1, refresh_every=3, stagger=True, matrix_dims=RULE)
    params, waiting = make_params(shapes), []
    state, step = tx.init(params), jax.jit(tx.update)
    for i in range(5):
        grads = make_grads(i, shapes=shapes)
        if i == 3:  # the turn of the first member
            grads = {name: g.mean(axis=0, keepdims=True) for name, g in grads.items()}
        state = step(grads, state, params)[1]
        waiting.append(np.asarray(state.pending["stack"]).tolist())
    none, apart = [[False, False]] * 3, [[False, False], [True, False], [True, False]]
    assert waiting == [none, none, none, apart, none]


# --- branches that get no basis ---------------------------------------------------------------------------------


def dead(kind):
    """A null space and gradients of which ``a`` has nothing in it, from step 0 or from the second refresh on."""
    ns, protected = make_null_space({"a": 6, "b": 6})
    shapes = {"a": (6, 8), "b": (6, 8)}
    k = protected["a"]

    def grads_of(i):
        grads = make_grads(i, shapes=shapes)
        if kind == "always" or i >= 2:
            grads["a"] = (k @ (k.T @ grads["a"])).astype(np.float32)
        return grads

    return ns, shapes, grads_of


@pytest.mark.slow
@pytest.mark.parametrize("decomposition", ["eigh", "subspace"])
def test_a_branch_that_gets_no_basis_is_not_asked_again_before_the_next_refresh(decomposition, monkeypatch):
    """It would have all kernels of its shape decomposed again in every step."""
    decomposed = []
    monkeypatch.setattr("gems_jax.transform.refresh.make_basis", spy(decomposed))
    for kind, failed in (("always", [3, 3, 3, 6, 6]), ("later", [0, 0, 0, 3, 3])):
        ns, shapes, grads_of = dead(kind)
        tx = gj.gems(1.0, num_tasks=2, rank=2, refresh_every=3, null_space=ns, decomposition=decomposition)
        decomposed.clear()
        states, per_step = [], []
        params = {name: jnp.asarray(p) for name, p in make_params(shapes).items()}
        state = tx.init(params)
        step = jax.jit(tx.update)
        for i in range(5):
            updates, state = jax.block_until_ready(step(grads_of(i), state, params))
            states.append(state[0].diagnostics)
            jax.effects_barrier()
            per_step.append(len(decomposed))
            if kind == "always":
                assert np.max(np.abs(updates["a"])) == 0
            assert np.max(np.abs(updates["b"])) > 1e-3
        assert [int(d.failed) for d in states] == failed
        assert [int(d.waiting) for d in states] == [0] * 5
        np.testing.assert_array_equal(np.diff([0, *per_step]) > 0, [True, False, False, True, False])
        assert [int(d.refreshed) for d in states] == [3 if kind == "always" else 6, 0, 0, 3, 0]


def spy(log):
    """`make_basis` that says when it runs."""

    def wrapped(*args, **options):
        jax.debug.callback(lambda: log.append(1))
        return make_basis(*args, **options)

    return wrapped


@pytest.mark.slow
@pytest.mark.parametrize("decomposition", ["svd", "eigh", "subspace"])
def test_a_decomposition_that_fails_never_becomes_a_basis(decomposition, monkeypatch):
    """LAPACK's give NaN where they do not converge, also for fine matrices; what is left of them is not completed."""
    eigh, svd, passes = jnp.linalg.eigh, jnp.linalg.svd, orthonormal_inside
    monkeypatch.setattr(jnp.linalg, "svd", lambda x, **k: tuple(y * jnp.nan for y in svd(x, **k)))
    if decomposition != "svd":
        monkeypatch.setattr(jnp.linalg, "eigh", lambda x, **k: (eigh(x, **k)[0], eigh(x, **k)[1] * jnp.nan))
    if decomposition == "subspace":
        monkeypatch.setattr("gems_jax.linalg.subspace.orthonormal_inside", lambda *a: passes(*a) * jnp.nan)
    gradient = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    for wide in (gradient, gradient.T):
        old = jnp.eye(len(wide), 2)
        for projector in (Projector(None, False), Projector(jnp.eye(len(wide), 1), False)):
            basis, usable = make_basis(
                jnp.asarray(wide), 2, projector, method=decomposition, signs="canonical", previous=old,
                has_previous=jnp.asarray(True), key=jax.random.key(0),
            )  # fmt: skip
            if decomposition == "svd":  # falls back
                assert bool(usable)
                inside = wide * (np.arange(len(wide)) >= (projector.factor is not None))[:, None]
                best = np.linalg.svd(inside.astype(float))[1][:2]
                np.testing.assert_allclose(np.linalg.norm(basis.T @ inside) ** 2, np.sum(best**2), rtol=1e-5)
                np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-5)
            else:
                assert not bool(usable)
                np.testing.assert_array_equal(basis, old)
