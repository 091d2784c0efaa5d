"""Our decoders compute what transformers' do."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from decoder_pairs import VARIANTS, leaves, ours, ragged_batch, random_decoder, torch_decoder
from flax import nnx

from gems_jax.leaf_path import leaf_path
from gems_jax.models.decoder.model import Decoder, DecoderConfig
from gems_jax.models.params import params_of
from gems_jax.models.remat import REMAT

_CONFIG = DecoderConfig(
    vocab_size=20, d_model=8, d_ff=12, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, eos_token_id=1
)


@pytest.fixture(scope="module")
def small():
    return random_decoder(_CONFIG)


@pytest.fixture(scope="module")
def with_items():
    return random_decoder(dataclasses.replace(_CONFIG, num_added_tokens=3))


def _relative_error(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def _loss_and_grads(model, ids, mask):
    """Mean loss of the next tokens, where both they and what they follow are no padding; and the logits."""
    graph, params = nnx.split(model)

    @jax.jit
    def run(params, ids, mask):
        def loss(params):
            model = nnx.merge(graph, params)
            hidden = model.hidden(ids, mask)
            losses = model.token_losses(hidden[:, :-1], ids[:, 1:], chunk_size=7)
            counts = mask[:, 1:] * mask[:, :-1]
            return (losses * counts).sum() / counts.sum(), model.logits(hidden)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), grads = run(params, jnp.asarray(ids), jnp.asarray(mask))
    return loss, logits, {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads)}


def _torch_loss_and_grads(model, ids, mask):
    logits = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
    counts = torch.tensor(mask[:, 1:] * mask[:, :-1])
    labels = torch.where(counts > 0, torch.tensor(ids[:, 1:]), -100)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    loss.backward()
    return loss.item(), logits.detach().numpy(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("name", "remat"), list(zip(VARIANTS, itertools.cycle(REMAT), strict=False)))
def test_logits_loss_and_all_gradients_are_those_of_transformers(name, remat):
    reference = torch_decoder(name)
    model = ours(reference, remat=remat)
    ids, mask = ragged_batch()
    loss, logits, grads = _loss_and_grads(model, ids, mask)
    loss_t, logits_t, grads_t = _torch_loss_and_grads(reference, ids, mask)
    assert np.abs(logits_t).max() > 0.5
    np.testing.assert_allclose(logits[mask > 0], logits_t[mask > 0], rtol=0, atol=1e-4)
    assert abs(loss - loss_t) < 1e-4 * loss_t
    expected = leaves(model.config, grads_t)
    assert set(grads) == set(expected)
    errors = {leaf: _relative_error(grads[leaf], expected[leaf]) for leaf in grads}
    assert max(errors.values()) < 1e-3, errors


def test_without_mask_and_with_a_mask_of_ones_the_logits_are_the_same():
    model = ours(torch_decoder("qwen3 window"))
    ids = ragged_batch()[0]
    np.testing.assert_allclose(jax.jit(model)(ids), jax.jit(model)(ids, np.ones_like(ids)), atol=1e-5)


def test_padding_on_the_right_needs_no_mask():
    model = ours(torch_decoder("mistral"))
    ids, mask = ragged_batch()
    np.testing.assert_allclose(jax.jit(model)(ids)[1, :7], jax.jit(model)(ids, mask)[1, :7], atol=1e-5)


def test_a_mask_of_another_shape_is_named(small):
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 4\), input_ids \(1, 3\)"):
        small(jnp.ones((1, 3), int), jnp.ones((1, 4), int))


def _equations(jaxpr):
    inner = [value for eqn in jaxpr.eqns for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns"))]
    return len(jaxpr.eqns) + sum(_equations(getattr(v, "jaxpr", v)) for v in inner if hasattr(v, "eqns"))


@pytest.mark.parametrize("windows", [None, "alternating"])
def test_the_program_does_not_grow_with_the_layers(windows):
    def count(layers):
        sliding = {"model_type": "qwen2", "sliding_window": 2, "sliding_layers": (True, False) * (layers // 2)}
        config = dataclasses.replace(_CONFIG, num_layers=layers, **(sliding if windows else {}))
        graph, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, jax.random.key(0))))
        loss = lambda params, ids: nnx.merge(graph, params)(ids, ids > 0).sum()  # noqa: E731
        ids = jax.ShapeDtypeStruct((2, 6), jnp.int32)
        return _equations(jax.make_jaxpr(jax.grad(loss))(params, ids).jaxpr)

    assert count(4) == count(24) > 100


def _lowered_for_cuda(monkeypatch, mask, **options):
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    config = dataclasses.replace(_CONFIG, head_dim=8, dtype="bfloat16", attention="cudnn", **options)
    graph, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, jax.random.key(0))))
    loss = jax.jit(jax.grad(lambda params, ids, mask: nnx.merge(graph, params)(ids, mask).sum()))
    ids = jnp.ones((2, 16), int)
    return loss.trace(params, ids, ids if mask else None).lower(lowering_platforms=("cuda",)).as_text()


def test_attention_compiles_to_flash_kernels_on_cuda(monkeypatch):
    plain = _lowered_for_cuda(monkeypatch, mask=False, model_type="mistral", sliding_window=4)
    assert "__cudnn$fmhaSoftmaxBackward" in plain
    assert "sliding_window_length\\22: 4" in plain
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in _lowered_for_cuda(monkeypatch, mask=True)


def test_flash_kernels_are_chosen_only_where_they_serve(monkeypatch):
    from gems_jax.models.decoder import attention as decoder_attention

    class Device:
        platform = "gpu"
        compute_capability = "9.0"
        client = type("Client", (), {"platform_version": "cuda 13"})

    bfloat16 = jnp.dtype("bfloat16")
    assert not decoder_attention.flash_serves(bfloat16, 64, True)  # a CPU
    monkeypatch.setattr(decoder_attention.jax, "devices", lambda: [Device])
    assert decoder_attention.flash_serves(bfloat16, 64, True)
    assert not decoder_attention.flash_serves(jnp.dtype("float32"), 64, True)
    assert not decoder_attention.flash_serves(bfloat16, 68, True)
    assert not decoder_attention.flash_serves(bfloat16, 256, True)
    assert not decoder_attention.flash_serves(bfloat16, 64, False)
    Device.compute_capability = "7.5"
    assert not decoder_attention.flash_serves(bfloat16, 64, True)


def test_bfloat16_stays_near_float32():
    reference = torch_decoder("qwen3 tied")
    ids, mask = ragged_batch()
    expected = np.asarray(ours(reference)(ids, mask))
    half = ours(reference, dtype="bfloat16", param_dtype="bfloat16")
    assert half.block.attention.q.kernel[...].dtype == jnp.bfloat16
    found = np.asarray(half(ids, mask))
    assert found.dtype == np.float32
    assert _relative_error(found[mask > 0], expected[mask > 0]) < 0.1


def test_kernels_with_the_same_input_are_multiplied_with_the_same_array(small):
    plain = Decoder.from_params(dataclasses.replace(_CONFIG, remat="none"), params_of(small))
    jaxpr = jax.make_jaxpr(lambda ids: plain(ids))(jnp.ones((2, 3), int)).jaxpr
    body = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan").params["jaxpr"].jaxpr
    products = [eqn for eqn in body.eqns if eqn.primitive.name == "dot_general"]
    inputs = [eqn.invars[0] for eqn in products if eqn.invars[1].aval.ndim == 2]
    assert len(inputs) == 7
    assert len(set(inputs)) == 4


def test_items_stand_behind_the_vocabulary_in_tables_of_their_own(with_items):
    model = with_items
    base_only = Decoder.from_params(
        _CONFIG, {name: leaf for name, leaf in params_of(model).items() if not name.startswith("item")}
    )
    hidden = model.hidden(jnp.array([[4, 5, 19]]))
    np.testing.assert_array_equal(hidden, base_only.hidden(jnp.array([[4, 5, 19]])))
    full = model.logits(hidden)
    assert full.shape == (1, 3, 23)
    np.testing.assert_allclose(model.logits(hidden, "base"), full[..., :20], atol=1e-6)
    np.testing.assert_allclose(model.logits(hidden, "items"), full[..., [1, 20, 21, 22]], atol=1e-6)
    np.testing.assert_array_equal(model.embed(jnp.array([21])), model.item_embedding.embedding[...][1:2])
    losses = model.token_losses(hidden, jnp.array([[0, 3, 1]]), "items", chunk_size=2)
    expected = -jax.nn.log_softmax(full[..., [1, 20, 21, 22]])[0, jnp.arange(3), jnp.array([0, 3, 1])]
    np.testing.assert_allclose(losses[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="needs a model with item tokens"):
        base_only.logits(hidden, "items")
    with pytest.raises(ValueError, match="'full', 'base' or 'items'"):
        base_only.logits(hidden, "all")


def test_items_of_a_model_without_end_token_are_named(with_items):
    endless = Decoder.from_params(dataclasses.replace(with_items.config, eos_token_id=None), params_of(with_items))
    with pytest.raises(ValueError, match="eos_token_id is None"):
        endless.logits(jnp.ones((1, 8)), "items")


def test_random_weights_have_the_deviation_that_the_config_says():
    config = dataclasses.replace(_CONFIG, initializer_range=0.3)
    params = {leaf_path(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(
        nnx.state(Decoder.create(config, jax.random.key(0)), nnx.Param))}  # fmt: skip
    for path in ("token_embedding/embedding", "block/attention/q/kernel", "block/mlp/down/kernel"):
        assert np.std(params[path]) == pytest.approx(0.3, rel=0.2), path
    assert all((x == 0).all() for path, x in params.items() if path.endswith("bias"))


def test_parameters_that_do_not_fit_are_named(small):
    params = params_of(small)
    with pytest.raises(ValueError, match="missing final_norm/scale, unknown none"):
        Decoder.from_params(_CONFIG, {name: leaf for name, leaf in params.items() if name != "final_norm/scale"})
    with pytest.raises(ValueError, match=r"final_norm/scale has shape \(3,\), this DecoderConfig needs \(8,\)"):
        Decoder.from_params(_CONFIG, params | {"final_norm/scale": jnp.ones(3)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads=2 must be a multiple of num_kv_heads=3"),
        ({"head_dim": 5}, "head_dim must be even"),
        ({"model_type": "gpt2"}, "model_type must be one of"),
        ({"remat": "some"}, "DecoderConfig.remat must be one of"),
        ({"attention": "flash"}, "attention must be one of"),
        ({"sliding_window": 4}, "sliding_window is not for model type 'llama'"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be at least 1"),
        ({"model_type": "qwen2", "sliding_window": 4, "sliding_layers": (True,)}, "1 entries for 2 layers"),
        ({"sliding_layers": (True, True)}, "needs a sliding_window"),
        ({"model_type": "qwen2", "attention_bias": True}, "attention_bias is for model types"),
        ({"eos_token_id": 20}, "eos_token_id=20 is outside of the vocabulary of 20"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"num_added_tokens": -1}, "num_added_tokens must not be negative"),
    ],
)
def test_a_config_that_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_CONFIG, **options)
