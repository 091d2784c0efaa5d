"""Calibration of whole models: in groups that fit a bound on memory, without logits, on a mesh, with a cap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gems_jax as gj
from gems_jax.models import T5, Decoder, DecoderConfig, T5Config
from gems_jax.null_space.directions import Rule, principal_directions, stack_directions
from gems_jax.null_space.estimate import estimate_null_space, observed_matrix_dims
from gems_jax.null_space.moment_groups import bytes_per_device, moment_groups
from gems_jax.null_space.moment_pass import as_function, kernel_specs, moment_pass
from gems_jax.null_space.tracing.kernel_inputs import kernel_inputs

LAYERS, WIDTH, HIDDEN = 3, 8, 16
RULE = {"rank": 0.25, "progress": False}


def t5(vocab_size=20):
    sizes = {"d_model": WIDTH, "d_kv": 4, "d_ff": HIDDEN, "num_layers": LAYERS, "num_decoder_layers": LAYERS}
    return T5.create(T5Config(vocab_size=vocab_size, num_heads=2, **sizes), jax.random.key(0))


def decoder(vocab_size=20):
    sizes = {"d_model": WIDTH, "d_ff": HIDDEN, "head_dim": 4, "num_layers": LAYERS}
    config = DecoderConfig(vocab_size=vocab_size, num_heads=4, num_kv_heads=2, model_type="qwen3", **sizes)
    return Decoder.create(config, jax.random.key(0))


def small_params():
    rng = np.random.default_rng(0)
    shapes = {"wi": (LAYERS, 4, 6), "wo": (LAYERS, 6, 4), "last": (4, 3)}
    return {path: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)} for path, shape in shapes.items()}


def small(params, x):
    def layer(x, kernels):
        return x + jnp.tanh(x @ kernels["wi"]["kernel"]) @ kernels["wo"]["kernel"], None

    stack = {path: params[path] for path in ("wi", "wo")}
    return jax.lax.scan(layer, x, stack)[0] @ params["last"]["kernel"]


def small_batches(number=2):
    return [{"x": np.random.default_rng(seed).normal(size=(2, 5, 4)).astype(np.float32)} for seed in range(number)]


def ids(seed, *shape, vocab_size=20):
    return np.random.default_rng([seed, *shape]).integers(2, vocab_size, shape)


def t5_batch(seed=0, length=6, target=5, ends=(6, 3), target_ends=(2, 5)):
    return {
        "input_ids": ids(seed, 2, length),
        "attention_mask": (np.arange(length) < np.array(ends)[:, None]).astype(int),
        "decoder_input_ids": ids(seed + 100, 2, target),
        "decoder_attention_mask": (np.arange(target) < np.array(target_ends)[:, None]).astype(int),
    }


@pytest.fixture(scope="module")
def model():
    return t5()


@pytest.fixture(scope="module")
def whole(model):
    return estimate_null_space(model, [t5_batch(), t5_batch(1)], **RULE)


def protected(null_space, path):
    """Projectors onto the protected directions, one a layer."""
    factor = null_space.factor(path)
    basis = np.asarray(factor.basis, float)
    inside = basis @ np.swapaxes(basis, -1, -2)
    return np.eye(factor.dim) - inside if factor.complement else inside


def assert_same(found, expected):
    assert found.inputs == expected.inputs
    for path, factor in expected.factors.items():
        np.testing.assert_array_equal(found.factors[path].kept, factor.kept)
        np.testing.assert_allclose(found.factors[path].residual, factor.residual, atol=1e-5)
        np.testing.assert_allclose(protected(found, path), protected(expected, path), atol=1e-4)


@pytest.mark.slow
def test_inputs_that_kernels_share_and_the_encoded_text_count_once(whole):
    groups = {}
    for path, name in whole.inputs.items():
        groups.setdefault(name, []).append(path.removesuffix("/kernel").split("/", 2)[2])
    assert sorted(map(sorted, groups.values())) == sorted(
        [
            ["attention/k", "attention/q", "attention/v"],
            ["attention/o"],
            ["mlp/wi_0", "mlp/wi_1"],
            ["mlp/wo"],
            ["self_attention/k", "self_attention/q", "self_attention/v"],
            ["self_attention/o"],
            ["cross_attention/q"],
            ["cross_attention/k", "cross_attention/v"],
            ["cross_attention/o"],
            ["mlp/wi_0", "mlp/wi_1"],
            ["mlp/wo"],
        ]
    )
    assert whole.factor("decoder/block/cross_attention/v/kernel").basis.ndim == 2
    assert whole.factor("decoder/block/cross_attention/q/kernel").basis.shape[0] == LAYERS


@pytest.mark.slow
def test_padding_of_either_side_changes_nothing_also_where_both_are_of_one_length(model, whole):
    padded = []
    for seed in (0, 1):
        batch = t5_batch(seed)
        wider = {k: np.pad(v, ((0, 0), (0, 7 - v.shape[1])), constant_values=0) for k, v in batch.items()}
        padded.append(wider)
    assert padded[0]["input_ids"].shape == padded[0]["decoder_input_ids"].shape
    assert_same(estimate_null_space(model, padded, **RULE), whole)
    everything = [{k: v for k, v in batch.items() if "mask" not in k} for batch in padded]
    other = estimate_null_space(model, everything, **RULE)
    assert np.abs(protected(other, path := "encoder/block/mlp/wo/kernel") - protected(whole, path)).max() > 1e-2


def check_groups(inputs, limit):
    """Every layer of every input is in one group, and no group's moments are larger than the limit."""
    groups = moment_groups(inputs, limit)
    sizes = {entry.name: bytes_per_device(entry, 1) for entry in inputs}
    for group in groups:
        assert sum(sizes[name] * (1 if part is None else part[1] - part[0]) for name, part in group.items()) <= limit
    layers = sorted((name, n) for group in groups for name, p in group.items() for n in range(*(p or (0, 1))))
    assert layers == sorted((e.name, n) for e in inputs for n in range(e.stack[0] if e.stack else 1))
    return len(groups)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "passes"), [(4 * 6**2, 7), (4 * (2 * 6**2 + 4**2), 3), (10**6, 1)])
