"""Time and memory of a row, and the machine it ran on."""

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import jax

from gems_jax.study.machine import machine

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "gems-jax")


def reset_peak_memory() -> bool:
    """Starts the process's record of its most memory anew, where the system can; whether it could."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory() -> int | None:
    """Most bytes of memory the process has held since `reset_peak_memory`; ``None`` where the system does not say."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    # In "kB", which are 1,024 bytes.
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def circumstances() -> dict[str, Any]:
    """Machine, device, versions and date of this process."""
    return {
        "machine": machine(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "date": datetime.date.today().isoformat(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
