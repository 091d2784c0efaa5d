"""A small base model from plain text: span corruption, T5 1.1."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from gems_jax.checksums import write_checksums
from gems_jax.config.base_model import PretrainConfig
from gems_jax.config.run import Config
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.text.general_text import read_lines, shared_text, token_stream
from gems_jax.data.text.small_tokenizer import sentinel_ids, train_tokenizer
from gems_jax.data.text.span_corruption import span_corruption_batch
from gems_jax.evaluation.drift import general_loss
from gems_jax.leaf_path import leaf_path
from gems_jax.models import T5, T5Config, save
from gems_jax.models.family import Layout
from gems_jax.task_grads import token_mean
from gems_jax.types import PyTree


def general_loss_fn(graphdef: Any, params: PyTree, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Mean loss a token of span corruption."""
    model = nnx.merge(graphdef, params)
    return token_mean(model.token_losses(model.batch_hidden(batch), batch["labels"], "base"), batch["label_mask"])


def text_batch(tokens: np.ndarray, sentinels: list[int], config: Config, step: int, batch_size: int, seed: int) -> Any:
    """Batch ``step`` of the endless stream over a text."""
    return span_corruption_batch(tokens, step, batch_size, config.text.input_length, seed, sentinel_ids=sentinels)


def heldout_text(tokenizer: Any, config: Config, layout: Layout = T5.layout) -> list[Mapping[str, np.ndarray]]:
    """The batches that general-domain loss is measured on, the same for every model of one tokenizer and layout."""
    text = config.text
    if shared := shared_text(text.train, text.heldout):
        print(f"text: {shared}")
    tokens = token_stream(read_lines(text.heldout, "heldout", text.field), tokenizer)
    batches = LAYOUTS[layout].text_batches
    return list(batches(tokens, tokenizer, text.eval_batch_size, text.input_length, text.eval_batches))


def unigram_loss(train_tokens: np.ndarray, batches: list[Mapping[str, np.ndarray]], vocab_size: int) -> float:
    """Loss a token of the best guess that looks at nothing: training frequencies, add one.

    Sentinels and the end token, which every target has, are counted from the held-out targets themselves, so
    the figure is a little better than an honest unigram model's.
    """
    counts = np.bincount(train_tokens, minlength=vocab_size).astype(np.float64) + 1
    labels = np.concatenate([b["labels"][b["label_mask"] > 0] for b in batches])
    observed = np.bincount(labels, minlength=vocab_size).astype(np.float64)
    structural = np.bincount(train_tokens, minlength=vocab_size) == 0
    share = observed[structural].sum() / observed.sum()
    p = np.where(structural, 0, counts)
    p *= (1 - share) / p.sum()
    p[structural] = np.maximum(observed[structural], 1e-9) / max(observed[structural].sum(), 1e-9) * share
    return float(-(observed * np.log(np.maximum(p, 1e-30))).sum() / observed.sum())


def model_shape(options: PretrainConfig, vocab_size: int) -> T5Config:
    """The model that `pretrain` makes for a tokenizer of so many tokens."""
    return T5Config(
        vocab_size=vocab_size,
        d_model=options.d_model,
        d_kv=options.d_kv,
        d_ff=options.d_ff,
        num_layers=options.num_layers,
        num_decoder_layers=options.num_decoder_layers,
        num_heads=options.num_heads,
        tie_word_embeddings=options.tie_word_embeddings,
        param_dtype="float32",
    )


def pretrain(config: Config, out: str | Path) -> dict[str, float]:
    """Trains a tokenizer and a T5 on general text and writes them as a Hugging Face folder.

    Args:
      config: sections ``text`` and ``pretrain``.
      out: the folder; it appears when all is done.

    Returns:
      Held-out loss of the model and of a unigram guess, tokens seen.

    Raises:
      FileNotFoundError: no such text.
    """
    options = config.pretrain
    lines = read_lines(config.text.train, "train", config.text.field)
    if options.tokenizer is None:
        print(f"pretrain: training a tokenizer of {options.vocab_size} pieces on {len(lines):,} lines")
        tokenizer: Any = train_tokenizer(lines, options.vocab_size)
    else:
        from transformers import AutoTokenizer

        if not Path(options.tokenizer).is_dir():
            raise FileNotFoundError(f"pretrain.tokenizer {options.tokenizer} is not a folder; name one or leave it out")
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    tokens = token_stream(lines, tokenizer)
    sentinels = sentinel_ids(tokenizer)
    model = T5.create(model_shape(options, len(tokenizer)), jax.random.key(options.seed))
    graphdef, params = nnx.split(model, nnx.Param)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"pretrain: {size:,} parameters, {len(tokens):,} tokens of text, {options.steps:,} steps")
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, options.warmup, max(options.steps, options.warmup + 1), options.learning_rate / 10
    )
    is_kernel = lambda tree: jax.tree_util.tree_map_with_path(lambda p, _: leaf_path(p).endswith("kernel"), tree)  # noqa: E731
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=options.weight_decay, mask=is_kernel),
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step_fn(params: PyTree, state: PyTree, batch: Any) -> tuple[PyTree, PyTree, jax.Array]:
        loss, grads = jax.value_and_grad(functools.partial(general_loss_fn, graphdef))(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = tx.init(params)
    losses: list[jax.Array] = []
    recent = math.nan
    with tqdm(total=options.steps, desc="pretrain", unit="step", mininterval=1.0) as bar:
        for step in range(options.steps):
            batch = text_batch(tokens, sentinels, config, step, options.batch_size, options.seed)
            params, state, loss = step_fn(params, state, batch)
            losses.append(loss)
            if len(losses) == 50 or step + 1 == options.steps:
                recent = float(np.mean([float(x) for x in losses]))
                losses.clear()
                bar.set_postfix(loss=f"{recent:.3f}")
                if not math.isfinite(recent):
                    raise ValueError(f"pretraining diverged at step {step + 1}; lower pretrain.learning_rate")
            bar.update()
    model = nnx.merge(graphdef, params)
    batches = heldout_text(tokenizer, config)
    result = general_loss(model, batches)
    report = {
        "loss": result["loss"],
        "unigram_loss": unigram_loss(tokens, batches, len(tokenizer)),
        "train_loss": recent,
        "tokens_seen": float(options.steps * options.batch_size * config.text.input_length),
    }
    save(model, tokenizer, out)
    write_checksums(Path(out))
    print(
        f"pretrain: held-out loss {report['loss']:.3f} a token (a unigram guess: {report['unigram_loss']:.3f}); "
        f"base model in {out}"
    )
    return report
