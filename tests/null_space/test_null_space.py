"""Second moments, principal directions, the projection, files: against numpy in float64."""

import itertools
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make_grads, make_params, orthonormal, run

import gems_jax as gj
from gems_jax.null_space import directions
from gems_jax.null_space.directions import Rule, directions_of, factor_of
from gems_jax.null_space.few_bits import FewBitsWarning

FEW = settings(max_examples=12, derandomize=True)


def moment(eigenvalues, seed=0):
    vectors = orthonormal(len(eigenvalues), len(eigenvalues), seed)
    return (vectors * np.asarray(eigenvalues, float)) @ vectors.T, vectors


@FEW
@given(seed=st.integers(0, 10_000), cut=st.sampled_from([0, 5, 12]), masked=st.booleans())
def test_the_second_moment_is_the_mean_outer_product_however_the_rows_come(seed, cut, masked):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    mask = rng.random((3, 4)) < 0.6 if masked else np.ones((3, 4), bool)
    rows, keep = x.reshape(-1, 5), mask.reshape(-1)
    first = gj.SecondMoment.zeros(5).update(jnp.asarray(rows[:cut]), jnp.asarray(keep[:cut]))
    second = gj.SecondMoment.zeros(5).update(jnp.asarray(rows[cut:]), jnp.asarray(keep[cut:]))
    whole = gj.SecondMoment.zeros(5).update(jnp.asarray(x), jnp.asarray(mask))
    chosen = rows[keep].astype(float)
    expected = chosen.T @ chosen / max(len(chosen), 1)
    np.testing.assert_allclose(first.merge(second).matrix(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.matrix(), expected, rtol=1e-5, atol=1e-6)


def test_masked_rows_do_not_count_even_where_not_finite_and_bfloat16_is_summed_in_float32():
    x = jnp.asarray([[1.0, 2.0], [jnp.nan, jnp.inf]])
    np.testing.assert_allclose(gj.SecondMoment.zeros(2).update(x, jnp.array([1, 0])).matrix(), [[1, 2], [2, 4]])
    half = jnp.full((3000, 1), 1.0, jnp.bfloat16)
    assert gj.SecondMoment.zeros(1).update(half).total.item() == 3000
    with pytest.raises(ValueError, match=r"x has shape \[3, 2\], expected \[..., 4\]"):
        gj.SecondMoment.zeros(4).update(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="mask has shape"):
        gj.SecondMoment.zeros(2).update(jnp.ones((3, 2)), jnp.ones(4))


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({"energy": 0.5}, 1),
        ({"energy": 0.8}, 2),
        ({"energy": 1.0}, 4),
        ({"energy": 0.0}, 0),
        ({"rank": 3}, 3),
        ({"rank": 99}, 6),
        ({"energy": 0.5, "min_share": 0.3}, 2),
        ({"energy": 1.0, "min_share": 0.3}, 4),
        ({"energy": 0.5, "min_share": 0.9, "max_directions": 4}, 4),
        ({"threshold": 1.5}, 2),
        ({"threshold": 0.0}, 5),  # none below: the smallest max(1, d // 20) are the null space
    ],
    ids=str,
)
def test_each_rule_keeps_the_principal_directions_it_names(rule, kept):
    matrix, vectors = moment([5.0, 3.0, 1.0, 1.0, 0.0, 0.0])
    factor = gj.NullSpace.from_moments({"w": matrix}, **rule).factor("w")
    assert int(factor.kept) == kept
    projector = np.asarray(factor.projector().project(jnp.eye(6)))
    if kept in (1, 2, 4):  # elsewhere the directions are not unique
        k = vectors[:, :kept]
        np.testing.assert_allclose(projector, np.eye(6) - k @ k.T, atol=1e-6)
    assert np.linalg.matrix_rank(projector, tol=1e-3) == 6 - kept
    np.testing.assert_allclose(factor.residual, 1 - np.sum([5, 3, 1, 1, 0, 0][:kept]) / 10, atol=1e-9)
    assert factor.basis.shape[1] <= 3 or not factor.complement


