"""How much of a device's arithmetic a run's model uses."""

from typing import Any

import jax
import numpy as np

from gems_jax.data.batching.with_text import split_text

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


def work_of_batch(model: Any, batch: dict[str, np.ndarray], parts: int, count_work: bool) -> tuple[float, float]:
    """Input tokens of a batch, of all its parts, and the model's operations on it where they are wanted.

    Rows of general text count with the others; what the base model predicts there is no work of this model.
    """
    tokens, work = 0.0, 0.0
    of_tasks, text = split_text(batch)
    for given in (of_tasks, text) if text else (of_tasks,):
        inputs = float(given["attention_mask"].sum()) * parts
        tokens += inputs
        if count_work:
            full = given["row_index"] >= 0 if "row_index" in given else given["attention_mask"].any(axis=-1)
            rows = max(float(full.sum()) * parts, 1.0)
            work += model.flops(inputs, float(given["label_mask"].sum()) * parts, inputs / rows)
    return tokens, work
