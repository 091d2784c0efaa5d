"""General text as one more task, by replay or distillation: its loss, its place in an update, and what it keeps."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from few_kernels import few_kernels
from same_run import assert_same_run
from tiny import fails, gems_jax, metrics, options

import gems_jax as gj
from gems_jax.config.checks import check
from gems_jax.config.run import Config
from gems_jax.config.train import MeshConfig, TrainConfig
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.batching.with_text import PREFIX
from gems_jax.models.losses import chunked_token_divergences, token_divergences
from gems_jax.report.records import read_records
from gems_jax.study.methods import configured
from gems_jax.training.losses import task_loss
from gems_jax.training.optimiser.guard import refuse_not_finite
from gems_jax.training.step import Control, make_step
from gems_jax.training.text_task import text_loss
from gems_jax.training.trainable import join_model, split_model


def softmax64(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def divergence64(logits, base_logits):
    """KL of the base's distribution over its own tokens from the other's over all tokens."""
    p, q = softmax64(base_logits), softmax64(logits)[..., : base_logits.shape[-1]]
    return (p * (np.log(p) - np.log(q))).sum(-1)


@pytest.mark.parametrize("chunk", [None, 4])
def test_divergence_and_its_gradient_are_those_of_float64(chunk):
    rng = np.random.default_rng(0)
    hidden, known, table, items = (rng.normal(size=shape) for shape in ((2, 5, 3), (2, 5, 3), (7, 3), (4, 3)))
    base_table = table + 0.1 * rng.normal(size=table.shape)

    def loss(x):
        parts = lambda h: [h @ table.astype(np.float32).T, h @ items.astype(np.float32).T]  # noqa: E731
        base = lambda h: h @ base_table.astype(np.float32).T  # noqa: E731
        return chunked_token_divergences(x, parts, jnp.asarray(known, jnp.float32), base, chunk)

    whole = np.concatenate([table, items])
    wanted = divergence64(hidden @ whole.T, known @ base_table.T)
    np.testing.assert_allclose(loss(jnp.asarray(hidden, jnp.float32)), wanted, rtol=1e-5)
    # d KL / d logits = q - p, p with nothing on the items.
    p = np.concatenate([softmax64(known @ base_table.T), np.zeros((2, 5, 4))], axis=-1)
    slope = (softmax64(hidden @ whole.T) - p) @ whole
    found = jax.grad(lambda x: loss(x).sum())(jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


def test_a_token_that_the_base_model_rules_out_counts_nothing():
    base = jnp.array([0.0, -jnp.inf, 1.0])
    value, slope = jax.value_and_grad(lambda x: token_divergences([x], base))(jnp.array([0.0, 2.0, 1.0]))
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


SHAPE = {"vocab_size": 60, "num_added_tokens": 6, "d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2}


def models(family):
    """A model and one whose weights are others."""
    if family == "t5":
        made = gj.models.T5, gj.models.T5Config(**SHAPE, d_kv=4, num_decoder_layers=1)
    else:
        kind = {"num_kv_heads": 1, "head_dim": 4, "eos_token_id": 1, "pad_token_id": 0}
        made = gj.models.Decoder, gj.models.DecoderConfig(**SHAPE, **kind)
    return [made[0].create(made[1], jax.random.key(key)) for key in (3, 4)]


class FewTokens:
    """As much of a tokenizer as a stream of text asks for."""

    bos_token_id = None

    def __call__(self, text):
        return {"input_ids": [7]}

    def get_vocab(self):
        return {f"<extra_id_{n}>": 40 + n for n in range(16)}


def text_rows(model, rows=3, length=9, step=0):
    tokens = np.random.default_rng(0).integers(5, 40, 200)
    return LAYOUTS[model.layout].text_stream(tokens, FewTokens(), rows, length, seed=0)(step)


def logits_of(model, batch):
    named = {name: array for name, array in batch.items() if name not in ("labels", "label_mask")}
    return model(**jax.tree.map(jnp.asarray, named))


@pytest.mark.parametrize("family", ["t5", "decoder"])
def test_replay_has_the_gradient_of_the_models_plain_loss_and_distillation_the_divergence(family):
    model, base = models(family)
    graph, params, frozen = split_model(model, Config(train=TrainConfig(train_embeddings=True, train_norms=True)))
    batch = text_rows(model)

    def plain(p):
        z = logits_of(join_model(graph, p, frozen), batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(batch["labels"]))
        return jnp.sum(losses * batch["label_mask"]) / batch["label_mask"].sum()

    replay = text_loss(graph, TrainConfig(text_task="replay", loss_chunk=4))
    found = jax.jit(jax.grad(replay))(params, frozen, None, jax.tree.map(jnp.asarray, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, jax.jit(jax.grad(plain))(params))

    distill = text_loss(graph, TrainConfig(text_task="distill", loss_chunk=4))
    _, base_params, _ = split_model(base, Config(train=TrainConfig(train_embeddings=True, train_norms=True)))
    teacher = join_model(graph, base_params, frozen)
    wanted = divergence64(
        np.asarray(logits_of(model, batch), np.float64), np.asarray(logits_of(teacher, batch), np.float64)[..., :60]
    )
    mean = np.sum(wanted * batch["label_mask"]) / batch["label_mask"].sum()
    assert mean > 1e-3
    assert float(jax.jit(distill)(params, frozen, base_params, batch)) == pytest.approx(mean, rel=1e-4)


def test_a_text_is_read_in_epochs_of_other_orders_and_every_part_has_its_rows():
    model, _ = models("decoder")
    rows = np.concatenate([text_rows(model, step=step)["input_ids"] for step in range(40)])
    assert len(np.unique(rows, axis=0)) > 40  # of 22 chunks a shift
    again = text_rows(model, step=17)
    np.testing.assert_array_equal(rows[51:54], again["input_ids"])
    np.testing.assert_array_equal(again["labels"][:, :-1], again["input_ids"][:, 1:])
    with pytest.raises(ValueError, match="200 tokens of text are too few for inputs of 150"):
        text_rows(model, length=150)


def test_an_update_is_the_mean_of_the_tasks_and_the_weighted_text():
    model, _ = models("decoder")
    train = TrainConfig(method="adamw", text_task="replay", text_task_weight=3.0, warmup=0, schedule="constant")
    graph, params, frozen = split_model(model, Config(train=train))
    text = jax.tree.map(jnp.asarray, text_rows(model))
    tasks = {
        "input_ids": jnp.array([[[5, 6, 61, 1]], [[8, 62, 1, 0]]]),
        "attention_mask": jnp.array([[[1, 1, 1, 1]], [[1, 1, 1, 0]]]),
        "labels": jnp.array([[[6, 61, 1, 0]], [[62, 1, 0, 0]]]),
        "label_mask": jnp.array([[[0, 1, 1, 0]], [[1, 0, 0, 0]]]),
    }
    loss, of_text = task_loss(graph, "items"), text_loss(graph, train)
    tx = refuse_not_finite(optax.chain(gj.merge_tasks(), optax.scale(-1.0)), 3)
    step = jax.jit(make_step(loss, train, tx, ("rec", "src", "text"), None, text_loss=of_text))
    control = Control(0, 0, False, jnp.zeros(1, jnp.int32), jnp.ones(3), jnp.uint32(0))
    beside = {PREFIX + name: array[None] for name, array in text.items()}
    moved, _, told = step(params, tx.init(params), frozen, tasks | beside, control)

    def joint(p):  # of two and one label tokens; the text counts as their mean, whatever it has
        rec, src = (loss(p, frozen, jax.tree.map(lambda x, t=t: x[t], tasks)) for t in (0, 1))
        return (2 * rec + src + 1.5 * 3 * of_text(p, frozen, None, text)) / 4.5

    grads = jax.jit(jax.grad(joint))(params)
    jax.tree.map(lambda a, b, g: np.testing.assert_allclose(a, b - g, atol=1e-6), moved, params, grads)
    each = jax.jit(jax.vmap(loss, in_axes=(None, None, 0)))(params, frozen, tasks)
    values = [*each.tolist(), float(jax.jit(of_text)(params, frozen, None, text))]
    np.testing.assert_allclose(told["losses"], values, rtol=1e-5)  # in nats, whatever the weight
    assert told["counts"].tolist() == [2, 1, 1.5]
    absent = {"label_mask": tasks["label_mask"].at[1].set(0)}
    *_, told = step(params, tx.init(params), frozen, tasks | absent | beside, control)
    assert told["counts"].tolist() == [2, 0, 2]


def words(prepared, workdir, **changed):
    cheap = {"train__text_task": "distill", "train__text_task_rows": 4, "gems__rank": 4, "train__steps": 4}
    return [*options(prepared.root, **cheap | changed), "--workdir", workdir]


def train(prepared, workdir, **changed):
    return gems_jax("train", *words(prepared, workdir, **changed))


@pytest.mark.slow
def test_a_run_of_gems_names_the_text_wherever_it_lists_tasks_and_goes_on_to_the_same_bits(prepared, tmp_path, capsys):
    """Twenty seconds, for a run with one more task than the data has, and one that goes on with it."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    kept = {"train__checkpoint_every": 2, "train__keep_checkpoints": 5, "train__accumulate": 2}
    with few_kernels():
        assert train(prepared, whole, **kept) == 0
        said = capsys.readouterr().out
        assert "text: distill of " in said
        assert "4 rows of 48 input and" in said
        shutil.copytree(whole, resumed)
        shutil.rmtree(resumed / "checkpoints" / "4")
        assert train(prepared, resumed, **kept) == 0
    assert_same_run(resumed, whole, 4)
    lines = metrics(whole)
    names = {"loss/text", "gate/text", "grad_norm/text", "captured/text", "conflict/rec-text", "conflict/src-text"}
    assert all(names <= set(line) for line in lines)
    # It begins with the base model, but for what the items take by being there.
    taken = float(re.search(r"they raise the loss on general text by ([0-9.e-]+),", said)[1])
    assert lines[0]["loss/text"] == pytest.approx(taken, rel=0.6)  # of a few tokens and of thousands
    assert sum(lines[-1][f"gate/{task}"] for task in ("rec", "src", "text")) == pytest.approx(1, rel=1e-5)
    assert max(line["null_space/leak"] for line in lines) <= 1e-5
    with few_kernels():
        assert gems_jax("evaluate", *words(prepared, whole, **kept)) == 0
    assert "text" not in json.loads((whole / "eval.json").read_text())
    assert read_records(whole).tasks() == ["rec", "src"]
    assert gems_jax("train", *options(prepared.root), "--workdir", whole) != 0
    assert "train.text_task: 'distill' there, 'none' now" in capsys.readouterr().err