def test_the_thinner_of_both_bases_is_stored_and_once_per_input():
    big, small = moment([1.0] * 5 + [0.0])[0], moment([1.0] + [0.0] * 5)[0]
    ns = gj.NullSpace.from_moments({"q": big, "k": big, "v": small}, rank=5)
    assert set(ns.factors) == {"q", "v"}
    assert ns.inputs == {"q": "q", "k": "q", "v": "v"}
    assert ns.factor("k").complement
    assert ns.factor("k").basis.shape == (6, 1)


def test_moments_that_a_mapping_reads_one_at_a_time_are_each_kernels_own(tmp_path):
    """What was read is let go of, and the next array may take its address."""
    moments = {f"layer{i}/kernel": moment(np.linspace(6, 0, 24), seed=i)[0] for i in range(8)}
    np.savez(tmp_path / "moments.npz", **moments)
    with np.load(tmp_path / "moments.npz") as lazy:
        read = gj.NullSpace.from_moments(lazy, rank=4)
    given = gj.NullSpace.from_moments(moments, rank=4)
    assert read.inputs == given.inputs == {path: path for path in moments}
    for path in moments:
        np.testing.assert_array_equal(read.factor(path).basis, given.factor(path).basis)


def test_second_moments_and_lists_are_shared_too():
    running = gj.SecondMoment.zeros(2).update(np.eye(2, dtype=np.float32))
    rows = [[1.0, 0.0], [0.0, 0.0]]
    ns = gj.NullSpace.from_moments({"a": running, "b": rows, "c": running, "d": rows}, rank=1)
    assert ns.inputs == {"a": "a", "b": "b", "c": "a", "d": "b"}


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("stack", [(), (2,)], ids=["one", "a stack"])
def test_all_directions_may_be_free_or_protected(side, stack):
    """Nothing is protected of an input that is zero on general text, as behind a layer that starts from zero."""
    d = 4 if side == "in" else 3
    free, none = np.zeros((*stack, d, d)), np.broadcast_to(np.eye(d), (*stack, d, d))
    factors = {"free": factor_of("free", free, Rule(energy=0.9)), "none": factor_of("none", none, Rule(rank=d))}
    ns = gj.NullSpace(factors, {name: name for name in factors}, side)
    assert [ns.factor(n).kept.max() for n in ("free", "none")] == [0, d]
    updates = {name: jnp.ones((*stack, 4, 3)) for name in ("free", "none")}
    tx = gj.constrain_to_null_space(ns)
    projected, _ = tx.update(updates, tx.init(updates))
    np.testing.assert_array_equal(projected["free"], updates["free"])
    np.testing.assert_array_equal(projected["none"], 0)
    assert {name: leak.item() for name, leak in gj.null_space_leak(updates, ns).items()} == {"free": 0, "none": 1}
    assert ns.summary().splitlines()[1].endswith("nothing is protected")


@pytest.mark.parametrize(
    "rule",
    [{"energy": 0.9}, {"energy": 0.9, "min_share": 0.5}, {"rank": 2}, {"rank": 0.5}, {"threshold": 1e-3}],
    ids=str,
)
def test_no_rule_protects_arbitrary_directions_of_an_input_that_is_zero(rule):
    ns = gj.NullSpace.from_moments({"w": np.zeros((4, 4)), "used": np.eye(4)}, **rule)
    update = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert ns.factor("w").kept == 0
    assert gj.null_space_leak({"w": update, "used": 0 * update}, ns)["w"] == 0


def test_a_stack_takes_one_choice_with_zero_columns_as_padding():
    stack = np.stack([moment([1.0] * k + [0.0] * (6 - k), seed=k)[0] for k in (1, 3)])
    factor = gj.NullSpace.from_moments({"w": stack}, energy=1 - 1e-9).factor("w")
    assert factor.basis.shape == (2, 6, 3)
    assert factor.kept.tolist() == [1, 3]
    assert np.all(factor.basis[0, :, 1:] == 0)


def test_a_few_outliers_that_hold_the_trace_are_warned_about():
    matrix, _ = moment([1e6] + [1.0] * 199)
    with pytest.warns(UserWarning, match="next to nothing"):
        gj.NullSpace.from_moments({"w": matrix}, energy=0.9)


