"""How much of a device's arithmetic a run's model uses."""

from typing import Any

import jax
import numpy as np

from gems_jax.leaf_path import leaf_path
from gems_jax.training.losses import family_of

# Dense bfloat16 products per second, from the vendors' data sheets.
PEAK = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(kind: str | None = None) -> float | None:
    """A device's peak, or ``None`` where it is not known.

    Args:
      kind: of the device; default: that of the first one.

    Example:
      >>> peak_flops("NVIDIA H100 80GB HBM3")
      989000000000000.0
      >>> peak_flops("cpu") is None
      True
    """
    kind = jax.devices()[0].device_kind if kind is None else kind
    return next((peak for name, peak in PEAK.items() if kind.startswith(name)), None)


def peak_of_all_devices() -> float | None:
    """The peak of the run's devices together, or ``None`` where it is not known."""
    peak = peak_flops()
    return peak and peak * jax.device_count()


def model_flops(model: Any, input_tokens: float, answer_tokens: float, input_length: float) -> float:
    """Operations of the forward and backward pass of a batch, counted as by PaLM (arXiv 2204.02311, appendix B).

    ``6 P`` for each token that goes through ``P`` parameters of kernels, and ``12 d S`` a layer for the products of
    attention over ``S`` tokens. Recomputation and the optimiser do not count: it is the model's work.

    Args:
      model: a T5 or Decoder.
      input_tokens: of the batch.
      answer_tokens: label tokens, which alone go through the output layer (and a T5's decoder).
      input_length: mean tokens of an input.

    Returns:
      Operations.
    """
    config = model.config
    sizes = {leaf_path(path): int(np.prod(x.shape)) for path, x in jax.tree_util.tree_leaves_with_path(_shapes(model))}
    kernels = {path: size for path, size in sizes.items() if path.endswith("kernel")}
    head = (config.vocab_size + config.num_added_tokens) * config.d_model * answer_tokens
    if family_of(model) == "decoder":
        width = config.num_heads * config.head_dim
        attention = 12 * config.num_layers * width * input_length * input_tokens / 2  # half of it is masked
        return 6 * (sum(kernels.values()) * input_tokens + head) + attention
    width = config.num_heads * config.d_kv
    per_input = sum(
        size
        for path, size in kernels.items()
        if path.startswith("encoder/") or path.endswith(("cross_attention/k/kernel", "cross_attention/v/kernel"))
    )
    per_answer = sum(kernels.values()) - per_input
    attention = (
        12 * width * input_length * (config.num_layers * input_tokens + config.num_decoder_layers * answer_tokens)
    )
    return 6 * (per_input * input_tokens + per_answer * answer_tokens + head) + attention


def work_of_batch(model: Any, batch: dict[str, np.ndarray], parts: int, count_work: bool) -> tuple[float, float]:
    """Input tokens of a batch, of all its parts, and the model's operations on it where they are wanted."""
    tokens = float(batch["attention_mask"].sum()) * parts
    if not count_work:
        return tokens, 0.0
    rows = max(float((batch["row_index"] >= 0).sum()) * parts, 1.0)
    return tokens, model_flops(model, tokens, float(batch["label_mask"].sum()) * parts, tokens / rows)


def _shapes(model: Any) -> Any:
    from flax import nnx

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.state(model, nnx.Param))
