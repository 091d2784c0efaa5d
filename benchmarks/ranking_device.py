"""One device and one precision for JAX and torch, so that `ranking.py` times the same work on both sides."""

import os
from typing import Any

# Read when JAX opens the GPU: what it would take at once for itself is most of the memory, and torch needs some.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import torch  # noqa: E402


def on_gpu() -> bool:
    """Whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"


def same_precision() -> None:
    """Float32 products in float32 on both sides: a GPU would take TF32 for JAX's and float32 for torch's.

    On a CPU there is no other, and JAX's setting stays as it is.
    """
    torch.set_float32_matmul_precision("highest")
    if on_gpu():
        jax.config.update("jax_default_matmul_precision", "highest")


def peer_device() -> str:
    """Where torch computes: on the GPU if JAX does, else on the CPU, even if torch sees a GPU.

    Raises:
      SystemExit: if JAX computes on a GPU and torch sees none.
    """
    if not on_gpu():
        return "cpu"
    if not torch.cuda.is_available():
        kind = jax.devices()[0].device_kind
        raise SystemExit(f"JAX computes on {kind}, torch sees no GPU: install torch for CUDA, or set JAX_PLATFORMS=cpu")
    return "cuda"


def devices(peer: bool) -> dict[str, Any]:
    """Devices and precision of a result, torch's too if it was timed."""
    said: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",
    }
    if peer:
        said["peer_device"] = torch.cuda.get_device_name() if peer_device() == "cuda" else "cpu"
        said["peer_matmul_precision"] = torch.get_float32_matmul_precision()
    return said
