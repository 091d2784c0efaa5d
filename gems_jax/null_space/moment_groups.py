"""Which second moments are taken together, so that those held at one time fit a bound on memory."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gems_jax.null_space.tracing.interpreter import Layers
from gems_jax.null_space.tracing.kernel_inputs import KernelInput


class _Unit(NamedTuple):
    name: str
    layer: int | None
    bytes: int


def moment_groups(
    inputs: Sequence[KernelInput], memory_limit: int | None, devices: int = 1
) -> list[dict[str, Layers | None]]:
    """Groups of inputs, and of the layers of each, in the order in which a forward pass meets them.

    A layer's inputs come together, so that the pass for a group ends with its last layer.

    Args:
      inputs: distinct inputs in the order of the program.
      memory_limit: bytes that the moments of a group may take on a device; ``None``: one group.
      devices: that the rows of each moment are spread over, where their number allows.

    Returns:
      For each group the inputs' names, each with its first layer and the one behind the last (``None``: all).

    Raises:
      ValueError: a single input's moment is larger than the limit.

    Example:
      >>> moment_groups([], memory_limit=1000)
      [{}]
    """
    groups: list[dict[str, Layers | None]] = [{}]
    held = 0
    for unit in _units(inputs, devices):
        if memory_limit is not None:
            if unit.bytes > memory_limit:
                raise ValueError(
                    f"memory_limit={memory_limit} bytes is less than the {unit.bytes} bytes that the second moment "
                    f"of one input takes ({unit.name!r}); give at least that, or spread it with mesh="
                )
            if held + unit.bytes > memory_limit:
                groups.append({})
                held = 0
        held += unit.bytes
        group = groups[-1]
        if unit.layer is None:
            group[unit.name] = None
        else:
            first, _ = group.get(unit.name) or (unit.layer, None)
            group[unit.name] = (first, unit.layer + 1)
    return groups


def bytes_per_device(entry: KernelInput, devices: int) -> int:
    """Bytes of the moments of an input's layer on each device."""
    return entry.bytes_of_layer // (devices if entry.dim % devices == 0 else 1)


def _units(inputs: Sequence[KernelInput], devices: int) -> Iterator[_Unit]:
    stacks: dict[object, list[KernelInput]] = {}
    for entry in inputs:
        # The loop over the layers; layers that are not looped over go together if their number is the same.
        loop = entry.uses[0].slots[0] if entry.is_divisible else entry.name
        stacks.setdefault((entry.stack[:1], None if isinstance(loop, int) else loop), []).append(entry)
    for entries in stacks.values():
        layers: Sequence[int | None] = range(entries[0].stack[0]) if entries[0].is_divisible else [None]
        for layer in layers:
            for entry in entries:
                yield _Unit(entry.name, layer, bytes_per_device(entry, devices))