def test_a_memory_limit_takes_more_passes_and_gives_the_same(limit, passes):
    params, read = small_params(), []

    def batches():
        read.append(0)
        for batch in small_batches():
            read[-1] += 1
            yield batch

    expected = estimate_null_space(small, small_batches(), params=params, rank=2, progress=False)
    found = estimate_null_space(small, batches, params=params, memory_limit=limit, rank=2, progress=False)
    assert_same(found, expected)
    inputs = kernel_inputs(lambda p, batch: small(p, **batch), params, small_batches()[0], kernel_specs(params)).inputs
    assert check_groups(inputs, limit) == passes
    # The first is begun once more, for the batches' shapes.
    assert read == [1] + [2] * passes


@pytest.mark.slow
def test_an_encoder_and_a_decoder_in_groups_of_layers_give_the_same(model, whole):
    limit = 4 * 2 * (HIDDEN**2 + 5 * WIDTH**2)
    function = as_function(model)
    inputs = kernel_inputs(function.apply, function.params, t5_batch(), kernel_specs(function.params)).inputs
    assert check_groups(inputs, limit) == 3
    assert_same(estimate_null_space(model, [t5_batch(), t5_batch(1)], memory_limit=limit, **RULE), whole)


@pytest.mark.slow
def test_limits_that_cannot_be_kept_are_refused():
    batches, options = small_batches(), {"params": small_params(), "rank": 2, "progress": False}
    with pytest.raises(ValueError, match=r"memory_limit=100 bytes is less than the 144 .*'wo/kernel'"):
        estimate_null_space(small, batches, memory_limit=100, **options)
    with pytest.raises(ValueError, match="needs 7 passes over the text, but batches can be read once"):
        estimate_null_space(small, iter(batches), memory_limit=144, **options)
    lengths = iter([1, 2, 1])
    with pytest.raises(ValueError, match="gave 2 batches at first and 1 in pass 2"):
        estimate_null_space(small, lambda: batches[: next(lengths)], memory_limit=600, **options)
    assert estimate_null_space(small, iter(batches), **options).inputs


