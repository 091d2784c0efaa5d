"""Peaks of accelerators, and how long a program takes at least on them: a roofline."""

from typing import NamedTuple

from planning.costs import Costs


class Chip(NamedTuple):
    """Peaks of one device, from its vendor's data sheet; bytes and operations per second.

    Attributes:
      name: as in a topology, such as ``"v5e"``.
      flops: of dense bfloat16 products.
      slower: how many times slower products of a higher precision are, by its name.
      memory: bytes of main memory.
      bandwidth: of the main memory.
      link: what a device sends in a collective among few devices: along one torus axis (TPU), by NVLink.
      few: how many devices that holds for.
      far_link: among more devices.
    """

    name: str
    flops: float
    slower: dict[str, float]
    memory: float
    bandwidth: float
    link: float
    few: int
    far_link: float


# The matrix units of TPUs make float32 products from 6 (highest) or 3 (high) of bfloat16; those of NVIDIA's take
# TF32, and float32 runs beside them.
_PASSES = {"default": 1.0, "high": 3.0, "highest": 6.0}
_HOPPER = {"default": 1.0, "high": 989 / 494, "highest": 989 / 67}
_ALL = 2**30
GIB = 2**30

# TPUs: https://cloud.google.com/tpu/docs/v5e, .../v5p and .../v6e. Of the bandwidth between chips given there, in both
# directions over all ports (400 GB/s over 4, 1200 over 6, 800 over 4), a ring along one axis of the torus sends over
# two ports in one direction each.
# GPUs: https://www.nvidia.com/en-us/data-center/h100/ and .../h200/ (SXM): products without sparsity, NVLink in one
# direction; between machines of 8 one network card of 400 Gbit/s a GPU.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, _PASSES, 16 * GIB, 819e9, 100e9, _ALL, 100e9),
        Chip("v5p", 459e12, _PASSES, 95 * GIB, 2765e9, 200e9, _ALL, 200e9),
        Chip("v6e", 918e12, _PASSES, 32 * GIB, 1638e9, 200e9, _ALL, 200e9),
        Chip("H100", 989e12, _HOPPER, 80e9, 3350e9, 450e9, 8, 50e9),
        Chip("H200", 989e12, _HOPPER, 141e9, 4800e9, 450e9, 8, 50e9),
    )
}


class Times(NamedTuple):
    """Seconds a step's parts take at a chip's peaks."""

    compute: float
    memory: float
    communication: float

    @property
    def overlapped(self) -> float:
        """All three at once: no program is faster."""
        return max(self)

    @property
    def apart(self) -> float:
        """One after the other."""
        return sum(self)

    @property
    def limit(self) -> str:
        """The longest part."""
        return self._fields[self.index(max(self))]


def roofline(costs: Costs, chip: Chip) -> Times:
    """Seconds of a program at a chip's peaks.

    Example:
      >>> times = roofline(Costs(flops={"default": 197e12}), CHIPS["v5e"])
      >>> times.compute, times.limit
      (1.0, 'compute')
    """
    compute = sum(count * chip.slower[precision] for precision, count in costs.flops.items()) / chip.flops
    sent = sum(size / (chip.link if key.group <= chip.few else chip.far_link) for key, size in costs.wire.items())
    return Times(compute, costs.traffic / chip.bandwidth, sent)


def chip_named(topology: str) -> Chip:
    """The chip of a topology such as ``"v5e:16x16"`` or ``"H100:8"``.

    Raises:
      ValueError: an unknown one.

    Example:
      >>> chip_named("h100:8").name
      'H100'
    """
    kind = topology.partition(":")[0].lower()
    chip = next((chip for name, chip in CHIPS.items() if name.lower() == kind), None)
    if chip is None:
        raise ValueError(f"the topology {topology!r} names no known chip: give one of {', '.join(CHIPS)}, as v5e:2x4")
    return chip