@pytest.mark.parametrize(
    ("moments", "rule", "message"),
    [
        ({"w": np.eye(3)}, {}, "exactly one of energy, rank and threshold, got none"),
        ({"w": np.eye(3)}, {"energy": 0.5, "rank": 1}, "exactly one"),
        ({"w": np.eye(3)}, {"energy": 1.5}, "between 0 and 1"),
        ({"w": np.eye(3)}, {"rank": -1}, "at least 0"),
        ({"w": np.eye(3)}, {"rank": np.float32(1.0)}, "rank=1.0: a float is a share .* 1, an int, is one direction"),
        ({"w": np.eye(3)}, {"rank": np.array([1])}, "give an int"),
        ({"w": np.eye(3)}, {"rank": 1, "min_share": 0.5}, "min_share is a share of the dimension .* beside energy"),
        ({"w": np.eye(3)}, {"energy": 0.5, "min_share": 1.5}, "min_share"),
        ({"w": np.eye(3)}, {"rank": 1, "side": "left"}, "side is 'left'"),
        ({"w": np.ones((3, 4))}, {"rank": 1}, r"moment of 'w' has shape \[3, 4\]"),
        ({"w": np.full((3, 3), np.nan)}, {"rank": 1}, "moment of 'w' is not finite"),
    ],
    ids=range(11),
)
def test_rules_and_moments_that_make_no_sense_are_refused(moments, rule, message):
    with pytest.raises(ValueError, match=message):
        gj.NullSpace.from_moments(moments, **rule)


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize(
    "inner", [optax.adam(1e-2), optax.adamw(1e-2, weight_decay=0.1), optax.lion(1e-2)], ids=range(3)
)
def test_behind_any_optimiser_the_constraint_is_exact_on_its_own_side(side, inner):
    d = 8 if side == "in" else 6
    k = orthonormal(d, 3, 0)
    ns = gj.NullSpace.from_moments({"a/w": k @ k.T, "stack": np.stack([k @ k.T] * 2)}, rank=3, side=side)
    params = {"a": {"w": make_params({"w": (8, 6)})["w"], "free": np.ones(3, np.float32)}, "stack": np.ones((2, 8, 6))}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    tx = optax.chain(inner, gj.constrain_to_null_space(ns))
    grads_of = lambda i: {  # noqa: E731
        "a": {"w": make_grads(i, 1, {"w": (8, 6)})["w"][0], "free": np.ones(3, np.float32)},
        "stack": make_grads(i, 1, {"s": (2, 8, 6)})["s"][0],
    }
    _, _, seen = run(tx, params, grads_of, 2)
    for updates in seen:
        w = updates["a"]["w"].astype(float)
        protected = k.T @ w if side == "in" else w @ k
        assert np.linalg.norm(protected) < 1e-5 * np.linalg.norm(w)
        assert all(leak <= 1e-5 for leak in gj.null_space_leak(updates, ns).values())
        assert np.linalg.norm(updates["a"]["free"]) > 0


@pytest.mark.slow
def test_the_layers_output_on_protected_inputs_does_not_move():
    rng = np.random.default_rng(0)
    general = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8))
    ns = gj.NullSpace.from_moments({"w": general.T @ general / 50}, energy=1 - 1e-9)
    tx = gj.gems(1e-1, num_tasks=2, rank=3, null_space=ns)
    params = make_params({"w": (8, 6)})
    new, _, _ = run(tx, params, lambda i: make_grads(i, shapes={"w": (8, 6)}), 5)
    moved = np.asarray(new["w"], float) - params["w"]
    assert np.linalg.norm(moved) > 0.1
    assert np.linalg.norm(general @ moved) < 1e-5 * np.linalg.norm(general) * np.linalg.norm(moved)


def test_the_leak_is_the_protected_share_of_an_update():
    k = orthonormal(8, 2, 0)
    ns = gj.NullSpace.from_moments({"w": k @ k.T}, rank=2)
    update = np.random.default_rng(1).normal(size=(8, 6))
    leak = gj.null_space_leak({"w": update}, ns)["w"]
    np.testing.assert_allclose(leak, np.linalg.norm(k.T @ update) / np.linalg.norm(update), rtol=1e-5)
    assert gj.null_space_leak({"w": np.zeros((8, 6))}, ns)["w"] == 0