def compiled_pass(model, batch, group=None):
    function = as_function(model)
    specs = kernel_specs(function.params)
    inputs = kernel_inputs(function.apply, function.params, batch, specs).inputs
    group = dict.fromkeys(entry.name for entry in inputs) if group is None else group
    start, add = moment_pass(function, specs, "in", inputs, group)
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    return add.lower(function.params, batch, jax.eval_shape(start)).compile()


@pytest.mark.slow
@pytest.mark.parametrize("make", [t5, decoder])
def test_no_logits_over_the_vocabulary_are_computed(make):
    batch = t5_batch()
    if make is decoder:
        batch = {k: v for k, v in batch.items() if not k.startswith("decoder")}
    small, large = (compiled_pass(make(size), batch) for size in (20, 1020))
    # The logits of the larger vocabulary alone would be 2 B S d V more.
    logits = 2 * 10 * WIDTH * 1000
    assert small.cost_analysis()["flops"] > 2 * 10 * WIDTH * 20
    assert large.cost_analysis()["flops"] - small.cost_analysis()["flops"] < 0.1 * logits


@pytest.mark.slow
def test_a_pass_ends_with_the_last_layer_that_it_is_for(model):
    first = {"encoder/block/attention/k/kernel": (0, 1)}
    products = lambda group: compiled_pass(model, t5_batch(), group).as_text().count(" dot(")  # noqa: E731
    assert 0 < products(first) < products({"decoder/block/mlp/wo/kernel": (LAYERS - 1, LAYERS)})


@pytest.mark.slow
def test_sums_are_kept_in_place():
    function = as_function(t5())
    batch = t5_batch()
    inputs = kernel_inputs(function.apply, function.params, batch, kernel_specs(function.params)).inputs
    sums = sum(bytes_per_device(entry, 1) * (entry.stack[0] if entry.stack else 1) for entry in inputs)
    memory = compiled_pass(t5(), batch).memory_analysis()
    assert memory.alias_size_in_bytes >= sums


@pytest.mark.slow
def test_a_decoder_is_calibrated_as_a_loop_over_its_layers_says():
    """Against each layer's inputs, from a model of fewer layers whose last output they are."""
    model = decoder()
    function = as_function(model)
    batch = {"input_ids": ids(0, 2, 6), "attention_mask": np.array([[1] * 6, [1] * 4 + [0] * 2])}
    null_space = estimate_null_space(model, [batch], rank=3, progress=False)
    assert set(null_space.inputs) == {
        f"block/{part}/kernel" for part in (*("attention/" + k for k in "qkvo"), "mlp/gate", "mlp/up", "mlp/down")
    }
    assert len(null_space.factors) == 4
    weights = {gj.leaf_path(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(function.params)}
    embedded = weights["token_embedding/embedding"][batch["input_ids"]]
    normed = embedded / np.sqrt(np.mean(embedded**2, axis=-1, keepdims=True) + 1e-6)
    rows = (normed * weights["block/attention_norm/scale"][0])[batch["attention_mask"] > 0]
    vectors = np.linalg.eigh(rows.T @ rows)[1][:, -3:]
    np.testing.assert_allclose(protected(null_space, "block/attention/q/kernel")[0], vectors @ vectors.T, atol=1e-4)


def test_a_cap_keeps_the_leading_directions_and_the_residual_tells():
    spectrum = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.2, 0.05])
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    matrix = (vectors * spectrum) @ vectors.T
    for cap, kept in ((2, 2), (3, 3), (5, 4)):  # energy 0.9 alone keeps 4; above half of d all are computed
        found = principal_directions("w", matrix, Rule(energy=0.9, max_directions=cap))
        assert found.kept == kept
        k = vectors[:, :kept]
        np.testing.assert_allclose(found.basis @ found.basis.T, k @ k.T, atol=1e-6)
        np.testing.assert_allclose(found.residual, 1 - spectrum[:kept].sum() / 16, atol=1e-9)
    assert principal_directions("w", matrix, Rule(threshold=0.01, max_directions=2)).kept == 2
    ns = gj.NullSpace.from_moments({"w": matrix}, rank=7, max_directions=4)
    assert (ns.factor("w").kept.item(), ns.rule) == (4, {"rank": 7.0, "max_directions": 4.0})
    with pytest.raises(ValueError, match="max_directions is a number of directions, at least 1"):
        Rule(rank=1, max_directions=0)


