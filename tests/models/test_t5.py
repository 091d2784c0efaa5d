"""T5 against transformers on torch: logits, losses, gradients, and what a call may and may not depend on."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from t5_rows import SIZES, V, batch_of, inputs_of, mean_loss

from gems_jax.leaf_path import leaf_path
from gems_jax.models import T5, T5Config, position_buckets

CONFIG = T5Config(**SIZES)


@pytest.fixture(scope="module")
def model() -> T5:
    return T5.create(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def with_items() -> T5:
    return T5.create(dataclasses.replace(CONFIG, num_added_tokens=9), jax.random.key(0))


def params_of(model: T5) -> dict[str, jax.Array]:
    state = nnx.state(model, nnx.Param)
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_position_buckets_equal_those_of_transformers(bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(700)[None, :] - torch.arange(700)[:, None]
    for buckets, max_distance in ((32, 128), (8, 12), (64, 500)):
        expected = T5Attention._relative_position_bucket(distance, bidirectional, buckets, max_distance)
        found = position_buckets(700, 700, bidirectional, buckets, max_distance)
        np.testing.assert_array_equal(found, expected.numpy())


def test_what_stands_in_padding_changes_nothing(model: T5) -> None:
    batch = inputs_of(batch_of())
    other = dict(batch)
    for ids, mask in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        other[ids] = np.where(batch[mask] > 0, batch[ids], 7)
    real = batch["decoder_attention_mask"] > 0
    call = jax.jit(lambda batch: model(**batch))
    np.testing.assert_allclose(call(batch)[real], call(other)[real], atol=1e-5)


def test_a_row_of_padding_only_gives_finite_logits_and_gradients(model: T5) -> None:
    batch = batch_of()
    batch["attention_mask"][0] = 0
    graph, params = nnx.split(model, nnx.Param)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: mean_loss(nnx.merge(graph, p), batch)))(params)
    assert np.isfinite(float(loss))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


def test_a_position_does_not_see_later_ones_so_that_short_decodes_agree_with_long_ones(model: T5) -> None:
    batch = inputs_of(batch_of())
    encoded = model.encode(batch["input_ids"], batch["attention_mask"])
    whole = model.decode(batch["decoder_input_ids"], encoded, batch["attention_mask"])
    for steps in (1, 2):
        part = model.decode(batch["decoder_input_ids"][:, :steps], encoded, batch["attention_mask"])
        np.testing.assert_allclose(part, whole[:, :steps], atol=1e-5)


def test_tasks_on_a_leading_axis_give_the_gradients_of_each_task_alone(model: T5) -> None:
    graph, params = nnx.split(model, nnx.Param)
    tasks = [batch_of(), batch_of()]
    tasks[1]["input_ids"] = (tasks[1]["input_ids"] + 5) % V
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *tasks)
    gradient = jax.value_and_grad(lambda p, batch: mean_loss(nnx.merge(graph, p), batch))
    losses, grads = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(params, stacked)
    for task, batch in enumerate(tasks):
        loss, alone = jax.jit(gradient)(params, batch)
        assert float(losses[task]) == pytest.approx(float(loss), rel=1e-5)
        jax.tree.map(lambda a, b, t=task: np.testing.assert_allclose(a[t], b, atol=1e-5), grads, alone)


def test_dropout_is_an_argument_of_the_call(model: T5) -> None:
    dropping = T5.from_params(dataclasses.replace(CONFIG, dropout_rate=0.3), params_of(model))
    batch = inputs_of(batch_of())
    call = jax.jit(lambda key: dropping(**batch, dropout_key=key))
    plain = np.asarray(model(**batch))
    np.testing.assert_array_equal(dropping(**batch), plain)
    first = call(jax.random.key(1))
    np.testing.assert_array_equal(first, call(jax.random.key(1)))
    assert float(jnp.abs(first - call(jax.random.key(2))).max()) > 0.1
    assert float(jnp.abs(first - plain).max()) > 0.1
    np.testing.assert_array_equal(model(**batch, dropout_key=jax.random.key(1)), plain)


def test_bfloat16_computes_close_to_float32_with_float32_logits(model: T5) -> None:
    batch = inputs_of(batch_of())
    half = T5.from_params(dataclasses.replace(CONFIG, dtype="bfloat16"), params_of(model))
    assert half.encode(batch["input_ids"]).dtype == jnp.bfloat16
    logits, expected = half(**batch), model(**batch)
    assert logits.dtype == jnp.float32
    assert 1e-5 < float(jnp.abs(logits - expected).max()) < 0.06 * float(jnp.abs(expected).max())


def test_an_untrained_model_starts_near_the_loss_of_a_uniform_guess() -> None:
    model = T5.create(dataclasses.replace(CONFIG, vocab_size=2000), jax.random.key(1))
    assert float(mean_loss(model, batch_of(rows=40))) == pytest.approx(math.log(2000) + 0.5, abs=0.3)


def test_leaf_paths_and_shapes_are_those_the_rest_relies_on(with_items: T5) -> None:
    shapes = {name: leaf.shape for name, leaf in params_of(with_items).items()}
    expected: dict[str, tuple[int, ...]] = {}
    for name, rows in (("token_embedding", V), ("lm_head", V), ("item_embedding", 9), ("item_head", 9)):
        expected[f"{name}/embedding"] = (rows, 16)
    attentions = {"encoder": ["attention"], "decoder": ["self_attention", "cross_attention"]}
    for stack, layers in (("encoder", 2), ("decoder", 1)):
        expected[f"{stack}/relative_bias/embedding"] = (32, 4)
        expected[f"{stack}/final_norm/scale"] = (16,)
        for part in [*attentions[stack], "mlp"]:
            expected[f"{stack}/block/{part}_norm/scale"] = (layers, 16)
            for kernel in ("q", "k", "v", "o") if part != "mlp" else ():
                expected[f"{stack}/block/{part}/{kernel}/kernel"] = (layers, 16, 16)
        for kernel, shape in (("wi_0", (16, 24)), ("wi_1", (16, 24)), ("wo", (24, 16))):
            expected[f"{stack}/block/mlp/{kernel}/kernel"] = (layers, *shape)
    assert shapes == expected


def test_queries_keys_and_values_of_an_attention_are_products_with_one_and_the_same_array(model: T5) -> None:
    jaxpr = jax.make_jaxpr(lambda ids: model.encode(ids))(batch_of()["input_ids"])
    [scan] = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    [inner] = [e for e in scan.params["jaxpr"].eqns if "jaxpr" in e.params and "remat" in e.primitive.name]
    body = inner.params["jaxpr"]
    arguments = set(body.invars)
    products = [e for e in body.eqns if e.primitive.name == "dot_general" and e.invars[1] in arguments]
    # 4 kernels of the attention, 3 of the feed-forward layer, each multiplied as it stands in the scan.
    assert len(products) == 7
    inputs = [product.invars[0] for product in products]
    assert inputs[0] is inputs[1] is inputs[2]
    assert inputs[4] is inputs[5]
    assert len(set(inputs)) == 4


def test_added_items_are_ids_behind_the_vocabulary_with_rows_of_their_own(with_items: T5) -> None:
    model = with_items
    table = np.concatenate([model.token_embedding.embedding[...], model.item_embedding.embedding[...]])
    ids = np.array([[0, V - 1, V, V + 8]])
    np.testing.assert_array_equal(model.embed(ids), table[ids])
    batch = inputs_of(batch_of())
    batch["input_ids"] = np.where(batch["input_ids"] < 20, batch["input_ids"] + V - 12, batch["input_ids"])
    encoded = model.encode(batch["input_ids"], batch["attention_mask"])
    hidden = model.decode(batch["decoder_input_ids"], encoded, batch["attention_mask"])
    full = np.asarray(model.logits(hidden))
    assert full.shape[-1] == V + 9
    np.testing.assert_allclose(model.logits(hidden, "base"), full[..., :V], atol=1e-6)
    columns = [CONFIG.eos_token_id, *range(V, V + 9)]
    np.testing.assert_allclose(model.logits(hidden, "items"), full[..., columns], atol=1e-6)


def test_each_row_of_both_embeddings_gets_the_gradient_of_its_own_tokens(with_items: T5) -> None:
    model = with_items
    graph, params = nnx.split(model, nnx.Param)
    ids = np.array([[3, V + 2, 3, V + 8]])
    grads = jax.grad(lambda p: nnx.merge(graph, p).embed(ids).sum())(params)
    tokens, items = np.zeros(V), np.zeros(9)
    tokens[3], items[[2, 8]] = 2, 1
    np.testing.assert_array_equal(grads["token_embedding"]["embedding"][...][:, 0], tokens)
    np.testing.assert_array_equal(grads["item_embedding"]["embedding"][...][:, 0], items)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model must be at least 1"),
        ({"num_added_tokens": -1}, "num_added_tokens must not be negative"),
        ({"feed_forward": "gelu"}, "feed_forward must be 'gated-gelu' or 'relu', got 'gelu'"),
        ({"dtype": "float16"}, "dtype must be"),
        ({"dropout_rate": 1.0}, "dropout_rate must be in"),
        ({"relative_buckets": 7}, "relative_buckets must be even"),
        ({"relative_max_distance": 10}, "relative_max_distance must exceed"),
        ({"eos_token_id": 60}, "eos_token_id=60 is outside of the vocabulary of 60"),
    ],
)
def test_a_wrong_config_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_wrong_calls_are_named(model: T5) -> None:
    ids = np.array([[3, 4, 1]])
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(ids)
    hidden = jnp.zeros((1, 16))
    with pytest.raises(ValueError, match="'full', 'base' or 'items', got 'all'"):
        model.logits(hidden, "all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a model with item tokens"):
        model.logits(hidden, "items")


def test_weights_that_do_not_fit_the_config_are_named(model: T5) -> None:
    params = params_of(model)
    without = {name: leaf for name, leaf in params.items() if name != "lm_head/embedding"}
    with pytest.raises(ValueError, match="missing lm_head/embedding, unknown none"):
        T5.from_params(CONFIG, without)
    with pytest.raises(ValueError, match="missing none, unknown extra"):
        T5.from_params(CONFIG, params | {"extra": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"lm_head/embedding has shape \(1,\)"):
        T5.from_params(CONFIG, params | {"lm_head/embedding": jnp.zeros(1)})
