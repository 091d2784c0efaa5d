"""Which axes of a kernel are its inputs: seen in the program, kept by the null space, against float64 numpy."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gems_jax as gj
from gems_jax.null_space.moment_pass import as_function
from gems_jax.null_space.observed_roles import observe_roles

D, HEADS = 16, 2


def array(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def general_text(batch=3, length=6, directions=1):
    """Inputs that use few directions: what general text leaves over, an update may use."""
    return array(batch, length, directions) @ array(directions, D, seed=1)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.MultiHeadDotProductAttention(num_heads=HEADS, use_bias=False, name="attention")(x, x), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(Attention, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return layers(name="layers")(x, None)[0]


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, D, use_bias=False, decode=False, rngs=rngs)

    def __call__(self, x):
        return x + self.attention(x)


def attend(weights, x):
    """Inputs of query, key and value, inputs of out, and the layer's result, by hand in float64."""
    query, key, value = (np.einsum("bsd,dhk->bhsk", x, weights[name]) for name in ("query", "key", "value"))
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(D // HEADS)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    heads = (shares @ value).transpose(0, 2, 1, 3).reshape(*x.shape[:2], D)
    return heads, x + heads @ weights["out"].reshape(D, D)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linen", "scanned", "nnx"])
def test_attention_of_flax_does_not_move_on_general_text(kind):
    x = general_text()
    if kind == "nnx":
        model = OfNnx(nnx.Rngs(0))
        params, arguments = nnx.state(model, nnx.Param), {}
    else:
        net = Attention() if kind == "linen" else Scanned()
        params = net.init(jax.random.key(0), x)["params"]
        model, arguments = lambda params, x: net.apply({"params": params}, x), {"params": params}
    null_space = gj.estimate_null_space(model, [{"x": x}], energy=1 - 1e-9, progress=False, **arguments)
    assert len(null_space.inputs) == 4
    assert not null_space.left_out
    grads = jax.tree.map(lambda p: jnp.asarray(array(2, *p.shape, seed=2)), params)
    if kind == "scanned":
        # As the README has it: the rule is a guess, and gives way to the roles that the null space knows.
        gems = gj.gems(1.0, num_tasks=2, rank=0.25, null_space=null_space, matrix_dims=gj.stacked_matrix_dims)
        rows = [row for row in gj.state_bytes(gems, params).rows if row.treatment == "subspaces"]
        table = {row.path.rsplit("/", 2)[-2]: row for row in rows}
        assert table["query"].ranks == table["out"].ranks == "4 + 2 x 2"
    tx = optax.chain(gj.merge_tasks(), optax.sgd(1.0), gj.constrain_to_null_space(null_space))
    step = jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])
    updates = step(grads, params)
    assert all(leak <= 1e-5 for leak in gj.null_space_leak(updates, null_space).values())
    weights, moves = (
        {gj.leaf_path(p).split("/")[-2]: np.asarray(w, float) for p, w in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, updates)
    )
    layers = range(2) if kind == "scanned" else [...]
    state = x.astype(float)
    for layer in layers:
        of_layer = {name: w[layer] for name, w in weights.items()}
        heads, after = attend(of_layer, state)
        for name, rows in (("query", state), ("key", state), ("value", state), ("out", heads)):
            move = moves[name][layer].reshape(D, D)
            assert np.linalg.norm(move) > 0
            assert np.linalg.norm(rows.reshape(-1, D) @ move) < 2e-5 * np.linalg.norm(rows) * np.linalg.norm(move)
        state = after


NAMES = ("multi_head_attention/query", "pos_ffn/w1", "classification_head/dense", "scale_1", "norm_mlp", "wpe")


