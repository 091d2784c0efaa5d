"""Loss on general text, with and without the added item tokens; what tuning has changed in every layer's output,
against transformers' modules on torch."""

import functools
import json
from typing import Any

import jax
import numpy as np
import pytest
import torch
from decoder_pairs import ours, torch_decoder, torch_t5
from flax import nnx
from scipy.special import log_softmax

from gems_jax.evaluation.drift import general_drift, general_loss, read_shift
from gems_jax.evaluation.output_shift import OutputShift
from gems_jax.models import T5, T5Config
from gems_jax.models.params import params_of
from gems_jax.models.registry import FAMILIES

V, N = 20, 7
SIZES: dict[str, Any] = {
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
}


@pytest.fixture(scope="module")
def grown() -> T5:
    return T5.create(T5Config(vocab_size=V, num_added_tokens=N, **SIZES), jax.random.key(1))


def batch(seed: int, rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, V, (rows, 5)).astype(np.int32)
    return {
        "input_ids": rng.integers(2, V, (rows, 8)).astype(np.int32),
        "attention_mask": (np.arange(8) < rng.integers(3, 9, (rows, 1))).astype(np.int32),
        "decoder_input_ids": np.concatenate([np.zeros((rows, 1), np.int32), labels[:, :-1]], axis=1),
        "labels": labels,
        "label_mask": (np.arange(5) < rng.integers(1, 6, (rows, 1))).astype(np.int32),
    }


@functools.partial(jax.jit, static_argnums=0)
def apply(graph: Any, state: Any, *inputs: Any) -> jax.Array:
    return nnx.merge(graph, state)(*inputs)


def logits_of(model: T5, one: dict[str, np.ndarray]) -> np.ndarray:
    inputs = one["input_ids"], one["attention_mask"], one["decoder_input_ids"]
    return np.asarray(apply(*nnx.split(model), *inputs), np.float64)


def oracle(model: T5, batches: list[dict[str, np.ndarray]], width: int) -> float:
    total, count = 0.0, 0
    for one in batches:
        values = logits_of(model, one)[..., :width]
        losses = np.log(np.exp(values).sum(-1)) - np.take_along_axis(values, one["labels"][..., None], -1)[..., 0]
        total += losses[one["label_mask"] > 0].sum()
        count += one["label_mask"].sum()
    return total / count


def test_losses_equal_a_token_weighted_mean_over_each_vocabulary(grown: T5) -> None:
    batches = [batch(0), batch(1), batch(2, rows=2)]
    result = general_loss(grown, batches)
    assert result["loss"] == pytest.approx(oracle(grown, batches, V), rel=1e-5)
    assert result["loss_full"] == pytest.approx(oracle(grown, batches, V + N), rel=1e-5)
    assert result["loss_full"] > result["loss"]
    assert result["perplexity"] == pytest.approx(np.exp(result["loss"]))
    assert result["tokens"] == sum(one["label_mask"].sum() for one in batches)


def test_model_without_added_tokens_has_one_loss() -> None:
    model = T5.create(T5Config(vocab_size=V, **SIZES), jax.random.key(2))
    result = general_loss(model, [batch(0)])
    assert result["loss"] == result["loss_full"]


def test_what_stands_at_masked_positions_does_not_count(grown: T5) -> None:
    clean, dirty = batch(3), batch(3)
    dirty["labels"] = np.where(dirty["label_mask"] > 0, dirty["labels"], 9)
    assert general_loss(grown, [clean])["loss"] == general_loss(grown, [dirty])["loss"]


def test_batches_may_come_from_a_generator_with_progress_shown(grown: T5, capsys: pytest.CaptureFixture[str]) -> None:
    shown = general_loss(grown, (batch(seed) for seed in range(2)), progress=True)
    assert shown == general_loss(grown, [batch(0), batch(1)])
    assert "general text" in capsys.readouterr().err


def test_text_without_a_target_token_is_an_error(grown: T5) -> None:
    empty = batch(0) | {"label_mask": np.zeros((3, 5), np.int32)}
    for batches in ([], [empty]):
        with pytest.raises(ValueError, match="no target token"):
            general_loss(grown, batches)


def test_label_outside_the_base_vocabulary_is_named(grown: T5) -> None:
    wrong = batch(0)
    wrong["labels"][0, 0] = V + 2
    with pytest.raises(ValueError, match=f"batch 1: labels reach from .* to {V + 2}.*tokens 0 to {V - 1}"):
        general_loss(grown, [batch(1), wrong])


