"""How well a model still predicts general text."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.evaluation.bootstrap import bootstrap_intervals
from gems_jax.evaluation.output_shift import Energies, OutputShift, ratios
from gems_jax.types import TextBatch

# Logits of a model that are held at once: 64 MiB of float32.
_MAX_LOGITS = 2**24
# What is summed over target tokens when two models are compared, in this order.
_SUMMED = (
    "base_loss",
    "base_loss_full",
    "loss",
    "loss_full",
    "kl",
    "accuracy",
    "base_accuracy",
    "top1_agreement",
    "top1_agreement_full",
    "sure",
    "sure_agreement",
)


def general_loss(model: Any, batches: Iterable[TextBatch], *, progress: bool = False) -> dict[str, float]:
    """Mean loss a token over general text, with the added item tokens left out and with them.

    ``loss = -1/n sum log p(token | text so far)`` over all n target tokens of all batches. The loss over the
    base model's own vocabulary is comparable before and after items were added; the one over the full
    vocabulary also counts what the item tokens take.

    Args:
      model: of ``gems_jax.models``, or another `gems_jax.models.family.LanguageModel`.
      batches: dictionaries of ``input_ids`` and ``attention_mask`` int ``[B, S]``, ``labels`` and ``label_mask``. In
        layout ``"encoder_decoder"`` (T5) these are ``[B, S_target]``, as are ``decoder_input_ids``: span corruption. In
        layout ``"decoder"`` they are ``[B, S]``, each label the token after its position; padding is on the right.
      progress: shows batches done, rate and time left.

    Returns:
      ``"loss"``, ``"perplexity"`` over the base vocabulary, ``"loss_full"``, ``"perplexity_full"`` over all
      tokens, and ``"tokens"``, the number of target tokens.

    Raises:
      ValueError: if there is no target token, a label is not in the base vocabulary, or a batch is not of the
        model's layout.

    Example:
      >>> import jax, numpy as np
      >>> from gems_jax.models import T5, T5Config
      >>> config = T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> ones = np.ones((2, 3), np.int32)
      >>> batch = {"input_ids": 5 * ones, "attention_mask": ones, "decoder_input_ids": 4 * ones,
      ...          "labels": 4 * ones, "label_mask": ones}
      >>> result = general_loss(T5.create(config, jax.random.key(0)), [batch])
      >>> result["tokens"], result["loss"] == result["loss_full"]
      (6.0, True)
    """
    graphdef, state = nnx.split(model)
    sums = np.zeros(3)
    for number, batch in enumerate(tqdm(batches, desc="general text", unit="batch", disable=not progress)):
        sums += np.asarray(_loss_sums(graphdef, state, _arrays(model, batch, number)), np.float64).sum(axis=1)
    return _losses(*sums.tolist())


def general_drift(
    base: Any,
    tuned: Any,
    batches: Sequence[TextBatch],
    *,
    memory_limit: int | None = None,
    shift: OutputShift | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures what tuning has changed on general text: losses before and after, choices, every layer's output.

    The text is read once, both models together (and once more for each further group of layers where
    ``memory_limit`` asks for several).

    Args:
      base: the model before tuning, with the rows that the added items started from, or without items: the losses
        over the base vocabulary are the same.
      tuned: after tuning.
      batches: as of `general_loss`, the same for both.
      memory_limit: bytes of second moments held at once, see `gems_jax.evaluation.output_shift.OutputShift`.
      shift: of `read_shift`, for the same base model and batches, where many tuned models are compared.
      progress: shows batches done, rate and time left.

    Returns:
      Those of `general_loss` for ``tuned`` (``"loss"``, ``"perplexity"``, ``"loss_full"``, ``"perplexity_full"``,
      ``"tokens"``) and, with ``"base_"`` before the name, for ``base``. Of the numbers below, ``base`` is without items
      and ``tuned`` over all tokens unless it is said otherwise; ``NAME_ci`` is the 95 % interval over the inputs:

      * ``"forgetting"``: the loss of ``tuned`` minus that of ``base``; ``"forgetting_base_vocabulary"``, the same over
        the base vocabulary for both.
      * ``"kl"``: mean over target positions of ``sum_v p_base(v) log(p_base(v) / p_tuned(v))``, in nats.
      * ``"accuracy"``, ``"base_accuracy"``: share of target tokens that a model holds most probable.
      * ``"top1_agreement"``: share of target tokens for which both models hold the same token of the base vocabulary
        most probable; ``"top1_agreement_full"``, the same where item tokens may be that.
      * ``"sure_agreement"``: ``"top1_agreement_full"`` where ``base`` gives its choice a probability of a half or
        more: what it is sure of; ``"sure_tokens"``, how many these are. Left out where there is none.
      * ``"shift"``: the kernel's path to ``|x dW| / |x W|`` of each layer.

      JSON values only.

    Raises:
      ValueError: as `general_loss`, or if the models' kernels differ in shape.

    Example:
      >>> import jax, numpy as np
      >>> from gems_jax.models import T5, T5Config
      >>> config = T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> ones = np.ones((2, 3), np.int32)
      >>> batch = {"input_ids": 5 * ones, "attention_mask": ones, "decoder_input_ids": 4 * ones,
      ...          "labels": 4 * ones, "label_mask": ones}
      >>> model = T5.create(config, jax.random.key(0))
      >>> drift = general_drift(model, model, [batch])
      >>> abs(drift["forgetting"]) < 1e-5, drift["top1_agreement"], drift["shift"]["decoder/block/mlp/wo/kernel"]
      (True, 1.0, [0.0])
    """
    if not batches:
        raise ValueError("no batches of general text: give at least one")
    before, after = nnx.split(base), nnx.split(tuned)
    vocab_size = base.config.vocab_size
    if tuned.config.vocab_size != vocab_size:
        raise ValueError(
            f"the base model has {vocab_size} tokens without items, the tuned one {tuned.config.vocab_size}: compare "
            "models of one vocabulary"
        )
    rows, read = [], shift is not None
    if shift is None:
        shift = OutputShift(base, _arrays(base, batches[0], 0), memory_limit=memory_limit)
    shift.check(tuned)
    energies: Energies = {}
    passes = 1 if read else shift.passes
    with tqdm(total=passes * len(batches), desc="general text", unit="batch", disable=not progress) as bar:
        for pass_number in range(passes):
            if not read:
                shift.begin(pass_number)
            for number, batch in enumerate(batches):
                arrays = _arrays(base, batch, number)
                if not pass_number:
                    rows.append(np.asarray(_drift_sums(before[0], after[0], before[1], after[1], arrays), np.float64))
                if not read:
                    shift.add(arrays)
                bar.update()
            energies = shift.energies(tuned, energies)
    of = dict(zip((*_SUMMED, "tokens"), np.concatenate(rows, axis=1), strict=True))
    total = {name: float(values.sum()) for name, values in of.items()}
    result: dict[str, Any] = _losses(total["loss"], total["loss_full"], total["tokens"])
    base_losses = _losses(total["base_loss"], total["base_loss_full"], total["tokens"])
    result |= {f"base_{name}": value for name, value in base_losses.items() if name != "tokens"}
    result |= _means(of)
    return result | {"shift": ratios(energies)}


