"""Diagnostics and the table of the state's size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gems_jax as gj
from gems_jax.transform.reports import diagnostics, state_bytes

PARAMS = {
    "embedding": jnp.zeros((50, 16)),
    "layers": {"kernel": jnp.zeros((3, 16, 16))},
    "out": {"kernel": jnp.zeros((16, 24)), "bias": jnp.zeros(24)},
}
RULE = lambda path, leaf: gj.MatrixDims() if path.endswith("kernel") else None  # noqa: E731


def actual(tx, params=PARAMS):
    return sum(x.nbytes for x in jax.tree.leaves(tx.init(params)))


def test_bytes_are_those_of_the_state_and_follow_the_formula():
    tx = gj.gems(1e-3, num_tasks=2, rank=2, matrix_dims=RULE)
    table = state_bytes(tx, PARAMS)
    assert table.total == actual(tx) == sum(row.bytes for row in table.rows)
    rows = {row.path: row for row in table.rows}
    # (r + T r_t) (m + 2 n) numbers, a flag and a count a branch
    assert rows["out/kernel"].bytes == 4 * (2 + 2 * 1) * (16 + 2 * 24) + 3 * (1 + 4)
    assert rows["embedding"].treatment == "fallback"
    assert rows["embedding"].bytes == 8 * 50 * 16
    assert rows["layers/kernel"].side == "in"
    assert table.adamw == 8 * sum(p.size for p in jax.tree.leaves(PARAMS))


def test_the_table_names_caps_frozen_kernels_factors_and_leaves_without_a_role():
    moments = {"out/kernel": np.diag([1.0] * 13 + [0] * 3), "frozen/kernel": np.eye(16)}
    ns = gj.NullSpace.from_moments(moments, energy=1.0)
    params = PARAMS | {"frozen": {"kernel": jnp.zeros((16, 4))}}
    rule = lambda path, leaf: gj.MatrixDims() if path.endswith("kernel") and leaf.ndim == 2 else None  # noqa: E731
    tx = optax.chain(gj.gems(1e-3, num_tasks=2, rank=8, null_space=ns, matrix_dims=rule), optax.clip(1.0))
    table = state_bytes(tx, jax.eval_shape(lambda: params))
    assert table.total == actual(tx, params)
    rows = {row.path: row for row in table.rows}
    assert rows["out/kernel"].ranks == "3 + 2 x 3 (capped from 8, 4)"
    assert rows["frozen/kernel"].treatment == "frozen"
    assert rows["input of out/kernel"].bytes == 4 * 16 * 3
    text = str(table)
    assert "does not move: frozen/kernel" in text
    assert "matrix_dims to project it): layers/kernel" in text
    assert f"{table.total:,d}" in text


def test_the_table_tells_projected_fallback_leaves_from_free_ones():
    ns = gj.NullSpace.from_moments({"out/kernel": np.eye(16), "layers/kernel": np.eye(16)}, rank=2)
    only_layers = lambda path, leaf: gj.MatrixDims() if path == "layers/kernel" else None  # noqa: E731
    table = state_bytes(gj.gems(1e-3, num_tasks=2, rank=2, null_space=ns, matrix_dims=only_layers), PARAMS)
    treatments = {row.path: row.treatment for row in table.rows}
    assert treatments["layers/kernel"] == "subspaces"
    assert treatments["out/kernel"] == "constrained"
    assert treatments["out/bias"] == "fallback"
    assert "constrained" in str(table)


def test_every_leaf_without_subspaces_has_its_reason_and_those_that_the_null_space_does_not_hold_are_named():
    ns = gj.NullSpace.from_moments({"out/kernel": np.eye(16)}, rank=2)
    rule = lambda path, leaf: gj.MatrixDims() if path == "layers/kernel" else None  # noqa: E731
    for matrix_dims in (None, RULE, rule):
        for null_space in (None, ns, gj.NullSpace.from_moments({"out/kernel": np.eye(16)}, rank=16)):
            table = state_bytes(
                gj.gems(1e-3, num_tasks=2, rank=2, null_space=null_space, matrix_dims=matrix_dims), PARAMS
            )
            without = {row.path for row in table.rows if row.treatment in ("fallback", "constrained", "frozen")}
            assert without <= set(table.left_out)
            assert table.left_out["out/bias"] == "fewer than two axes, no matrix"
            free = () if null_space is None else ("embedding", "layers/kernel", "out/bias")
            assert table.free == free
            assert ("Outside the null space" in str(table)) == bool(free)
    many = {f"norm_{i:02d}": jnp.ones(2) for i in range(30)} | {"kernel": jnp.ones((4, 4))}
    text = str(state_bytes(gj.gems(1e-3, num_tasks=2, rank=2), many))
    assert "no matrix: norm_00, norm_01" in text
    assert "norm_07 and 22 more" in text


def test_a_state_larger_than_adamws_comes_with_advice():
    table = state_bytes(gj.gems(1e-3, num_tasks=3, rank=1.0, matrix_dims=RULE), PARAMS)
    assert table.total > table.adamw
    assert "more than AdamW needs" in str(table)
    assert "more than AdamW needs" not in str(state_bytes(gj.gems(1e-3, num_tasks=2, rank=1, matrix_dims=RULE), PARAMS))


def test_the_table_sees_through_partition_and_wrappers():
    labels = {"embedding": "rest", "layers": "gems", "out": "gems"}
    rest = optax.chain(gj.merge_tasks(), optax.adam(1e-3))
    tx = optax.partition({"gems": gj.gems(1e-3, num_tasks=2, rank=2, matrix_dims=RULE), "rest": rest}, labels)
    table = state_bytes(tx, PARAMS)
    assert table.total == actual(tx)
    assert {row.path for row in table.rows} >= {"layers/kernel", "out/kernel", "out/bias"}
    wrapped = gj.accumulate(gj.gems(1e-3, num_tasks=2, rank=2, matrix_dims=RULE), 2)
    table = state_bytes(wrapped, PARAMS)
    assert table.total == actual(wrapped)
    assert {row.path for row in table.rows} >= {"layers/kernel", "out/kernel", "out/bias", "embedding"}


def test_diagnostics_are_found_wherever_the_state_is():
    tx = gj.gems(1e-3, num_tasks=2, rank=2)
    params = {"kernel": jnp.ones((4, 4))}
    for outer in (tx, optax.chain(tx, optax.clip(1.0)), gj.accumulate(tx, 2), gj.apply_if_finite(tx, 1)):
        assert set(diagnostics(outer.init(params))) >= {"gates", "captured", "cosines", "skipped", "update_norm"}
    with pytest.raises(ValueError, match="found 0"):
        diagnostics(optax.adam(1e-3).init(params))


def test_the_table_is_whole_every_time_it_is_asked_for():
    params = {"kernel": jnp.ones((8, 16))}
    tx = gj.gems(1e-3, num_tasks=2, rank=2)
    assert str(gj.state_bytes(tx, params)) == str(gj.state_bytes(tx, params))
