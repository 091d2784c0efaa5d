"""Operations, memory traffic and communication of a compiled program, bodies of loops times their trip counts.

XLA's own ``cost_analysis()`` counts the body of a loop once, and every branch of a conditional.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from planning.hlo import Instruction, Program, parse
from planning.loops import trip_count
from planning.traffic import moved_bytes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# Which branch of a conditional is taken: its number, or None for the one with the most operations.
Taken = Callable[[Instruction], int | None]


class Collective(NamedTuple):
    """A kind of communication, and among how many devices."""

    kind: str
    group: int


@dataclass
class Costs:
    """The costs of one run of a program on one device.

    Attributes:
      flops: operations of matrix products, by precision: ``"default"``, ``"high"`` or ``"highest"``.
      traffic: bytes read from and written to the device's main memory.
      calls: how often each collective runs.
      bytes: of the arrays each collective works on: the whole result of an all-gather, the whole input of others.
      wire: bytes each device sends, by the ring algorithm.
      guessed: runs of loops whose trip count is data, by the file they come from.
    """

    flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    traffic: float = 0.0
    calls: dict[Collective, float] = field(default_factory=lambda: defaultdict(float))
    bytes: dict[Collective, float] = field(default_factory=lambda: defaultdict(float))
    wire: dict[Collective, float] = field(default_factory=lambda: defaultdict(float))
    guessed: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: "Costs", times: float = 1) -> None:
        """Adds ``times`` as much as another."""
        for names, more in ((self.flops, other.flops), (self.guessed, other.guessed)):
            for name, value in more.items():
                names[name] += value * times
        for mine, theirs in ((self.calls, other.calls), (self.bytes, other.bytes), (self.wire, other.wire)):
            for key, value in theirs.items():
                mine[key] += value * times
        self.traffic += other.traffic * times

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())


def costs_of(text: str, taken: Taken | None = None, unknown_trips: int = 1) -> Costs:
    """Costs of a compiled program, on one of its devices.

    Args:
      text: ``compiled.as_text()``.
      taken: which branch of a conditional is counted; default: of each the one with the most operations.
      unknown_trips: of loops whose trip count is data.

    Returns:
      `Costs`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> step = lambda x, w: (jnp.tanh(x @ w), None)
      >>> scan = jax.jit(lambda x, w: jax.lax.scan(step, x, w)[0])
      >>> compiled = scan.lower(jnp.ones((4, 8)), jnp.ones((3, 8, 8))).compile()
      >>> costs_of(compiled.as_text()).total_flops == 3 * 2 * 4 * 8 * 8
      True
    """
    program = parse(text)
    return _Walk(program, taken or (lambda _: None), unknown_trips).costs(program.entry, fused=False)


class _Walk:
    def __init__(self, program: Program, taken: Taken, unknown_trips: int):
        self.program, self.taken, self.unknown_trips = program, taken, unknown_trips
        self.known: dict[tuple[str, bool], Costs] = {}

    def costs(self, computation: str, fused: bool) -> Costs:
        key = (computation, fused)
        if key not in self.known:
            total = Costs()
            for instruction in self.program.computations[computation].values():
                self._count(total, instruction, computation, fused)
            self.known[key] = total
        return self.known[key]

    def _count(self, total: Costs, x: Instruction, computation: str, fused: bool) -> None:
        body = self.program.computations[computation]
        if x.opcode == "while":
            trips = trip_count(self.program, x, computation)
            if trips is None:
                total.guessed[x.source] += 1
            total.add(self.costs(x.called["body"][0], fused), self.unknown_trips if trips is None else trips)
            return
        if x.opcode == "conditional":
            total.add(self._branch(x, fused))
            return
        if x.opcode in ("call", "async-start"):
            for name in x.called.get("to_apply", ()) + x.called.get("calls", ()):
                total.add(self.costs(name, fused))
            return
        if x.opcode in ("fusion", "custom-call"):
            for name in x.called.get("calls", ()) + x.called.get("called_computations", ()):
                total.add(self.costs(name, fused=True))
        elif x.opcode in ("dot", "convolution"):
            count = dot_flops if x.opcode == "dot" else convolution_flops
            precision = re.search(r"operand_precision=\{([^}]*)\}", x.attributes)
            parts = precision.group(1).split(",") if precision else ["default"]
            total.flops[next(p for p in ("highest", "high", "default") if p in parts)] += count(x, body)
        elif x.opcode.removesuffix("-start") in COLLECTIVES and not _continues(x, body):
            _add_collective(total, x, body, computation)
        if not fused:
            total.traffic += moved_bytes(self.program, x, body)

    def _branch(self, x: Instruction, fused: bool) -> Costs:
        names = branches_of(x)
        chosen = self.taken(x)
        if chosen is not None:
            return self.costs(names[chosen], fused)
        return max((self.costs(name, fused) for name in names), key=lambda costs: (costs.total_flops, costs.traffic))


def branches_of(x: Instruction) -> Sequence[str]:
    """The computations of a conditional, by branch number: 0 is "false"."""
    if "branch_computations" in x.called:
        return x.called["branch_computations"]
    return x.called["false_computation"] + x.called["true_computation"]


def dot_flops(x: Instruction, body: dict[str, Instruction]) -> float:
    """``2 * result * contracted`` of a dot."""
    left = body[x.operands[0]].shapes[0].dims
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.attributes)
    contracted = [left[int(a)] for a in axes.group(1).split(",") if a] if axes else []
    return 2.0 * x.shapes[0].elements * int(np.prod(contracted, dtype=np.int64))


def convolution_flops(x: Instruction, body: dict[str, Instruction]) -> float:
    """Operations of a convolution, which TPUs make of a dot; only products with elements that are there count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.attributes)
    assert labels is not None
    left, right, out = labels.groups()
    inputs, kernel = (body[name].shapes[0].dims for name in x.operands[:2])
    output = x.shapes[0].dims
    total = 2.0 * output[out.index("b")] * output[out.index("f")] * kernel[right.index("i")]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _inside(x.attributes, "window=")))
    for axis in range(len(left) - 2):
        of = functools.partial(_entry, window, axis)
        low = int(of("pad", "0_0").split("_")[0])
        total *= _pairs(
            output[out.index(str(axis))],
            kernel[right.index(str(axis))],
            inputs[left.index(str(axis))],
            int(of("stride", "1")),
            low,
            int(of("lhs_dilate", "1")),
            int(of("rhs_dilate", "1")),
        )
    return total


