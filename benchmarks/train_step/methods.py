"""The methods by name, in the order of the table, and why those that cannot run here cannot."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import optax.contrib

from benchmarks.train_step.galore import galore
from benchmarks.train_step.gems import PROJECTED, gems
from benchmarks.train_step.jax_step import JaxMethod, JaxRun
from benchmarks.train_step.joint_adamw import joint_adamw
from benchmarks.train_step.lora import lora_adamw
from benchmarks.train_step.problem import Problem

REFERENCE = "joint AdamW"
JAX: dict[str, Callable[[Problem], JaxMethod]] = {
    REFERENCE: joint_adamw,
    "GaLore (optax)": galore,
    "LoRA": lora_adamw,
    "GEMS, full gradients": lambda problem: gems(problem, projected=False),
    "GEMS, projected": lambda problem: gems(problem, projected=True),
}
TORCH = ("AdamW (PyTorch)", "as released (PyTorch)")
NAMES = (*JAX, *TORCH)


class Run(Protocol):
    """A method that is run step after step."""

    refreshes: bool

    def begin(self) -> None: ...
    def step(self) -> np.ndarray: ...
    def make_refresh_due(self) -> None: ...
    def state_bytes(self) -> dict[str, int]: ...
    def flops(self) -> float: ...


def run_of(name: str, problem: Problem) -> Any:
    """A `Run`; PyTorch and transformers are imported where they are asked for."""
    if name in JAX:
        return JaxRun(JAX[name](problem), problem)
    # PyTorch's threads would wait for each other awake: on a busy machine that is most of their CPU time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks.train_step.torch_adamw import TorchRun
    from benchmarks.train_step.torch_released import TorchReleasedRun

    return (TorchRun if name == TORCH[0] else TorchReleasedRun)(problem)


def missing(name: str) -> str | None:
    """What a method lacks to run here, or ``None``."""
    if name == "GEMS, projected" and PROJECTED is None:
        return "not available: gems_jax has no projected gradients of tasks"
    if name == "GaLore (optax)" and not hasattr(optax.contrib, "galore"):
        return "not available: this optax has no GaLore"
    packages = [package for package in ("torch", "transformers") if importlib.util.find_spec(package) is None]
    return f"not available: {packages[0]} is not installed" if name in TORCH and packages else None