@pytest.mark.slow
def test_the_leak_can_be_estimated_from_a_few_vectors():
    k = orthonormal(64, 16, 0)
    ns = gj.NullSpace.from_moments({"w": k @ k.T}, rank=16)
    update = np.random.default_rng(1).normal(size=(5, 64, 48))
    inside = update - k @ (k.T @ update)
    for part in (1.0, 1e-3):
        mixed = {"w": inside + part * (update - inside)}
        whole = gj.null_space_leak(mixed, ns, lambda *_: gj.MatrixDims())["w"]
        estimate = gj.null_space_leak(mixed, ns, lambda *_: gj.MatrixDims(), probes=8)["w"]
        np.testing.assert_allclose(estimate, whole, rtol=0.3)
    assert gj.null_space_leak({"w": inside}, ns, lambda *_: gj.MatrixDims(), probes=8)["w"] < 1e-5
    assert gj.null_space_leak({"w": np.zeros((64, 6))}, ns, probes=8)["w"] == 0


def test_bfloat16_parameters_get_float32_updates_from_the_constraint():
    k = orthonormal(8, 2, 0)
    ns = gj.NullSpace.from_moments({"w": k @ k.T}, rank=2)
    tx = gj.constrain_to_null_space(ns)
    updates = {"w": jnp.ones((8, 6), jnp.bfloat16)}
    with pytest.warns(FewBitsWarning, match="'w' is bfloat16: .*; keep float32 parameters"):
        state = jax.jit(tx.init)(updates)
    out, _ = jax.jit(tx.update)(updates, state)
    assert out["w"].dtype == jnp.float32
    assert gj.null_space_leak(out, ns)["w"] < 1e-5


def test_files_come_back_as_they_were_and_replace_only_their_own(tmp_path):
    matrix, _ = moment([5.0, 3.0, 1.0, 1.0, 0.0, 0.0])
    params = make_params({"w": (6, 4)})
    from gems_jax.null_space.fingerprint import weights_fingerprint

    ns = gj.NullSpace.from_moments({"w": matrix, "v": matrix}, energy=0.9, fingerprint=weights_fingerprint(params))
    for _ in range(2):
        ns.save(tmp_path / "ns")
    back = gj.NullSpace.load(tmp_path / "ns")
    assert back.inputs == ns.inputs
    assert (back.side, back.fingerprint, back.rule) == (ns.side, ns.fingerprint, ns.rule)
    np.testing.assert_array_equal(back.factor("v").basis, ns.factor("v").basis)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ns"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not a saved null space"):
        ns.save(tmp_path / "mine")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"null_space\.json is missing"):
        gj.NullSpace.load(tmp_path)
    gj.NullSpace.from_moments({"w": np.eye(4)}, rank=1).save(tmp_path / "ns")
    about = tmp_path / "ns" / "null_space.json"
    good = about.read_text()
    for text in (good[:40], json.dumps({"format": 1})):
        about.write_text(text)
        with pytest.raises(ValueError, match="is damaged"):
            gj.NullSpace.load(tmp_path / "ns")
    about.write_text(good)
    arrays = tmp_path / "ns" / "factors.npz"
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        gj.NullSpace.load(tmp_path / "ns")


