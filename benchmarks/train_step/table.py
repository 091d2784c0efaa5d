"""The table of the results, in Markdown."""

from collections.abc import Mapping
from typing import Any

HEADS = (
    "method", "CPU s", "x joint AdamW [10-90 %]", "wall s", "x joint AdamW [10-90 %]", "refresh, CPU s",
    "x AdamW, amortised (CPU)", "program MiB", "resident MiB", "state MiB", "null space MiB", "GFLOP",
    "sent MB, plain", "refresh", "compile s",
)  # fmt: skip


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a method; ``-`` where there is no such number."""
    lines = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells(row))} |" for name, row in rows.items()])


def cells(row: Mapping[str, Any]) -> list[str]:
    if "missing" in row:
        return [row["missing"]] + ["-"] * (len(HEADS) - 2)
    times, state, sent = row.get("seconds", {}), row.get("state_bytes", {}), row.get("sent_bytes") or {}
    cpu, wall = times.get("cpu", {}), times.get("wall", {})
    return [
        shown(cpu.get("plain")),
        ratio(cpu),
        shown(wall.get("plain")),
        ratio(wall),
        shown(cpu.get("refresh")),
        shown(cpu.get("amortised_times_reference")),
        shown(row.get("compiled_bytes"), 2**20),
        shown(row.get("resident_bytes"), 2**20),
        shown(state.get("optimiser"), 2**20),
        shown(state.get("null_space"), 2**20),
        shown(row.get("flops"), 1e9),
        *(shown(sum(sent[kind].values()) if kind in sent else None, 1e6) for kind in ("plain", "refresh")),
        shown(row.get("compile_seconds")),
    ]


def shown(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return "-"
    return f"{value / unit:,.0f}" if value / unit >= 100 else f"{value / unit:.3g}"


def ratio(times: Mapping[str, Any]) -> str:
    of = times.get("times_reference")
    if of is None:
        return "-"
    low, high = of["10_to_90_percent"]
    return f"{of['median']:.2f} [{low:.2f}-{high:.2f}]"