def test_a_cap_reaches_the_estimate():
    options = {"params": small_params(), "rank": 0.5, "progress": False}
    found = estimate_null_space(small, small_batches(), max_directions=2, **options)
    assert (found.factor("wo/kernel").kept.tolist(), found.rule["max_directions"]) == ([2] * LAYERS, 2.0)
    assert estimate_null_space(small, small_batches(), **options).factor("wo/kernel").kept.tolist() == [3] * LAYERS


def test_one_token_of_enormous_norm_takes_the_energy_of_all_others_unless_each_counts_alike():
    rng = np.random.default_rng(0)
    ordinary = rng.normal(size=(40, 6)) @ np.diag([3.0, 3.0, 2.0, 1.0, 0.1, 0.1])
    outlier = 1e25 * rng.normal(size=(1, 6))  # its square is more than float32 holds
    rows = np.concatenate([ordinary, outlier, np.zeros((1, 6))]).astype(np.float32)
    params = {"kernel": jnp.eye(6)}

    def estimated(scale, **options):
        text = [{"x": rows[:20] * scale}, {"x": rows[20:] * scale}]
        return estimate_null_space(
            lambda params, x: x @ params["kernel"], text, energy=0.9, params=params, progress=False, **options
        )

    found = estimated(1, unit_norm=True)
    lengths = np.linalg.norm(rows.astype(float), axis=1, keepdims=True)
    units = rows / np.where(lengths > 0, lengths, 1)
    values, vectors = np.linalg.eigh(units.T @ units)
    kept = int(np.sum(np.cumsum(values[::-1]) < 0.9 * values.sum())) + 1
    factor = found.factor("kernel")
    assert factor.kept.item() == kept > 1
    expected = vectors[:, -kept:] @ vectors[:, -kept:].T
    basis = np.asarray(factor.basis, float)
    inside = np.eye(6) - basis @ basis.T if factor.complement else basis @ basis.T
    np.testing.assert_allclose(inside, expected, atol=1e-5)
    assert found.rule == {"energy": 0.9, "unit_norm": 1.0}
    # With tokens as they are, the outlier's direction alone is protected.
    assert estimated(1e-20).factor("kernel").kept.item() == 1


def test_layers_that_would_rather_store_the_other_basis_are_turned_around():
    matrix = np.diag([4.0, 3.0, 2.0, 1.0])
    for ranks, complement in (((1, 3), False), ((1, 4), True), ((0, 4), False), ((4, 3, 2), True)):
        found = [principal_directions("w", matrix, Rule(rank=k)) for k in ranks]
        factor = stack_directions(found, (len(ranks),))
        assert factor.complement == complement
        for n, k in enumerate(ranks):
            inside = factor.basis[n] @ factor.basis[n].T
            expected = np.diag([1.0] * k + [0.0] * (4 - k))
            np.testing.assert_allclose(np.eye(4) - inside if complement else inside, expected, atol=1e-6)