def _inside(text: str, name: str) -> str:
    start = text.find(name + "{")
    return "" if start < 0 else text[start + len(name) + 1 : text.index("}", start)]


def _entry(window: dict[str, str], axis: int, name: str, default: str) -> str:
    return window[name].split("x")[axis] if name in window else default


@functools.lru_cache(maxsize=4096)
def _pairs(out: int, kernel: int, size: int, stride: int, low: int, dilate: int, kernel_dilate: int) -> int:
    """How many pairs of output and kernel positions meet an element of the input."""
    position = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None, :] * kernel_dilate
    return int(np.sum((position >= 0) & (position < (size - 1) * dilate + 1) & (position % dilate == 0)))


def _continues(x: Instruction, body: dict[str, Instruction]) -> bool:
    """Whether this is a later part of a collective that overlaps with several fusions: each of them repeats it."""
    if "chain_id" not in x.attributes:
        return False
    return not any("AsyncCollectiveStart" in other.attributes for other in body.values())


def _add_collective(total: Costs, x: Instruction, body: dict[str, Instruction], computation: str) -> None:
    kind, group = x.opcode.removesuffix("-start"), group_size(x.attributes)
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # followed by a slice of the result in one fused operation
    size = sum(body[name].bytes for name in x.operands if name in body)
    if kind == "all-gather":
        size = x.bytes - size if x.opcode.endswith("-start") else x.bytes
    share = 1.0 if kind == "collective-permute" else (group - 1) / group
    key = Collective(kind, group)
    if group > 1:
        total.calls[key] += 1
        total.bytes[key] += size
        total.wire[key] += size * share * (2 if kind == "all-reduce" else 1)


def group_size(attributes: str) -> int:
    """Devices that take part in one run of a collective.

    Example:
      >>> group_size("replica_groups={{0,1},{2,3}}"), group_size("replica_groups=[64,4]<=[256]")
      (2, 4)
      >>> group_size("replica_groups=mesh['a'=2,'b'=4] {'b'}")
      4
    """
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
        size = 1
        for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named.group(2)):
            size *= int(part or sizes[axis])
        return size
    if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(tiled.group(1))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed.group(1).split(","))
    return 2  # pairs: a collective-permute
