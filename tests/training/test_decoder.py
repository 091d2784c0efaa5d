"""Decoders through the whole path: general text, null space, tuning, evaluation, export; histories by their titles."""

import dataclasses
import json
from html import escape

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import documented_program, gems_jax, metrics, options

import gems_jax as gj
from gems_jax import cli
from gems_jax.config.run import Config
from gems_jax.data.text.general_text import read_lines
from gems_jax.data.text.next_token import next_token_batches
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.evaluation.drift import general_loss
from gems_jax.training.losses import task_loss
from gems_jax.training.trainable import split_model

QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen3 with random weights and a tokenizer of the general text."""
    place = tmp_path_factory.mktemp("decoder")
    tokenizer = train_tokenizer(read_lines("pydoc", "train")[:400], vocab_size=420, num_sentinels=2)
    values = QWEN3 | {"vocab_size": len(tokenizer), "eos_token_id": 1, "pad_token_id": 0}
    gj.models.save(gj.models.from_config(values, jax.random.key(0)), tokenizer, place / "base")
    return place


@pytest.fixture(scope="module")
def tuned(folder, prepared):
    """Options of a run of four steps in ``folder / "run"``."""
    places = {"data__dir": prepared.root / "data", "model__from_text": False, "text__eval_batches": 1}
    prompts = {"rec": "{history_titles} {history} next:", "src": "{query}: {history_titles} found:"}
    places |= {"items__prompts": json.dumps(prompts), "items__max_length": 48}
    argv = options(folder, **places, train__steps=4, train__eval_every=4, train__eval_rows=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        assert gems_jax("train", *argv, "--workdir", folder / "run") == 0
    return folder, argv


def test_a_decoder_is_tuned_inside_its_null_space(tuned):
    folder, _ = tuned
    lines = [line for line in metrics(folder / "run") if "loss/rec" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert 0 < max(line["null_space/leak"] for line in lines) <= 1e-5
    (evaluated,) = [line for line in metrics(folder / "run") if "eval/general/loss" in line]
    assert 0 < evaluated["eval/general/loss"] < 10


def test_a_decoder_is_evaluated(tuned):
    folder, argv = tuned
    asked = ("--evaluate.rows", 8, "--evaluate.continuations", 3)
    assert gems_jax("evaluate", *argv, "--workdir", folder / "run", *asked) == 0
    found = json.loads((folder / "run" / "eval.json").read_text())
    assert {"rec", "src", "general"} <= set(found)
    assert found["general"]["loss"] != found["general"]["base_loss"]

    continued = found["continuations"]
    assert len(continued["texts"]) == 3
    assert 0 <= continued["unchanged"] <= continued["agreement"] <= 1
    same = [one["base"] == one["tuned"] for one in continued["texts"]]
    assert continued["unchanged"] == sum(same) / 3
    page = (folder / "run" / "report.html").read_text()
    assert "General ability" in page
    assert all(escape(one["base"]) in page for one in continued["texts"])


def test_a_decoder_is_exported_and_asked_as_its_folder_says(tuned, tmp_path):
    folder, _ = tuned
    assert gems_jax("export", "--workdir", folder / "run", "--out", tmp_path / "out") == 0
    model, tokenizer = gj.models.load(tmp_path / "out")
    assert isinstance(model, gj.models.Decoder)
    assert len(tokenizer) == model.config.vocab_size + model.config.num_added_tokens

    asked = documented_program(tmp_path / "out")
    theirs, tokenizer, prompts, items = asked["ask"](tmp_path / "out")
    text = asked["prompt"](prompts, items, "src", [items[4]["item_id"], items[7]["item_id"]], "red lamp")
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] != tokenizer.eos_token_id
    index = gj.items.ItemIndex(np.asarray([item["token_ids"] for item in items]))
    found, expected = gj.rank_items(model, {"input_ids": np.asarray([ids])}, index, k=5, beams=20, vocabulary="items")
    scores = asked["scores"](theirs, tokenizer, prompts, items, text).numpy()
    np.testing.assert_allclose(scores[np.asarray(found[0])], expected[0], atol=1e-5)
    assert tokenizer.padding_side == "left"


@pytest.fixture(scope="module")
def model():
    config = gj.models.DecoderConfig(
        vocab_size=20, num_added_tokens=6, d_model=8, d_ff=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return gj.models.Decoder.create(config, jax.random.key(3))


def answers():
    """Two prompts of different lengths, each answered by an item and the end token."""
    ids = np.array([[5, 6, 7, 22, 1, 0], [8, 24, 1, 0, 0, 0]], np.int32)
    labels = np.concatenate([ids[:, 1:], np.zeros((2, 1), np.int32)], axis=1)
    mask = np.array([[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], np.int32)
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int32), "labels": labels, "label_mask": mask}


@pytest.mark.parametrize(("vocabulary", "columns"), [("full", np.arange(26)), ("items", np.r_[1, 20:26])])
def test_a_tasks_loss_is_the_mean_over_the_answers_tokens(model, vocabulary, columns):
    batch = answers()
    graphdef, params, frozen = split_model(model, Config())
    arrays = jax.tree.map(jnp.asarray, batch)
    logits = np.asarray(model(batch["input_ids"]), np.float64)
    expected = []
    for row, column in zip(*np.nonzero(batch["label_mask"]), strict=True):
        chosen = logits[row, column, batch["labels"][row, column]]
        expected.append(np.log(np.exp(logits[row, column, columns]).sum()) - chosen)
    for answer_length in (2, None):
        found = task_loss(graphdef, vocabulary, answer_length)(params, frozen, arrays)
        assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_general_loss_of_a_decoder_is_that_of_the_next_token(model):
    (batch,) = next_token_batches(np.random.default_rng(0).integers(2, 20, 23), 4, 6)
    logits = np.asarray(model(batch["input_ids"]), np.float64)[:, :-1]
    following = batch["input_ids"][:3, 1:]
    for width, name in ((20, "loss"), (26, "loss_full")):
        losses = np.log(np.exp(logits[:3, :, :width]).sum(-1)) - np.take_along_axis(
            logits[:3], following[..., None], -1
        ).squeeze(-1)
        found = general_loss(model, [batch])
        assert found[name] == pytest.approx(losses.mean(), rel=1e-5)
    assert found["tokens"] == following.size


def test_batches_of_the_other_layout_are_refused(model):
    t5 = gj.models.T5.create(
        gj.models.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2),
        jax.random.key(0),
    )
    (batch,) = next_token_batches(np.arange(2, 14), 2, 6)
    with pytest.raises(
        ValueError, match="batch 0: a T5 needs decoder_input_ids; .*another layout than 'encoder_decoder'"
    ):
        general_loss(t5, [batch])


def test_options_that_decoders_do_not_have_are_refused(tuned, tmp_path, capsys):
    _, argv = tuned
    run = tmp_path / "run"
    assert gems_jax("train", *argv, "--train.dropout", 0.1, "--workdir", run) == cli.EXIT_BAD_INPUT
    assert "a Decoder has no dropout" in capsys.readouterr().err
    assert not run.exists()


def test_a_model_without_an_end_token_is_refused(model):
    from gems_jax.training.build import token_roles

    graph, state = nnx.split(model)
    without = nnx.merge(graph, state)
    without.config = dataclasses.replace(model.config, eos_token_id=None)
    with pytest.raises(ValueError, match="no end token"):
        token_roles(without)
