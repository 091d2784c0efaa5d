"""What is installed, which devices there are, and whether a run would fit on them."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from gems_jax.config.run import Config
from gems_jax.data.dataset.storage import is_complete, load
from gems_jax.models.params import params_of
from gems_jax.training.estimate.memory import GIB, HEADROOM, by_batch_size, largest_batch
from gems_jax.training.estimate.shape import abstract_model
from gems_jax.version import __version__

PACKAGES = ("jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "transformers")
# Where no catalogue is prepared.
USUAL_ITEMS = 20_000
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def versions() -> list[str]:
    """Of this package, Python and those that it stands on."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return [f"gems-jax {__version__}, Python {platform.python_version()}, {platform.platform()}", packages]


def host_memory() -> int:
    """Bytes that a process here may have: the machine's, or its container's if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    return min(machine, int(limit)) if limit.isdigit() else machine


def device_memory(devices: Sequence[Any]) -> float:
    """Bytes of each device; those made of the processor share the host's memory."""
    stats = devices[0].memory_stats() or {}
    return float(stats.get("bytes_limit", host_memory() / len(devices)))


def fit(config: Config, items: int, devices: Sequence[Any]) -> list[str]:
    """What a run needs on each device, and whether the devices have it.

    Args:
      config: of the run.
      items: added tokens.
      devices: that it would train on.

    Raises:
      FileNotFoundError: no model to take the shapes of.
    """
    model = abstract_model(config, items)
    size = sum(leaf.size for leaf in jax.tree.leaves(params_of(model)))
    lines = [f"model: {config.model.path}, {type(model).__name__} of {size:,} parameters, {items:,} items among them"]
    asked = config.mesh.fsdp * config.mesh.tensor * config.mesh.task
    if len(devices) % asked:
        lines.append(f"mesh: {asked} devices are asked for, and {len(devices)} cannot be split into groups of so many")
    tasks, data = len(config.items.prompts), max(1, len(devices) // asked)
    needs, memory, rows = (
        by_batch_size(config, model.config, tasks, data),
        device_memory(devices),
        config.train.batch_size,
    )
    found = needs(rows)
    lines.append(f"estimated from shapes, GiB a device: {found}")
    share = HEADROOM * found.total / memory
    lines.append(
        f"{'fits' if share <= 1 else 'does not fit'}: with a quarter for programs and batches {share:.0%} of "
        f"{memory / GIB:.1f} GiB, train.batch_size {rows}"
    )
    most = largest_batch(config, needs, memory, data)
    if most > rows:
        lines.append(f"train.batch_size up to {most} would fit")
    elif share > 1:
        rest = f"train.batch_size {most} would fit; or " if most else "no train.batch_size fits: "
        lines.append(f"{rest}raise train.accumulate or mesh.fsdp, lower gems.rank, or take model.dtype bfloat16")
    return lines


def doctor(config: Config, items: int | None = None) -> str:
    """A page of text on this machine and a run on it.

    Args:
      config: of the run.
      items: added tokens; ``None``: those of the prepared dataset, or `USUAL_ITEMS`.
    """
    devices = jax.devices()
    memory = device_memory(devices)
    lines = [
        *versions(),
        f"devices: {len(devices)} x {devices[0].device_kind}, {memory / GIB:.1f} GiB each; {os.cpu_count()} cores, "
        f"{host_memory() / GIB:.1f} GiB on the host",
    ]
    if items is None:
        items = len(load(config.data.dir).items) if is_complete(config.data.dir) else USUAL_ITEMS
    return "\n".join(lines + fit(config, items, devices))