def test_kernels_are_what_is_multiplied_with_activations_whatever_their_names():
    params = {name: {"kernel": array(4, 4, seed=n)} for n, name in enumerate(NAMES)}
    params |= {"item_rows": array(9, 4), "lm_head": {"kernel": array(4, 9)}, "attention_norm": {"scale": array(2, 4)}}

    def model(params, ids):
        x = params["item_rows"][ids]
        for name in NAMES:
            x = jnp.tanh(x @ params[name]["kernel"])
        return x * params["attention_norm"]["scale"][0] @ params["lm_head"]["kernel"] + x @ params["item_rows"].T

    batch = {"ids": np.arange(6).reshape(2, 3)}
    ns = gj.estimate_null_space(model, [batch], rank=2, params=params, progress=False)
    assert set(ns.inputs) == {f"{name}/kernel" for name in NAMES}
    assert ns.roles["item_rows"] is None
    assert ns.roles["lm_head/kernel"] is None
    summary = ns.summary()
    assert "'item_rows': its rows are looked up: a table" in summary
    assert "'lm_head/kernel': a head over the vocabulary by name" in summary
    # What the program shows is no kernel has no subspaces either, though it has two axes and a name that says nothing.
    rows = {row.path: row for row in gj.state_bytes(gj.gems(1e-3, num_tasks=2, rank=2, null_space=ns), params).rows}
    assert rows["item_rows"].treatment == "fallback"
    assert rows["scale_1/kernel"].treatment == "subspaces"


def test_a_kernel_that_is_protected_in_one_of_its_two_uses_is_listed():
    params = {"tied": array(4, 4)}
    model = lambda params, x: jnp.tanh(x @ params["tied"]) @ params["tied"].T  # noqa: E731
    with pytest.warns(UserWarning, match="not all uses of 1 kernels"):
        ns = gj.estimate_null_space(model, [{"x": array(5, 4)}], rank=2, params=params, progress=False)
    told = gj.state_bytes(gj.gems(1e-3, num_tasks=2, rank=2, null_space=ns), params).left_out
    assert told["tied"].startswith("protected in some of its uses: it is used as MatrixDims(in_axes=(1,)")


def test_a_leaf_named_as_a_table_is_one_where_rows_are_looked_up_by_index_or_by_ones():
    names = ("embed", "pos", "relative_bias")
    params = {name: array(4, 4, seed=n) for n, name in enumerate(names)}
    params |= {"features": array(9, 4), "experts": array(9, 4, 4)}

    def model(params, ids):
        ones = jax.nn.one_hot(ids, 9)
        x = ones @ params["features"]
        for name in names:
            x = jnp.tanh(x @ params[name])
        return jnp.einsum("bsd,bsdf->bsf", x, jnp.einsum("bse,edf->bsdf", ones, params["experts"]))

    batch = {"ids": np.arange(6).reshape(2, 3)}
    with pytest.warns(UserWarning, match="'experts': it is multiplied with activations after 'one-hot dot_general'"):
        ns = gj.estimate_null_space(model, [batch], rank=2, params=params, progress=False)
    assert set(ns.inputs) == set(names)
    assert ns.left_out["features"] == "its rows are looked up: a table"


def equinox():
    """Square weights ``[out, in]``, as Equinox and torch lay them out."""
    params = {"q": {"weight": jnp.asarray(array(8, 8))}}
    x = array(20, 3) @ array(3, 8, seed=1)
    model = lambda params, x: x @ params["q"]["weight"].T  # noqa: E731
    return model, params, x


FORGOTTEN = [None, gj.default_matrix_dims, gj.stacked_matrix_dims]