def test_kernels_whose_use_is_not_seen_are_named_with_the_reason():
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)},
        "heads": {"kernel": jnp.asarray(rng.normal(size=(4, 2, 3)), jnp.float32)},
        "wide": {"kernel": jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)},
        "idle": {"kernel": jnp.ones((4, 4))},
    }

    def model(params, x):
        y = jnp.einsum("bsm,mhd->bshd", x, params["heads"]["kernel"])
        wide = jnp.linalg.qr(params["wide"]["kernel"])[0]
        return (x @ params["dense"]["kernel"]).sum() + y.sum() + (x @ wide).sum()

    batches = [{"x": np.ones((2, 5, 4), np.float32)}]
    with pytest.warns(UserWarning, match="2 kernels") as caught:
        found = estimate_null_space(model, batches, params=params, **RULE)
    text = str(caught[0].message)
    assert found.inputs["heads/kernel"] == found.inputs["dense/kernel"]
    assert "'idle/kernel': the pass does not use it" in text
    assert "'wide/kernel': it goes into" in text
    roles = observed_matrix_dims(model, batches[0], params)
    assert roles("heads/kernel", None) == gj.MatrixDims((0,), (1, 2))
    assert roles("idle/kernel", None) is None
    # A rule of one's own is no guess: what it says of a kernel must be what the pass does with it.
    stacks = lambda path, leaf: None if path.startswith("wide") else gj.MatrixDims()  # noqa: E731
    with pytest.warns(UserWarning, match="2 kernels") as caught:
        found = estimate_null_space(model, batches, params=params, matrix_dims=stacks, **RULE)
    assert list(found.inputs) == ["dense/kernel"]
    assert "'heads/kernel': it is used as MatrixDims(in_axes=(0,), out_axes=(1, 2))" in str(caught[0].message)


ON_A_MESH = """
import json
import jax
from fake_devices import fake_devices
fake_devices(4)
import numpy as np
import test_calibrate as t
mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
batches = [{"x": np.concatenate([batch["x"]] * 2)} for batch in t.small_batches()]
# In a quarter of the memory the first input of all layers fits, the second, which six rows cannot spread, of one.
limit = 4 * (6**2 + 3 * 4**2 // 4)
found = t.estimate_null_space(t.small, batches, params=t.small_params(), mesh=mesh, memory_limit=limit, rank=2)
function, specs = t.as_function(t.small, t.small_params()), t.kernel_specs(t.small_params())
inputs = t.kernel_inputs(function.apply, function.params, batches[0], specs).inputs
start, add = t.moment_pass(function, specs, "in", inputs, dict.fromkeys(e.name for e in inputs), mesh)
sums = add(function.params, batches[0], start())["wi/kernel"].total
assert sums.sharding.shard_shape(sums.shape) == (3, 1, 4), sums.sharding
print(json.dumps({path: t.protected(found, path).tolist() for path in found.factors}))
"""


@pytest.mark.slow
def test_moments_spread_over_a_mesh_are_those_of_one_device():
    whole = estimate_null_space(small, small_batches(), params=small_params(), rank=2, progress=False)
    here, tests = Path(__file__).parent, Path(__file__).parents[1]
    path = os.pathsep.join([str(here), str(tests / "helpers"), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for path in whole.factors:
        np.testing.assert_allclose(found[path], protected(whole, path), atol=1e-4)


@pytest.mark.parametrize("has_flax", [True, False])
def test_what_is_neither_a_module_nor_a_function_with_parameters_is_refused_by_its_kind(has_flax, monkeypatch):
    if not has_flax:
        monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(TypeError, match="model is a function; pass a Flax NNX module, or a function with params="):
        estimate_null_space(lambda x: x, [{"x": np.ones((2, 4))}], **RULE)


@pytest.mark.parametrize("batch", [{"input_ids": np.ones((2, 4))}, {}])
def test_a_batch_that_lacks_what_the_model_is_called_with_is_refused_by_name(batch):
    model = lambda params, ids, scale=1.0: scale * ids @ params["w"]  # noqa: E731
    with pytest.raises(ValueError, match=f"needs 'ids', the batch has {next(map(repr, batch), 'none')}"):
        estimate_null_space(model, [batch], params={"w": jnp.eye(4)}, **RULE)
    assert estimate_null_space(model, [{"ids": np.eye(4)}], params={"w": jnp.eye(4)}, **RULE).inputs == {"w": "w"}
