"""T5, T5 1.1, mT5 and UMT5 against transformers on torch: values, gradients, generation with and without a cache."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file
from t5_rows import SIZES, V, batch_of, inputs_of, mean_loss, tokenizer_of

from gems_jax.models import T5, T5Config, greedy, load, save
from gems_jax.models.params import params_of

KINDS = {
    "t5": {"feed_forward_proj": "relu"},
    "t5 1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {},
    "umt5": {},
    "umt5, tied, relu": {"feed_forward_proj": "relu"},
}
CLASSES = {
    "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
    "mt5": (transformers.MT5Config, transformers.MT5ForConditionalGeneration),
    "umt5": (transformers.UMT5Config, transformers.UMT5ForConditionalGeneration),
}


@dataclasses.dataclass
class Pair:
    """A model of transformers, ours of its folder, and the folder."""

    reference: Any
    model: T5
    folder: Path


@pytest.fixture(scope="module", params=KINDS)
def pair(request: Any, tmp_path_factory: Any) -> Pair:
    kind = request.param.split(",")[0].split()[0]
    config_class, model_class = CLASSES[kind]
    sizes = SIZES | {"num_decoder_layers": 2}
    config = config_class(
        **sizes,
        **KINDS[request.param],
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        decoder_start_token_id=0,
    )
    reference = model_class(config).eval()
    if "tied" not in request.param and request.param != "t5":
        reference.lm_head.weight = torch.nn.Parameter(torch.empty(V, 16))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
        if kind == "umt5":
            # Logits that are always scaled down should differ enough for greedy decoding to have a clear choice.
            reference.lm_head.weight *= 4
    folder = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(folder)
    tokenizer_of(V).save_pretrained(folder)
    return Pair(reference, load(folder)[0], folder)


def tensors_of(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in batch.items()}


def test_logits_loss_and_every_gradient_equal_those_of_transformers(pair: Pair, tmp_path: Path) -> None:
    batch = batch_of()
    labels = np.where(batch["decoder_attention_mask"] > 0, batch["labels"], -100)
    pair.reference.zero_grad()
    expected = pair.reference(**tensors_of(inputs_of(batch)), labels=torch.tensor(labels))
    expected.loss.backward()

    graph, params = nnx.split(pair.model, nnx.Param)

    def loss_and_logits(params: Any) -> Any:
        model = nnx.merge(graph, params)
        return mean_loss(model, batch), model(**inputs_of(batch))

    (loss, logits), grads = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))(params)
    real = batch["decoder_attention_mask"] > 0
    theirs = expected.logits.detach().numpy()[real]
    np.testing.assert_allclose(np.asarray(logits)[real], theirs, atol=1e-4 * np.abs(theirs).max())
    assert float(loss) == pytest.approx(expected.loss.item(), rel=1e-5)
    # Written like weights, the gradients have the names and layouts of the reference.
    save(nnx.merge(graph, grads), tokenizer_of(V), tmp_path / "grads")
    ours = load_file(tmp_path / "grads" / "model.safetensors")
    gradients = {name: value.grad.numpy() for name, value in pair.reference.named_parameters()}
    assert set(ours) == set(gradients)
    for name, gradient in gradients.items():
        assert np.abs(gradient).max() > 0, name
        np.testing.assert_allclose(ours[name], gradient, atol=1e-3 * np.abs(gradient).max(), err_msg=name)


def test_the_tensors_come_back_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    save(pair.model, tokenizer_of(V), tmp_path / "ours")
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (pair.folder, tmp_path / "ours"))
    assert set(theirs) == set(ours)
    assert all(theirs[name].tobytes() == ours[name].tobytes() for name in theirs)
    again = type(pair.reference).from_pretrained(tmp_path / "ours").eval()
    batch = tensors_of(inputs_of(batch_of()))
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, pair.reference(**batch).logits)


def test_greedy_decoding_equals_that_of_transformers_with_and_without_its_cache(pair: Pair) -> None:
    batch = {name: value for name, value in batch_of(rows=6).items() if name in ("input_ids", "attention_mask")}
    ours = np.asarray(greedy(pair.model, batch, max_new_tokens=9))
    for use_cache in (True, False):
        with torch.no_grad():
            theirs = pair.reference.generate(
                **tensors_of(batch), do_sample=False, num_beams=1, max_new_tokens=9, use_cache=use_cache
            )
        expected = np.zeros_like(ours)
        expected[:, : theirs.shape[1] - 1] = theirs[:, 1:]
        np.testing.assert_array_equal(ours, expected)
    assert len({tuple(row) for row in ours.tolist()}) > 1


@pytest.mark.parametrize("pair", ["t5 1.1", "umt5"], indirect=True)
def test_steps_with_a_cache_give_the_logits_of_decoding_all_positions_at_once(pair: Pair) -> None:
    batch = batch_of()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = batch["decoder_input_ids"]
    whole = np.asarray(jax.jit(pair.model)(**inputs, decoder_input_ids=targets))
    logits, cache = jax.jit(pair.model.start, static_argnums=1)(inputs, targets.shape[1])
    step = jax.jit(pair.model.step)
    # A search goes on from some rows, some of them twice.
    rows = np.array([4, 0, 0, 2, 1])
    np.testing.assert_allclose(logits, whole[:, 0], atol=1e-4)
    cache, targets, whole = cache.take(jnp.asarray(rows)), targets[rows], whole[rows]
    for position in range(1, targets.shape[1]):
        logits, cache = step(targets[:, position], cache)
        np.testing.assert_allclose(logits, whole[:, position], atol=1e-4)
    assert int(cache.length) == targets.shape[1]
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        pair.model.start(inputs, 0)


@pytest.mark.parametrize("pair", ["t5 1.1", "umt5"], indirect=True)
def test_bfloat16_weights_load_and_compute_close_to_float32(pair: Pair) -> None:
    half = load(pair.folder, dtype="bfloat16")[0]
    assert {leaf.dtype for leaf in params_of(half).values()} == {jnp.dtype("bfloat16")}
    batch = inputs_of(batch_of())
    logits, expected = jax.jit(half)(**batch), jax.jit(pair.model)(**batch)
    assert logits.dtype == jnp.float32
    assert 1e-5 < float(jnp.abs(logits - expected).mean()) < 0.1 * float(jnp.abs(expected).mean())


def equations(jaxpr: Any) -> int:
    """Equations of a jaxpr and of all inside of it."""
    inner = [
        part
        for eqn in jaxpr.eqns
        for value in eqn.params.values()
        for part in (value if isinstance(value, (tuple, list)) else [value])
        if hasattr(part, "eqns") or hasattr(part, "jaxpr")
    ]
    return len(jaxpr.eqns) + sum(equations(getattr(part, "jaxpr", part)) for part in inner)


@pytest.mark.parametrize(("model_type", "remat"), [("t5", "none"), ("t5", "dots"), ("umt5", "full")])
def test_the_program_of_a_gradient_does_not_grow_with_the_number_of_layers(model_type: str, remat: str) -> None:
    batch = batch_of()
    counts = []
    for layers in (4, 24):
        sizes = SIZES | {"num_layers": layers, "num_decoder_layers": layers}
        config = T5Config(**sizes, model_type=model_type, remat=remat)
        graph, params = nnx.split(nnx.eval_shape(lambda config=config: T5.create(config, jax.random.key(0))), nnx.Param)
        gradient = jax.grad(lambda p, graph=graph: mean_loss(nnx.merge(graph, p), batch))
        counts.append(equations(jax.make_jaxpr(gradient)(params).jaxpr))
    assert counts[0] > 200
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"remat": "all"}, "T5Config.remat must be one of 'none', 'full', 'dots', got 'all'"),
        ({"remat": True}, "T5Config.remat must be one of"),
        ({"model_type": "byt5"}, "T5Config.model_type must be one of .* got 'byt5'"),
        ({"model_type": "mt5", "scale_decoder_outputs": True}, "scale_decoder_outputs must be False or None for 'mt5'"),
    ],
)
def test_a_wrong_option_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        T5Config(**SIZES, **change)