def test_flipped_bits_are_found_and_older_files_without_checksums_still_load(tmp_path):
    moments = {"block/q/kernel": np.diag([4.0, 2.0, 1.0]), "block/o/kernel": np.diag([3.0, 2.0, 1.0])}
    gj.NullSpace.from_moments(moments, rank=1).save(tmp_path)
    for name in ("null_space.json", "factors.npz", "checksums.json"):
        whole = (tmp_path / name).read_bytes()
        for place in range(3, len(whole), max(1, len(whole) // 12)):
            (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ValueError, match="is damaged .*calibrate again"):
                gj.NullSpace.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "checksums.json").unlink()
    assert gj.NullSpace.load(tmp_path).inputs == {path: path for path in moments}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about["inputs"].update(extra="lost"), "kernel 'extra' has input 'lost', which has no factor"),
        (lambda about: about["inputs"].pop("v"), "input 'v' belongs to no kernel"),
        (lambda about: about["factors"][1].update(name="w"), "an input stands there twice"),
    ],
)
def test_kernels_and_factors_of_a_file_belong_together(tmp_path, change, message):
    gj.NullSpace.from_moments({"w": np.eye(4), "v": 2 * np.eye(4)}, rank=1).save(tmp_path)
    (tmp_path / "checksums.json").unlink()
    about = json.loads((tmp_path / "null_space.json").read_text())
    change(about)
    (tmp_path / "null_space.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=f"is damaged .*{message}"):
        gj.NullSpace.load(tmp_path)
    text = (tmp_path / "null_space.json").read_text().replace('"inputs": {', '"inputs": {"w": "v", ')
    (tmp_path / "null_space.json").write_text(text)
    with pytest.raises(ValueError, match="'w' stands there twice"):
        gj.NullSpace.load(tmp_path)


def test_the_weights_it_came_from_are_recognised():
    from gems_jax.null_space.fingerprint import weights_fingerprint

    params = make_params({"w": (6, 4), "v": (6, 4)})
    inputs = {"w": 0, "v": 0}
    matrix = np.eye(6)
    ns = gj.NullSpace.from_moments({"w": matrix, "v": matrix}, rank=1, fingerprint=weights_fingerprint(params, inputs))
    ns.check_weights(params)
    ns.check_weights(jax.tree.map(lambda p: jnp.asarray(p).astype(jnp.bfloat16), params))
    with pytest.raises(ValueError, match="fingerprint"):
        ns.check_weights(params | {"w": params["w"] + 1})
    with pytest.raises(ValueError, match="'w' which this model lacks"):
        ns.check_weights({"v": params["v"]})


def test_the_summary_lists_every_input():
    ns = gj.NullSpace.from_moments({"q": (m := np.eye(4)), "k": m, "v": 2 * m}, rank=1)
    text = ns.summary()
    assert "q" in text
    assert len(text.splitlines()) == 3


def test_a_fractional_rank_protects_that_share_of_every_input():
    moments = {"a/kernel": np.eye(8), "b/kernel": np.eye(32)}
    ns = gj.NullSpace.from_moments(moments, rank=0.25)
    assert (ns.factor("a/kernel").kept.item(), ns.factor("b/kernel").kept.item()) == (2, 8)
    with pytest.raises(ValueError, match="share of the input's dimension"):
        gj.NullSpace.from_moments(moments, rank=1.5)


def test_matrices_are_decomposed_several_at_once_to_the_bits_of_one_after_the_other(monkeypatch):
    rng = np.random.default_rng(0)
    stack = [x @ x.T for x in rng.normal(size=(7, 24, 24))]
    rule, principal_directions = Rule(energy=0.8), directions.principal_directions
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert directions._at_once(24) == 1  # LAPACK's own threads would wait for each other
    alone = directions_of("w", iter(stack), 24, rule)
    together, number = threading.Barrier(3, timeout=60), itertools.count()

    def meeting(*args):
        if next(number) < 3:
            together.wait()  # for ever, were they one after the other
        return principal_directions(*args)

    monkeypatch.setattr(directions, "_at_once", lambda d: 3)
    monkeypatch.setattr(directions, "principal_directions", meeting)
    found = directions_of("w", iter(stack), 24, rule)
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one.basis, other.basis)
        assert one[1:] == other[1:]
    with jax.enable_x64(True):
        assert {one.basis.dtype.name for one in directions_of("w", iter(stack), 24, rule)} == {"float64"}
    stack[4] = np.full((24, 24), np.nan)
    with pytest.raises(ValueError, match="moment of 'w' is not finite"):
        directions_of("w", iter(stack), 24, rule)


def test_as_many_matrices_are_decomposed_at_once_as_there_are_cores_and_room_for(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(directions.os, "sched_getaffinity", lambda pid: set(range(16)))
    memory = {"SC_PHYS_PAGES": 2**36 // 4096, "SC_PAGE_SIZE": 4096}  # 64 GiB
    monkeypatch.setattr(directions.os, "sysconf", memory.__getitem__)
    assert [directions._at_once(d) for d in (64, 4096, 12288, 65536)] == [16, 16, 5, 1]