@pytest.mark.parametrize("given", [None, lambda path, leaf: gj.MatrixDims(-1, -2)], ids=["seen", "given"])
def test_a_null_space_knows_which_axis_is_the_input_when_the_rule_is_forgotten(given, tmp_path):
    model, params, x = equinox()
    ns = gj.estimate_null_space(model, [{"x": x}], energy=1 - 1e-9, params=params, matrix_dims=given, progress=False)
    ns.save(tmp_path / "ns")
    grads = {"q": {"weight": jnp.asarray(array(2, 8, 8, seed=3))}}
    loaded = gj.NullSpace.load(tmp_path / "ns")
    for rule in FORGOTTEN:
        tx = optax.chain(gj.merge_tasks(), optax.sgd(1.0), gj.constrain_to_null_space(loaded, rule))
        update = tx.update(grads, tx.init(params), params)[0]["q"]["weight"]
        assert np.linalg.norm(x @ np.asarray(update, float).T) < 1e-5 * np.linalg.norm(x) * np.linalg.norm(update)
        wrong = {"q": {"weight": update.T}}
        assert gj.null_space_leak(wrong, loaded, rule)["q/weight"] > 0.1


def test_a_rule_that_contradicts_the_null_space_is_an_error_that_names_the_leaf():
    model, params, x = equinox()
    ns = gj.estimate_null_space(model, [{"x": x}], rank=3, params=params, progress=False)
    wrong = lambda path, leaf: gj.MatrixDims()  # noqa: E731
    gems = lambda **options: gj.gems(1.0, num_tasks=2, rank=2, null_space=ns, **options)  # noqa: E731
    message = r"gives MatrixDims\(in_axes=-2, out_axes=-1\) for 'q/weight' of shape \[8, 8\], but its null space"
    for use in (
        lambda: gems(matrix_dims=wrong).init(params),
        lambda: gems(matrix_dims={"q": {"weight": gj.MatrixDims()}}).init(params),
        lambda: gj.constrain_to_null_space(ns, wrong).init(params),
        lambda: gj.null_space_leak(params, ns, wrong),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    gj.constrain_to_null_space(ns, lambda path, leaf: gj.MatrixDims(1, 0)).init(params)


def test_roles_can_be_given_with_moments_and_stand_in_the_file(tmp_path):
    ns = gj.NullSpace.from_moments({"w": np.diag([3.0, 1.0])}, rank=1, roles={"w": gj.MatrixDims(-1, (0, 1))})
    ns.save(tmp_path / "ns")
    assert gj.NullSpace.load(tmp_path / "ns").roles == {"w": gj.MatrixDims((-1,), (0, 1))}
    with pytest.raises(ValueError, match="roles name 'v', which has no moment"):
        gj.NullSpace.from_moments({"w": np.eye(2)}, rank=1, roles={"v": gj.MatrixDims()})


def test_an_older_file_is_read_and_says_that_it_knows_no_roles(tmp_path):
    gj.NullSpace.from_moments({"w": np.eye(4)}, rank=1).save(tmp_path / "ns")
    about = tmp_path / "ns" / "null_space.json"
    old = json.loads(about.read_text())
    del old["roles"], old["left_out"]
    about.write_text(json.dumps(old | {"format": 1}))
    (tmp_path / "ns" / "checksums.json").unlink()
    with pytest.warns(UserWarning, match="older version and does not say which axes are its kernels' inputs"):
        assert gj.NullSpace.load(tmp_path / "ns").roles == {}


def sharded(p, x):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()
    return jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(p["w"], x)


UNFOLLOWED = {
    "sharded": (sharded, {"w"}),
    "merged": (lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), {"w", "a", "b"}),
    "concatenated": (lambda p, x: x @ jnp.concatenate([p["w"], p["v"]], axis=1), {"w", "v"}),
    "picked": (lambda p, x: jnp.einsum("bi,bio->bo", x, p["experts"][jnp.argmax(x, axis=1) % 3]), {"experts"}),
    "looped": (lambda p, x: jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p["experts"][i]), x), {"experts"}),
    "ragged": (lambda p, x: jax.lax.ragged_dot(x, p["experts"], jnp.array([2, 1, 2])), {"experts"}),
    "convolved": (lambda p, x: jax.lax.conv(x[:, None], p["experts"][:, :1], (1,), "SAME"), {"experts"}),
    "chosen": (lambda p, x: x @ jnp.where(x.sum() > 0, p["w"], p["v"]), {"w", "v"}),
}


