"""Markdown tables of compiled steps: memory, time and communication on each device."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from gems_jax.leaf_path import leaf_path
from gems_jax.training.estimate.abstract import bytes_of, device_bytes
from gems_jax.training.optimiser.factors import held_factors
from planning.chips import GIB, Chip, roofline
from planning.costs import Costs
from planning.training_step import AbstractStep


class StepPlan(NamedTuple):
    """One compiled step.

    Attributes:
      method: of training.
      memory: ``compiled.memory_analysis()``.
      costs: of its kinds: ``"plain"`` and, of GEMS, ``"refresh"``.
    """

    method: str
    memory: Any
    costs: dict[str, Costs]


def with_unit(count: float) -> str:
    """Bytes in the unit that suits them.

    Example:
      >>> with_unit(3 * 2**20)
      '3.00 MiB'
    """
    power = min(int(math.log2(max(count, 1)) // 10), 3)
    return f"{count / 2 ** (10 * power):.2f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def arguments_table(steps: Mapping[str, AbstractStep]) -> list[str]:
    """Bytes on each device of the arguments of each method's step."""
    lines = [
        "| per device | parameters | optimiser state | of it the null space | frozen parameters | batch |",
        "|---|---|---|---|---|---|",
    ]
    for method, step in steps.items():
        parts = [step.params, step.state, dict(held_factors(step.state)), step.frozen, step.batch]
        lines.append(f"| {method} | {' | '.join(with_unit(device_bytes(part)) for part in parts)} |")
    return lines


def largest_table(step: AbstractStep, count: int = 5) -> list[str]:
    """The arrays of an optimiser state that take most of each device, and the mesh axes that split them."""
    leaves = [(leaf_path(path), x) for path, x in jax.tree_util.tree_leaves_with_path(step.state)]
    lines = ["| of the state | shape | split over | per device |", "|---|---|---|---|"]
    for name, x in sorted(leaves, key=lambda entry: -bytes_of(entry[1]))[:count]:
        split = ", ".join("-" if axes is None else str(axes) for axes in x.sharding.spec)
        lines.append(f"| {name} | {list(x.shape)} | {split} | {with_unit(bytes_of(x))} |")
    return lines


def memory_table(plans: Sequence[StepPlan], chip: Chip) -> list[str]:
    """Bytes on each device."""
    lines = [
        "| per device | arguments | outputs beside them | temporaries | code | in all "
        f"| of {chip.memory / GIB:.0f} GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for p in plans:
        m = p.memory
        parts = [
            m.argument_size_in_bytes,
            m.output_size_in_bytes - m.alias_size_in_bytes,
            m.temp_size_in_bytes,
            m.generated_code_size_in_bytes,
        ]
        cells = [with_unit(part) for part in (*parts, sum(parts))]
        lines.append(f"| {p.method} | {' | '.join(cells)} | {sum(parts) / chip.memory:.0%} |")
    return lines


def time_table(plans: Sequence[StepPlan], chip: Chip) -> list[str]:
    """Operations and traffic of each device, and the seconds they take at its peaks."""
    lines = [
        "| step | GFLOP | of these above bfloat16 | memory traffic | sent | compute | memory | links "
        f"| at least, {chip.name} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for p in plans:
        for kind, costs in p.costs.items():
            times = roofline(costs, chip)
            cells = [
                f"{costs.total_flops / 1e9:,.1f}",
                f"{(costs.total_flops - costs.flops.get('default', 0)) / 1e9:,.1f}",
                with_unit(costs.traffic),
                with_unit(sum(costs.wire.values())),
                *(f"{1e3 * t:.2f} ms" for t in times),
                f"{1e3 * times.overlapped:.2f} to {1e3 * times.apart:.2f} ms ({times.limit})",
            ]
            lines.append(f"| {p.method}, {kind} | {' | '.join(cells)} |")
    return lines


def collective_table(plans: Sequence[StepPlan]) -> list[str]:
    """Calls and bytes of each kind of communication, on each device."""
    lines = ["| step | collective | among | calls | bytes | sent |", "|---|---|---|---|---|---|"]
    for p in plans:
        for kind, costs in p.costs.items():
            for key, sent in sorted(costs.wire.items(), key=lambda entry: -entry[1]):
                cells = f"{key.group} | {costs.calls[key]:,.0f} | {with_unit(costs.bytes[key])} | {with_unit(sent)}"
                lines.append(f"| {p.method}, {kind} | {key.kind} | {cells} |")
    return lines