def tuned_from(model: Any, scale: float = 0.1) -> Any:
    """The model with noise on every leaf."""
    rng = np.random.default_rng(9)
    params = {path: np.asarray(leaf) for path, leaf in params_of(model).items()}
    params = {path: leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in params.items()}
    return type(model).from_params(model.config, params)


def test_drift_is_the_losses_of_both_models_and_what_they_choose(grown: T5) -> None:
    # Large rows make a model that is sure of some tokens.
    rows = {path: np.asarray(leaf) * (3 if "head" in path else 1) for path, leaf in params_of(grown).items()}
    base_model = T5.from_params(grown.config, rows)
    tuned = tuned_from(base_model)
    pair = base_model, tuned
    batches = [batch(4), batch(5)]
    found = general_drift(base_model, tuned, batches)
    before, after = general_loss(base_model, batches), general_loss(tuned, batches)
    for name, value in after.items():
        assert found[name] == pytest.approx(value, rel=1e-5)
    for name in ("loss", "perplexity", "loss_full", "perplexity_full"):
        assert found[f"base_{name}"] == pytest.approx(before[name], rel=1e-5)
    assert found["forgetting"] == pytest.approx(after["loss_full"] - before["loss"], abs=1e-5)
    assert found["forgetting_base_vocabulary"] == pytest.approx(after["loss"] - before["loss"], abs=1e-5)
    assert json.loads(json.dumps(found)) == found
    logits = [[logits_of(model, one).reshape(-1, V + N)[counted_in(one)] for one in batches] for model in pair]
    base, changed = np.concatenate(logits[0])[:, :V], np.concatenate(logits[1])
    labels = np.concatenate([one["labels"].reshape(-1)[counted_in(one)] for one in batches])
    choice, choice_full = base.argmax(-1), changed.argmax(-1)
    log_base, log_changed = log_softmax(base, axis=-1), log_softmax(changed, axis=-1)
    sure = log_base.max(-1) >= np.log(0.5)
    expected = {
        "top1_agreement": (choice == changed[:, :V].argmax(-1)).mean(),
        "top1_agreement_full": (choice == choice_full).mean(),
        "accuracy": (choice_full == labels).mean(),
        "base_accuracy": (choice == labels).mean(),
        "kl": (np.exp(log_base) * (log_base - log_changed[:, :V])).sum(-1).mean(),
        "sure_agreement": (choice == choice_full)[sure].mean(),
        "sure_tokens": sure.sum(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert 0 < expected["top1_agreement_full"] < expected["top1_agreement"] < 1
    assert 0 < sure.sum() < len(sure)
    for name in ("forgetting", "forgetting_base_vocabulary", "kl", "top1_agreement_full"):
        low, high = found[f"{name}_ci"]
        assert low < found[name] < high


def counted_in(one: dict[str, np.ndarray]) -> np.ndarray:
    return one["label_mask"].reshape(-1) > 0


def test_an_input_without_target_tokens_changes_neither_numbers_nor_intervals(grown: T5) -> None:
    one, empty = batch(4, rows=4), batch(5, rows=4)
    empty["label_mask"][:] = 0
    tuned = tuned_from(grown)
    alone, beside = (general_drift(grown, tuned, batches) for batches in ([one], [one, empty]))
    del alone["shift"], beside["shift"]  # which every input counts in
    assert alone == beside


def test_a_model_that_stayed_as_it_was_and_got_items_has_forgotten_what_the_items_take(grown: T5) -> None:
    plain = {path: leaf for path, leaf in params_of(grown).items() if not path.startswith("item")}
    base = T5.from_params(T5Config(vocab_size=V, **SIZES), plain)
    found = general_drift(base, grown, [batch(6)])
    assert found["forgetting_base_vocabulary"] == pytest.approx(0.0, abs=1e-5)
    assert found["forgetting"] > 0.01
    assert found["top1_agreement"] == 1.0
    assert found["top1_agreement_full"] < 1.0
    assert not np.concatenate([np.ravel(shift) for shift in found["shift"].values()]).any()


def text_for(family: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {
        "input_ids": rng.integers(3, 61, (4, 9)).astype(np.int32),
        "attention_mask": (np.arange(9) < rng.integers(3, 10, (4, 1))).astype(np.int32),
    }
    width = 5 if family == "t5" else 9
    found["labels"] = rng.integers(3, 61, (4, width)).astype(np.int32)
    if family != "t5":
        return found | {"label_mask": found["attention_mask"]}
    return found | {
        "decoder_input_ids": rng.integers(3, 61, (4, width)).astype(np.int32),
        "label_mask": (np.arange(width) < rng.integers(1, 6, (4, 1))).astype(np.int32),
    }


def direct_shift(other: Any, base: Any, tuned: Any, one: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``|x dW| / |x W|`` in float64, with what each linear layer of transformers' model has been given."""
    seen: dict[str, np.ndarray] = {}
    for name, module in other.named_modules():
        if isinstance(module, torch.nn.Linear):
            keep = lambda _, given, name=f"{name}.weight": seen.update({name: given[0].double().numpy()})  # noqa: E731
            module.register_forward_pre_hook(keep)
    entries = ("input_ids", "attention_mask", "decoder_input_ids")
    with torch.no_grad():
        other(**{name: torch.tensor(one[name]).long() for name in entries if name in one})
    found = {}
    before, after = params_of(base), params_of(tuned)
    for path, weight in FAMILIES[base.config.model_type].weights(base.config).items():
        if not path.endswith("kernel"):
            continue
        ratios = []
        for layer, name in enumerate(weight.names()):
            kernel, new = np.asarray(before[path][layer], np.float64), np.asarray(after[path][layer], np.float64)
            mask = one["attention_mask"] if seen[name].shape[1] == 9 else one["label_mask"]
            x = seen[name][mask > 0]
            ratios.append(np.linalg.norm(x @ (new - kernel)) / np.linalg.norm(x @ kernel))
        found[path] = np.array(ratios)
    return found


@pytest.mark.parametrize("family", ["t5", "qwen3 window"])
def test_shift_of_every_layer_is_that_of_the_inputs_seen_in_pytorch(family: str) -> None:
    other, base = torch_t5() if family == "t5" else (model := torch_decoder(family), ours(model))
    tuned, one = tuned_from(base, scale=0.02), text_for(family)
    found = general_drift(base, tuned, [{name: value[:2] for name, value in one.items()},
                                        {name: value[2:] for name, value in one.items()}])  # fmt: skip
    expected = direct_shift(other, base, tuned, one)
    assert set(found["shift"]) == set(expected)
    for path, ratios in expected.items():
        np.testing.assert_allclose(found["shift"][path], ratios, rtol=2e-4, err_msg=path)
    assert found["loss"] == pytest.approx(general_loss(tuned, [one])["loss"], rel=1e-5)


def test_shift_is_the_same_where_memory_allows_only_a_layer_at_a_time(grown: T5) -> None:
    tuned, batches = tuned_from(grown), [batch(7), batch(8)]
    whole = general_drift(grown, tuned, batches)
    shift = OutputShift(grown, {k: v for k, v in batches[0].items() if k != "labels"}, memory_limit=4 * 16**2)
    assert shift.passes > 1
    in_parts = general_drift(grown, tuned, batches, memory_limit=4 * 16**2)
    assert in_parts["loss"] == whole["loss"]
    assert set(in_parts["shift"]) == set(whole["shift"])
    for path, ratios in whole["shift"].items():
        np.testing.assert_allclose(in_parts["shift"][path], ratios, rtol=1e-5)


def test_a_text_that_is_read_once_serves_many_tuned_models(grown: T5) -> None:
    batches = [batch(4), batch(5)]
    shift = read_shift(grown, batches)
    for scale in (0.1, 0.3):
        tuned = tuned_from(grown, scale)
        assert general_drift(grown, tuned, batches, shift=shift) == general_drift(grown, tuned, batches)


def test_models_that_cannot_be_compared_are_named(grown: T5) -> None:
    wide = T5.create(T5Config(vocab_size=V, **SIZES | {"d_ff": 24}), jax.random.key(3))
    with pytest.raises(ValueError, match=r"kernel of \[1, 8, 24\] at .*mlp/wi_0/kernel.*\[1, 8, 16\]"):
        general_drift(grown, wide, [batch(0)])
    other = T5.create(T5Config(vocab_size=V + 1, **SIZES), jax.random.key(3))
    with pytest.raises(ValueError, match="one vocabulary"):
        general_drift(grown, other, [batch(0)])
    with pytest.raises(ValueError, match="no batches"):
        general_drift(grown, grown, [])
    with pytest.raises(ValueError, match="no target token"):
        general_drift(grown, grown, [batch(0) | {"label_mask": np.zeros((3, 5), np.int32)}])