@pytest.mark.parametrize("kind", UNFOLLOWED)
def test_kernels_that_meet_activations_in_another_way_are_named(kind):
    """Also those whose name and shape say nothing: they would be left out in silence."""
    apply, names = UNFOLLOWED[kind]
    params = {"w": array(4, 4), "v": array(4, 4, seed=1), "a": array(4, 2), "b": array(2, 4), "experts": array(3, 4, 4)}
    params |= {"seen": {"kernel": array(4, 4, seed=2)}}
    model = lambda params, x: apply(params, x @ params["seen"]["kernel"])  # noqa: E731
    observed = observe_roles(as_function(model, params), {"x": array(5, 4)})
    assert set(observed.specs) == {"seen/kernel"}
    assert names <= set(observed.remarks)
    assert not any("does not use it" in observed.remarks[name] for name in names)
    if kind == "merged":
        with pytest.warns(UserWarning, match="are in the null space: .*'w': it"):
            ns = gj.estimate_null_space(model, [{"x": array(5, 4)}], rank=1, params=params, progress=False)
        assert all(f"not protected: {name!r}: it" in ns.summary() for name in names)


def head_split():
    """Attention whose kernels have three axes, beside a stack of layers and a table."""
    params = {f"attention/{name}": (D, HEADS, D // HEADS) for name in ("query", "key", "value")}
    params |= {"attention/out": (HEADS, D // HEADS, D), "block/mlp": (5, D, D)}
    tree = {name: {"kernel": jnp.asarray(array(*shape))} for name, shape in params.items()}
    return tree | {"shared": {"embedding": jnp.zeros((9, D))}}


@pytest.mark.parametrize("rule", [None, gj.stacked_matrix_dims], ids=["default", "stacked"])
def test_head_split_kernels_whose_roles_nobody_knows_take_the_fallback_and_are_named(rule):
    params = head_split()
    if rule is None:
        del params["block/mlp"]
        params["dense"] = {"kernel": jnp.ones((D, D))}
    tx = gj.gems(1e-3, num_tasks=2, rank=2, matrix_dims=rule)
    table = gj.state_bytes(tx, params)
    heads = {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")}
    assert {row.path for row in table.rows if row.treatment == "fallback"} == heads | {"shared/embedding"}
    assert set(table.unnamed) == heads
    assert table.left_out == dict.fromkeys(sorted(heads), "three or more axes and no matrix role") | {
        "shared/embedding": "no kernel by its name"
    }
    assert "Left out, no kernel by its name: shared/embedding" in str(table)
    with pytest.warns(UserWarning, match="4 kernels get neither subspaces nor .*'attention/key/kernel': three or more"):
        gj.accumulate(tx, 2).init(params)


def test_kernels_that_the_pass_shows_unfollowed_are_named_by_the_optimiser():
    params = {"a": {"kernel": jnp.asarray(array(4, 4))}, "experts": jnp.asarray(array(3, 4, 4))}
    params |= {"table": jnp.asarray(array(9, 4, seed=3))}

    def model(params, ids):
        x = params["table"][ids] @ params["a"]["kernel"]
        return jax.lax.ragged_dot(x, params["experts"], jnp.array([2, 1, 2]))

    with pytest.warns(UserWarning, match="null space: 'experts': it goes into 'ragged_dot"):
        ns = gj.estimate_null_space(model, [{"ids": np.arange(5)}], rank=1, params=params, progress=False)
    tx = gj.gems(1e-3, num_tasks=2, rank=2, null_space=ns)
    table = gj.state_bytes(tx, params)
    assert table.left_out["table"] == "its rows are looked up: a table"
    assert table.left_out["experts"].startswith("it goes into 'ragged_dot")
    with pytest.warns(UserWarning, match="1 kernels get neither .*'experts'") as caught:
        tx.init(params)
    assert "table" not in str(caught[0].message)