def _means(of: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What is compared, a target token, with intervals over inputs.

    Args:
      of: sums over the target tokens of each input, float64 ``[R]``, by name.
    """
    # An input without a target token says nothing, and a resample of such inputs alone would have no mean.
    of = {name: values[of["tokens"] > 0] for name, values in of.items()}
    tokens = of["tokens"]
    sums = {
        "forgetting": of["loss_full"] - of["base_loss"],
        "forgetting_base_vocabulary": of["loss"] - of["base_loss"],
    } | {name: of[name] for name in ("kl", "accuracy", "base_accuracy", "top1_agreement", "top1_agreement_full")}
    intervals = bootstrap_intervals(np.stack([*sums.values()], axis=1), np.arange(len(tokens)), weights=tokens)
    result: dict[str, Any] = {name: float(values.sum() / tokens.sum()) for name, values in sums.items()}
    result |= {f"{name}_ci": interval for name, interval in zip(sums, intervals.tolist(), strict=True)}
    if sure := float(of["sure"].sum()):
        result |= {"sure_agreement": float(of["sure_agreement"].sum()) / sure, "sure_tokens": sure}
    return result


def read_shift(base: Any, batches: Sequence[TextBatch]) -> OutputShift:
    """Reads what `general_drift` needs of a base model's inputs on a text, all at once in memory.

    Args:
      base: the model before tuning.
      batches: as of `general_loss`.
    """
    shift = OutputShift(base, _arrays(base, batches[0], 0))
    shift.begin(0)
    for number, batch in enumerate(batches):
        shift.add(_arrays(base, batch, number))
    return shift


@functools.partial(jax.jit, static_argnames="graphdef")
def _loss_sums(graphdef: Any, state: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Sums over each input's target tokens ``[3, B]``: losses over the base and the full vocabulary, their number."""
    model = nnx.merge(graphdef, state)
    hidden = model.batch_hidden(batch)
    base = model.token_losses(hidden, batch["labels"], "base")
    full = model.token_losses(hidden, batch["labels"], "full") if model.config.num_added_tokens else base
    return _sums(batch, [base, full])


@functools.partial(jax.jit, static_argnames=("base_graph", "tuned_graph"))
def _drift_sums(
    base_graph: Any, tuned_graph: Any, base_state: Any, tuned_state: Any, batch: dict[str, jax.Array]
) -> jax.Array:
    """Sums over the target tokens of each input, float32 ``[12, B]``: those of ``_SUMMED``, and their number."""
    models = nnx.merge(base_graph, base_state), nnx.merge(tuned_graph, tuned_state)
    labels = batch["labels"]
    vocab_size = models[0].config.vocab_size
    hidden = [model.batch_hidden(batch).reshape(labels.size, -1) for model in models]

    def of_token(given: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        *read, label = given
        losses, chosen, chosen_full, log_probs = [], [], [], []
        for model, vector in zip(models, read, strict=True):
            logits = model.logits(vector)
            known = logits[:vocab_size]
            normaliser = jax.nn.logsumexp(known), jax.nn.logsumexp(logits)
            losses += [normaliser[0] - known[label], normaliser[1] - known[label]]
            chosen.append(known.argmax())
            chosen_full.append(logits.argmax())
            log_probs.append([known - one for one in normaliser])
        # The base model is taken without items, the tuned one with them.
        base, tuned = log_probs[0][0], log_probs[1][1]
        kept, sure = chosen[0] == chosen_full[1], base.max() >= jnp.log(0.5)
        return jnp.stack(
            [
                *losses,
                jnp.sum(jnp.where(base > -jnp.inf, jnp.exp(base) * (base - tuned), 0.0)),
                chosen_full[1] == label,
                chosen[0] == label,
                chosen[0] == chosen[1],
                kept,
                sure,
                sure & kept,
            ]
        )

    total = vocab_size + max(model.config.num_added_tokens for model in models)
    # A masked position may hold any label; it is not counted.
    flat = jnp.clip(labels.reshape(-1), 0, vocab_size - 1)
    values = jax.lax.map(of_token, (*hidden, flat), batch_size=min(labels.size, max(1, _MAX_LOGITS // total)))
    return _sums(batch, list(values.T.reshape(-1, *labels.shape)))


def _sums(batch: dict[str, jax.Array], values: list[jax.Array]) -> jax.Array:
    """Each value summed over the target tokens of each input ``[K + 1, B]``, and behind them the number of tokens."""
    counted = batch["label_mask"].astype(bool)
    # where, not a product: what stands at a masked position may be anything, infinities included.
    return jnp.stack([jnp.where(counted, value, 0.0).sum(axis=1) for value in (*values, jnp.ones(counted.shape))])


def _arrays(model: Any, batch: TextBatch, number: int) -> dict[str, jax.Array]:
    """The arrays of a batch that a model needs, checked."""
    names = LAYOUTS[model.layout].columns(0, 0)
    missing = [name for name in names if name not in batch]
    if missing:
        raise ValueError(
            f"general text, batch {number}: a {type(model).__name__} needs {missing[0]}; this batch has "
            f"{', '.join(batch)} and is of another layout than '{model.layout}'"
        )
    _check_labels(batch, model.config.vocab_size, number)
    return {name: jnp.asarray(batch[name]) for name in names}


def _losses(base: float, full: float, tokens: float) -> dict[str, float]:
    """Mean losses and perplexities of sums over target tokens."""
    if not tokens:
        raise ValueError("no target token in any batch of general text: give more text or fewer tokens a batch")
    return {
        "loss": base / tokens,
        "perplexity": _perplexity(base / tokens),
        "loss_full": full / tokens,
        "perplexity_full": _perplexity(full / tokens),
        "tokens": tokens,
    }


def _check_labels(batch: Mapping[str, Any], vocab_size: int, number: int) -> None:
    labels = np.where(np.asarray(batch["label_mask"], bool), np.asarray(batch["labels"]), 0)
    if labels.size and (labels.min() < 0 or labels.max() >= vocab_size):
        raise ValueError(
            f"general text, batch {number}: labels reach from {labels.min()} to {labels.max()}, but the base "
            f"vocabulary has tokens 0 to {vocab_size - 1}; tokenise the text with the base model's tokenizer"
        )


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
