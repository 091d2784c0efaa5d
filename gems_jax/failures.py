"""Errors that people can do something about, in one message each; the others are ours and keep their traceback."""

import os
import re
import sys

_TRAIN = (
    "raise train.accumulate, or lower train.batch_size, train.loss_chunk, items.max_length or, for evaluations, "
    "evaluate.batch_size; more devices share a model by mesh.fsdp"
)
_EVALUATE = "lower evaluate.batch_size, evaluate.rows, evaluate.beams, text.eval_batch_size or items.max_length"
# Advice that saves memory, by command.
_LESS_MEMORY = {
    "prepare": "give the data a machine with more memory, or prepare fewer rows of it",
    "pretrain": "lower pretrain.batch_size, text.input_length or the sizes of pretrain",
    "calibrate": "lower null_space.batch_size or text.input_length",
    "train": _TRAIN,
    "demo": _TRAIN,
    "compare": _TRAIN,
    "export": "give it a machine with more memory, or model.dtype bfloat16",
    "evaluate": _EVALUATE,
    "recommend": _EVALUATE,
    "search": _EVALUATE,
    "predict": _EVALUATE,
    "serve": "lower --batch_size, --max_k or items.max_length",
}

# Messages of the system, safetensors, Arrow and TensorStore about a disk or a quota that is full.
_FULL = re.compile("No space left on device|Disk quota exceeded|File too large")


def explained(error: Exception, command: str) -> str | None:
    """The message that tells a person of an error; ``None`` where it is a fault of this program.

    Args:
      error: what ended the command.
      command: its name.

    Example:
      >>> explained(ValueError("no such file"), "train"), explained(KeyError("rows"), "train")
      ('no such file', None)
      >>> explained(MemoryError("Unable to allocate 74 GiB"), "calibrate")
      'out of memory (Unable to allocate 74 GiB): lower null_space.batch_size or text.input_length'
      >>> explained(ValueError("No space left on device"), "train")[:44]
      'no room to write (No space left on device): '
    """
    text = str(error)
    if _FULL.search(text):  # before memory: TensorStore says RESOURCE_EXHAUSTED of both
        if isinstance(error, OSError) and error.errno is None:  # in our words already
            return text
        return f"no room to write ({text.splitlines()[0]}): make some, or choose another disk, and start again"
    if isinstance(error, MemoryError) or _is_exhausted(error):
        what = f" ({text.splitlines()[0]})" if text else ""
        return f"out of memory{what}: {_LESS_MEMORY.get(command, 'give it a machine with more memory')}"
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "gems_jax":
        extra = "train,serve" if command == "serve" else "train"
        return (
            f"the command needs the package {error.name.partition('.')[0]}, which the core is installed without: "
            f'pip install "gems-jax[{extra}]" (in a checkout: pip install ".[{extra}]")'
        )
    backend = re.search(r"Unable to initialize backend '(\w+)'|Unknown backend:? '?(\w+)", text)
    if isinstance(error, RuntimeError) and backend:
        return _no_platform(backend.group(1) or backend.group(2), f" ({text.splitlines()[0]})")
    if isinstance(error, AssertionError) and _has_no_backend():
        return _no_platform(os.environ["JAX_PLATFORMS"], "")
    return text if isinstance(error, ValueError | TypeError | OSError) else None


def _no_platform(name: str, what: str) -> str:
    return (
        f"JAX has no devices of the platform {name!r} here{what}: choose another one by the variable JAX_PLATFORMS, "
        "such as JAX_PLATFORMS=cpu, or install JAX for this one, such as "
        'pip install "jax[cuda13]" for NVIDIA GPUs'
    )


def _has_no_backend() -> bool:
    """Whether JAX finds no device: of a platform without its plugin it says so by a bare ``assert``."""
    if not os.environ.get("JAX_PLATFORMS") or "jax" not in sys.modules:
        return False
    try:
        sys.modules["jax"].devices()
    except (AssertionError, RuntimeError):
        return True
    return False


def _is_exhausted(error: Exception) -> bool:
    """Whether a device or the host has no memory left, as XLA and Arrow say it."""
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or (isinstance(error, RuntimeError) and "out of memory" in text.lower())
