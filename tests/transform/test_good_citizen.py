"""The transform inside optax's and flax's machinery, its errors, and the cost of importing the package."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import LOSSES, assert_no_leak, difference, make_grads, make_null_space, make_params, run

import gems_jax as gj
from gems_jax.config.optimiser import GemsConfig
from gems_jax.transform.settings import Settings

SHAPES = {"w": (8, 6), "bias": (6,)}


def grads_of(step):
    return make_grads(step, shapes=SHAPES)


@pytest.mark.slow
def test_buffers_can_be_donated_and_the_states_types_stay():
    tx = gj.gems(1e-2, num_tasks=2, rank=3, refresh_every=2, weight_decay=0.1)
    params = jax.tree.map(jnp.asarray, make_params(SHAPES))
    state = tx.init(params)
    form = jax.tree.map(lambda x: (x.shape, x.dtype), state)

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(1, 2))
    for i in range(3):
        params, state = compiled(grads_of(i), state, params)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == form
    assert compiled._cache_size() == 1


@pytest.mark.slow
def test_first_in_a_chain_with_clipping_and_a_schedule_behind():
    schedule = optax.linear_schedule(0.0, 1.0, 2)
    plain = gj.scale_by_gems(num_tasks=2, rank=3)
    tx = optax.chain(plain, optax.clip_by_global_norm(0.5), optax.scale_by_learning_rate(schedule))
    _, state, seen = run(tx, make_params(SHAPES), grads_of, 2, task_losses=LOSSES)
    _, _, raw = run(plain, make_params(SHAPES), grads_of, 2, task_losses=LOSSES)
    norm = optax.tree.norm(raw[1])
    assert norm > 0.5
    assert difference(seen[1], jax.tree.map(lambda u: -0.5 * u * 0.5 / norm, raw[1])) < 1e-4
    assert gj.diagnostics(state)["gates"].shape == (2,)
    assert optax.tree.norm(seen[0]) == 0


@pytest.mark.slow
def test_a_learning_rate_schedule_scales_update_and_decay():
    tx = gj.gems(lambda count: 0.1 * (count == 1), num_tasks=2, rank=3, weight_decay=0.1)
    _, _, seen = run(tx, make_params(SHAPES), grads_of, 2)
    assert optax.tree.norm(seen[0]) == 0
    _, _, without = run(gj.gems(0.1, num_tasks=2, rank=3), make_params(SHAPES), grads_of, 2)
    decay = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), seen[1], without[1])
    jax.tree.map(lambda d, p: np.testing.assert_allclose(d, -0.1 * 0.1 * p, atol=1e-5), decay, make_params(SHAPES))


@pytest.mark.slow
def test_partition_beside_other_transforms_that_merge_the_tasks():
    labels = {"w": "kernels", "bias": "rest"}
    rest = optax.chain(gj.merge_tasks(), optax.adam(1e-2))
    tx = optax.partition({"kernels": gj.gems(1e-2, num_tasks=2, rank=3), "rest": rest}, labels)
    params = make_params(SHAPES)
    counts = np.array([30.0, 10.0], np.float32)
    _, state, seen = run(tx, params, grads_of, 2, task_counts=counts)
    alone = {"w": params["w"]}
    _, _, kernels = run(
        gj.gems(1e-2, num_tasks=2, rank=3), alone, lambda i: {"w": grads_of(i)["w"]}, 2, task_counts=counts
    )
    np.testing.assert_allclose(seen[-1]["w"], kernels[-1]["w"], atol=1e-6)
    merged = lambda i: 0.75 * grads_of(i)["bias"][0] + 0.25 * grads_of(i)["bias"][1]  # noqa: E731
    _, _, biases = run(optax.adam(1e-2), params["bias"], merged, 2)
    np.testing.assert_allclose(seen[-1]["bias"], biases[-1], atol=1e-6)
    assert gj.diagnostics(state)["refreshed"] == 0


# --- freezing: leaves that optax keeps from the transform -------------------------------------------------------

TREE = {"block": {"w": (8, 6), "v": (8, 6)}, "norm": (3,), "heads": [(2,), (4,)]}
LABELS = {"block": {"w": "train", "v": "train"}, "norm": "freeze", "heads": ["freeze", "freeze"]}
TRAINED = jax.tree.map(lambda label: label == "train", LABELS)
FROZEN = jax.tree.map(lambda label: label == "freeze", LABELS)


def small():
    return gj.gems(1e-2, num_tasks=2, rank=2)


def merged(tx):
    return optax.chain(gj.merge_tasks(), tx)


def zeros():
    return optax.set_to_zero()


def shapes_after_a_step(tx):
    """Of the parameters; nothing is computed."""
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), TREE, is_leaf=is_shape)
    grads = jax.tree.map(lambda p: jax.ShapeDtypeStruct((2, *p.shape), p.dtype), params)
    step = lambda g, p: optax.apply_updates(p, tx.update(g, tx.init(p), p)[0])  # noqa: E731
    return jax.tree.map(jnp.shape, jax.eval_shape(step, grads, params))


WRONG = {
    "partition": lambda: optax.partition({"train": small(), "freeze": zeros()}, LABELS),
    "partition, frozen first": lambda: optax.partition({"freeze": zeros(), "train": small()}, lambda params: LABELS),
    "partition of subtrees": lambda: optax.partition(
        {"train": small(), "freeze": zeros()}, {"block": "train", "norm": "freeze", "heads": "freeze"}
    ),
    "selective_transform": lambda: optax.selective_transform(small(), freeze_mask=FROZEN),
    "masked": lambda: optax.masked(small(), TRAINED),
    "freeze behind masked": lambda: optax.chain(optax.masked(small(), TRAINED), optax.freeze(FROZEN)),
    "accumulated": lambda: optax.masked(gj.accumulate(small(), 2), lambda params: TRAINED),
    "merge_tasks": lambda: optax.masked(merged(optax.adam(1e-3)), TRAINED),
    "a baseline": lambda: optax.masked(gj.baselines.pcgrad(optax.adam(1e-3)), TRAINED),
    "released": lambda: optax.masked(gj.presets.released(1e-3, num_tasks=2, rank=2), TRAINED),
}
RIGHT = {
    "partition": lambda: optax.partition({"train": small(), "freeze": merged(zeros())}, LABELS),
    "partition, frozen first": lambda: optax.partition({"freeze": merged(zeros()), "train": small()}, LABELS),
    "partition of subtrees": lambda: optax.partition(
        {"train": small(), "freeze": merged(zeros())}, {"block": "train", "norm": "freeze", "heads": "freeze"}
    ),
    "beside a baseline": lambda: optax.partition(
        {"train": small(), "freeze": gj.baselines.joint(optax.adam(1e-3))}, LABELS
    ),
    "two masks": lambda: optax.chain(optax.masked(small(), TRAINED), optax.masked(merged(zeros()), FROZEN)),
    "freeze behind": lambda: optax.chain(small(), optax.freeze(FROZEN)),
    "accumulated": lambda: gj.accumulate(optax.partition({"train": small(), "freeze": merged(zeros())}, LABELS), 2),
}


@pytest.mark.parametrize("name", WRONG)
def test_masked_leaves_that_would_keep_their_task_axis_are_warned_about(name):
    with pytest.warns(UserWarning, match="heads.*norm.*no transform beside it merges their task axis"):
        shapes = shapes_after_a_step(WRONG[name]())
    assert shapes["norm"] == (2, 3)
    assert shapes["block"]["w"] == (8, 6)


@pytest.mark.parametrize("name", RIGHT)
def test_frozen_leaves_whose_tasks_are_merged_keep_their_shape_without_a_warning(name):
    assert shapes_after_a_step(RIGHT[name]()) == TREE


def test_the_leaves_that_nobody_merges_are_named_whatever_was_made_before():
    labels = {"block": {"w": "train", "v": "others"}, "norm": "freeze", "heads": ["others", "others"]}
    parts = {"train": small(), "others": merged(optax.adam(1e-3))}
    assert shapes_after_a_step(optax.partition(parts | {"freeze": merged(zeros())}, labels)) == TREE
    with pytest.warns(UserWarning, match="^'norm': masked from"):
        shapes_after_a_step(optax.partition(parts | {"freeze": zeros()}, labels))
    assert shapes_after_a_step(optax.partition(parts | {"freeze": merged(zeros())}, labels)) == TREE
    # Parts of which one has all leaves and the other none: nothing is masked that nobody merges.
    all_train = jax.tree.map(lambda _: "train", TREE, is_leaf=lambda x: isinstance(x, tuple))
    assert shapes_after_a_step(optax.partition(parts | {"freeze": merged(zeros())}, all_train)) == TREE


@pytest.mark.slow
def test_injected_hyperparameters_are_arrays_in_the_state():
    make = optax.inject_hyperparams(gj.gems, static_args=gj.STATIC_ARGS)
    tx = make(learning_rate=1e-2, num_tasks=2, rank=3, scale=0.5, weight_decay=0.1)
    params = make_params(SHAPES)
    _, state, seen = run(tx, params, grads_of, 2)
    assert set(state.hyperparams) >= {"learning_rate", "scale", "weight_decay"}
    plain = gj.gems(1e-2, num_tasks=2, rank=3, scale=0.5, weight_decay=0.1)
    _, _, expected = run(plain, params, grads_of, 2)
    assert difference(seen, expected) < 1e-5
    state = tx.init(params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.0)
    _, _, still = run(tx, params, grads_of, 1, state=state)
    assert optax.tree.norm(still) == 0


def arguments(function):
    return {p.name: p.default for p in inspect.signature(function).parameters.values()}


def test_every_argument_of_gems_is_static_or_a_number():
    assert set(arguments(gj.gems)) == {"learning_rate", "scale", "weight_decay"} | set(gj.STATIC_ARGS)


def test_arguments_of_both_transforms_and_options_of_a_run_are_the_fields_of_the_settings():
    told = arguments(gj.gems)
    del told["learning_rate"]
    assert {field.name for field in dataclasses.fields(GemsConfig)} < set(told)
    assert {field.name for field in dataclasses.fields(Settings)} == set(told)
    least = {"num_tasks": 1}
    assert Settings.of(least).__dict__.keys() == told.keys()
    for name, value in vars(Settings.of(told | least)).items():
        made_anew = name in ("inner", "fallback", "gate")
        assert told[name] is None if made_anew else value == getattr(Settings(**least), name)
    del told["weight_decay"], told["mask"]
    assert list(arguments(gj.scale_by_gems).items()) == list(told.items())


def test_scale_by_gems_knows_no_learning_rate_and_no_decay():
    for name in ("learning_rate", "weight_decay", "mask", "ranks"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            gj.scale_by_gems(num_tasks=2, **{name: 0.1})
    with pytest.raises(TypeError, match="num_tasks"):
        gj.scale_by_gems(rank=2)


def test_hyperparameters_of_scale_by_gems_are_injected_too():
    static = set(gj.STATIC_ARGS) - {"mask"}
    tx = optax.inject_hyperparams(gj.scale_by_gems, static_args=static)(num_tasks=2, rank=3, scale=0.5)
    assert set(tx.init(make_params(SHAPES)).hyperparams) == {"scale"}


def test_map_params_reaches_what_mirrors_the_parameters():
    tx = gj.gems(1e-2, num_tasks=2, rank=3)
    state = tx.init(jax.tree.map(jnp.asarray, make_params(SHAPES)))
    marked = optax.tree.map_params(tx, lambda x: x + 1, state)
    ours, theirs = marked[0], state[0]
    np.testing.assert_array_equal(ours.shared_basis["w"], theirs.shared_basis["w"] + 1)
    np.testing.assert_array_equal(ours.task_inner.nu["w"], theirs.task_inner.nu["w"] + 1)
    np.testing.assert_array_equal(ours.fallback.mu["bias"], theirs.fallback.mu["bias"] + 1)
    np.testing.assert_array_equal(ours.count, theirs.count)
    np.testing.assert_array_equal(ours.diagnostics.gates, theirs.diagnostics.gates)


def test_state_has_the_same_form_from_abstract_parameters():
    tx = gj.gems(1e-2, num_tasks=2, rank=3, null_space=make_null_space({"w": 8})[0])
    params = make_params(SHAPES)
    abstract = jax.eval_shape(tx.init, jax.eval_shape(lambda: params))
    assert jax.tree.structure(abstract) == jax.tree.structure(tx.init(params))
    assert [x.shape for x in jax.tree.leaves(abstract)] == [x.shape for x in jax.tree.leaves(tx.init(params))]


@pytest.mark.slow
def test_nnx_optimizer_trains_a_model_and_names_its_leaves_as_plain_trees_do():
    from flax import nnx

    model = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
    ns, _ = make_null_space({"kernel": 8})
    optimizer = nnx.Optimizer(model, gj.gems(1e-1, num_tasks=2, rank=3, null_space=ns), wrt=nnx.Param)
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(2, 16, 8)), "y": rng.normal(size=(2, 16, 6))}
    batch = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), batch)

    def loss(params, batch):
        return jnp.mean((nnx.merge(graphdef, params, rest)(batch["x"]) - batch["y"]) ** 2)

    @nnx.jit
    def step(model, optimizer):
        losses, grads = gj.task_value_and_grad(loss)(nnx.state(model, nnx.Param), batch)
        optimizer.update(model, grads, task_losses=losses)
        return losses

    before = jnp.array(model.kernel[...])
    history = [jnp.mean(step(model, optimizer)) for _ in range(3)]
    assert history[-1] < history[0]
    assert_no_leak({"kernel": model.kernel[...] - before}, ns, 1e-4)


@pytest.mark.slow
def test_a_plain_training_loop_lowers_both_tasks_losses():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(8, 4))
    x = rng.normal(size=(2, 64, 8))
    batch = {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(np.tanh(x @ truth), jnp.float32)}
    params = {"hidden": {"kernel": rng.normal(size=(8, 16)) * 0.3}, "out": {"kernel": rng.normal(size=(16, 4)) * 0.3}}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    loss = lambda p, b: jnp.mean((jnp.tanh(b["x"] @ p["hidden"]["kernel"]) @ p["out"]["kernel"] - b["y"]) ** 2)  # noqa: E731
    tx = gj.gems(2e-2, num_tasks=2, rank=0.5, refresh_every=20)

    def step(params, state):
        losses, grads = gj.task_value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params, task_losses=losses)
        return optax.apply_updates(params, updates), state, losses

    step, state, history = jax.jit(step), tx.init(params), []
    for _ in range(60):
        params, state, losses = step(params, state)
        history.append(losses)
    assert np.all(history[-1] < 0.2 * history[0])


# --- errors name the leaf, the shape, what to do ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 0}, "num_tasks must be at least 1, got 0"),
        ({"num_tasks": 2.0}, "num_tasks is a whole number, got 2.0"),
        ({"rank": 0}, "rank=0"),
        ({"rank": np.int64(0)}, "rank=0: an int must be at least 1"),
        ({"rank": np.float32(1.5)}, "fraction of the smaller side"),
        ({"rank": True}, "rank=True: give an int"),
        ({"rank": "8"}, "rank='8': give an int"),
        ({"rank": 1.5}, "fraction of the smaller side"),
        ({"task_rank": -1}, "task_rank=-1"),
        ({"side": "left"}, "side is 'left'; choose"),
        ({"constraint": "none"}, "constraint is 'none'; choose"),
        ({"decomposition": "qr"}, "decomposition is 'qr'; choose one of auto, svd"),
        ({"signs": "any"}, "signs is 'any'"),
        ({"moments": "drop"}, "moments is 'drop'"),
        ({"refresh_every": 0}, "refresh_every is a number of steps, at least 1"),
        ({"refresh_every": 2.5}, "refresh_every is a number of steps"),
        pytest.param({"refresh_every": lambda count: True, "stagger": True}, "stagger", id="a rule, staggered"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gj.gems(1e-3, **({"num_tasks": 2} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix_dims": lambda path, leaf: None}, "matrix_dims names none of the 2 parameters"),
        ({"matrix_dims": lambda path, leaf: gj.MatrixDims(0, 1)}, "does not fit parameter 'bias' of shape"),
        ({"matrix_dims": [gj.MatrixDims()]}, "matrix_dims has 1 entries for 2 parameters"),
        ({"null_space": make_null_space({"other": 8})[0]}, "constrains none of the 2 parameters"),
        ({"null_space": make_null_space({"w": 9})[0]}, "the null space of 'w' has shape"),
        ({"gate": gj.gates.constant([1, 2, 3])}, "3 weights for num_tasks=2"),
    ],
    ids=range(6),
)
def test_what_does_not_fit_the_parameters_is_refused_in_init(options, message):
    with pytest.raises(ValueError, match=message):
        gj.gems(1e-3, num_tasks=2, rank=2, **options).init(make_params(SHAPES))


def test_numbers_of_numpy_are_those_of_python():
    forms = []
    for whole, half in ((int, float), (np.int64, np.float32)):
        options = {"num_tasks": whole(2), "task_rank": whole(1), "refresh_every": whole(4), "stagger": True}
        forms.append(jax.eval_shape(gj.gems(1e-3, rank=half(0.5), **options).init, make_params(SHAPES)))
    assert forms[0] == forms[1]
    assert forms[0][0].shared_basis["w"].shape[-1] == 3


@pytest.mark.parametrize("leaf", [1.0, 3, True, "relu", jnp.tanh], ids=["float", "int", "bool", "text", "function"])
def test_leaves_that_are_no_arrays_are_refused_by_name(leaf):
    params = make_params(SHAPES) | {"layer": {"x": leaf}}
    with pytest.raises(TypeError, match="parameter 'layer/x' is no array but .*jnp.asarray"):
        gj.gems(1e-3, num_tasks=2, rank=2).init(params)


def test_a_stack_of_no_layers_is_left_as_it_is():
    shapes = {"w": (8, 6), "stack": (0, 8, 6)}
    dims = dict.fromkeys(shapes, gj.MatrixDims())
    tx = gj.gems(1e-2, num_tasks=2, rank=2, matrix_dims=dims)
    _, _, seen = run(tx, make_params(shapes), lambda i: make_grads(i, shapes=shapes), 1)
    assert seen[0]["stack"].shape == (0, 8, 6)
    assert np.max(np.abs(seen[0]["w"])) > 1e-3


def test_a_rule_that_returns_something_else_is_a_type_error():
    with pytest.raises(TypeError, match="matrix_dims gave 'in' for 'bias'"):
        gj.gems(1e-3, num_tasks=2, matrix_dims=lambda path, leaf: "in").init(make_params(SHAPES))


@pytest.mark.slow
def test_calls_that_do_not_fit_are_refused_by_name():
    tx = gj.gems(1e-3, num_tasks=2, rank=2)
    params, grads = make_params(SHAPES), grads_of(0)
    state = jax.eval_shape(tx.init, params)
    with pytest.raises(ValueError, match=r"gradient leaf 'bias' has shape \[6\], expected \[2, 6\]"):
        tx.update(grads | {"bias": grads["bias"][0]}, state, params)
    with pytest.raises(ValueError, match="gradient leaf 'w' has 3 tasks, expected 2"):
        tx.update(grads | {"w": np.zeros((3, 8, 6))}, state, params)
    with pytest.raises(ValueError, match="gradients have 1 leaves, parameters 2"):
        tx.update({"w": grads["w"]}, state, params)
    with pytest.raises(ValueError, match=r"task_losses has shape \[3\], expected \[2\]"):
        tx.update(grads, state, params, task_losses=jnp.ones(3))
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(grads, state)
    with pytest.raises(ValueError, match="shared_grads leaf 'bias'"):
        tx.update(grads, state, params, shared_grads=grads)
    names = {"losses": "task_losses", "task_count": "task_counts", "shared_grad": "shared_grads"}
    for name, meant in names.items():
        with pytest.raises(TypeError, match=f"update got '{name}', which nothing reads: say {meant}"):
            tx.update(grads, state, params, **{name: jnp.ones(2)})
    released = gj.presets.released(1e-3, num_tasks=2, rank=2)
    for one in (gj.accumulate(tx, 2), gj.merge_tasks(), gj.baselines.joint(optax.sgd(1.0)), released):
        with pytest.raises(TypeError, match="update got 'counts', which nothing reads: say task_counts"):
            one.update(grads, jax.eval_shape(one.init, params), params, counts=jnp.ones(2))
    foreign = {"value": 1.0, "grad": grads, "value_fn": None, "loss": 1.0, "valid_losses": 1.0, "task_names": None}
    jax.eval_shape(lambda s, p: tx.update(grads, s, p, **foreign), state, params)
    learned = gj.gems(1e-3, num_tasks=2, rank=2, gate=gj.gates.learned())
    with pytest.raises(ValueError, match="the gate needs task_losses"):
        learned.update(grads, jax.eval_shape(learned.init, params), params)
    masked = gj.gems(1e-3, num_tasks=2, rank=2, weight_decay=0.1, mask={"w": True})
    state = masked.init(params)
    with pytest.raises(ValueError, match="mask has 1 entries for 2 parameters"):
        masked.update(grads, state, params)


def test_importing_the_package_imports_no_model_or_data_library():
    code = (
        "import sys, gems_jax as gj; gj.gems(1e-3, num_tasks=2);"
        "heavy = {'flax', 'transformers', 'torch', 'tensorflow', 'tensorflow_datasets', 'grain', 'orbax'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_imported_that_jax_may_take_away_from_one_version_to_the_next():
    kept = {"multihost_utils"}  # of jax.experimental, the part that both ends of the pinned range have
    package = Path(gj.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax"):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            else:
                continue
            private = {name for name in names if name.startswith(("jax._", "jaxlib", "jax.interpreters"))}
            experimental = {name for name in names if name.startswith("jax.experimental")}
            assert not private, path
            assert experimental <= {f"jax.experimental.{name}" for name in kept}, path