def test_with_distillation_a_run_forgets_less(prepared, tmp_path):
    """Two runs and their evaluations, half a minute: what the option is for, by the command that users call."""
    forgotten = {}
    for kind in ("none", "distill"):
        changed = {"train__method": "adamw", "train__text_task": kind, "train__text_task_weight": 4.0}
        changed |= {"train__learning_rate": 0.02, "train__item_learning_rate": 0.02, "train__steps": 30}
        assert train(prepared, tmp_path / kind, **changed) == 0
        assert gems_jax("evaluate", *words(prepared, tmp_path / kind, **changed)) == 0
        forgotten[kind] = json.loads((tmp_path / kind / "eval.json").read_text())["general"]["kl"]
    assert forgotten["distill"] < 0.5 * forgotten["none"], forgotten


def test_studies_know_both_and_options_that_do_not_go_together_are_named(prepared, tmp_path, capsys):
    made = configured(Config(), "adamw-distill", (1e-3, None), 0, width=32)
    assert (made.train.method, made.train.text_task) == ("adamw", "distill")
    assert configured(Config(), "gems-replay", (1e-3, None), 0, width=32).train.text_task == "replay"
    parts = {"train__accumulate": 4, "train__text_task_rows": 6}
    for changed, message in (
        ({"train__gradients": "projected"}, "train.gradients projected cannot be: train.text_task replay takes whole"),
        (
            parts,
            "text_task_rows 6 must be divisible by train.accumulate 4",
        ),
        ({"train__text_task_weight": 0}, "train.text_task_weight must be a number above 0"),
    ):
        wanted = words(prepared, tmp_path / "run", **{"train__text_task": "replay"} | changed)
        assert message in fails(capsys, "train", *wanted)
    config = Config(train=TrainConfig(text_task="replay"), mesh=MeshConfig(task=2))
    with pytest.raises(ValueError, match="cannot be split over mesh.task 2"):
        check(config)
    items = dataclasses.replace(config.items, prompts={"text": "{query}", "rec": "{history}"})
    with pytest.raises(ValueError, match="is a task named 'text', and items.prompts has one"):
        check(dataclasses.replace(config, mesh=MeshConfig(), items=items))
    assert not (tmp_path / "run").exists()
