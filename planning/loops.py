"""How often the loops of a compiled program run."""

import math
import re
from typing import NamedTuple

from planning.hlo import Instruction, Program


class LocatedInstruction(NamedTuple):
    """An instruction and the computation it stands in."""

    at: Instruction
    computation: str


def trip_count(program: Program, loop: Instruction, computation: str) -> int | None:
    """How often a loop runs; ``None`` where that is data.

    XLA says so on CPU and GPU. On TPU it is read off a condition ``counter < constant``, where the counter begins at
    a constant and its body adds one.

    Args:
      program: the whole.
      loop: a ``while``.
      computation: that it stands in.
    """
    if said := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
        return int(said.group(1))
    (condition,), (body,) = loop.called["condition"], loop.called["body"]
    compared = _root(program, condition)
    if compared.at.opcode != "compare" or "direction=LT" not in compared.at.attributes:
        return None
    counter, bound = (_operand(program, compared, n, condition) for n in range(2))
    written = counter and re.search(r"index=(\d+)", counter.at.attributes)
    if bound is None or bound.at.opcode != "constant" or not written:
        return None
    index = int(written.group(1))
    begin, step = _element(program, loop.operands[0], computation, index), _increment(program, body, index)
    if begin is None or step is None:
        return None
    return max(0, math.ceil((int(bound.at.argument) - begin) / step))


def _root(program: Program, computation: str) -> LocatedInstruction:
    """A computation's result, seen through one fusion."""
    root = program.root(computation)
    if root.opcode != "fusion":
        return LocatedInstruction(root, computation)
    (inner,) = root.called["calls"]
    return LocatedInstruction(program.root(inner), inner)


def _operand(program: Program, value: LocatedInstruction, number: int, outside: str) -> LocatedInstruction | None:
    """An operand; a fusion's parameter is what the computation ``outside`` gives it."""
    operand = program.computations[value.computation].get(value.at.operands[number])
    if operand is None:
        return None
    if operand.opcode == "parameter" and value.computation != outside:
        fusion = next(
            x for x in program.computations[outside].values() if value.computation in x.called.get("calls", ())
        )
        return LocatedInstruction(program.computations[outside][fusion.operands[int(operand.argument)]], outside)
    return LocatedInstruction(operand, value.computation)


def _element(program: Program, name: str, computation: str, index: int) -> int | None:
    """The constant at an index of the tuple that a loop begins with."""
    body = program.computations[computation]
    start = body.get(name)
    if start is None or start.opcode != "tuple":
        return None
    first = body.get(start.operands[index])
    while first is not None and first.opcode in ("copy", "bitcast"):
        first = body.get(first.operands[0])
    return int(first.argument) if first is not None and first.opcode == "constant" else None


def _increment(program: Program, body: str, index: int) -> int | None:
    """The constant that a loop's body adds to its counter."""
    inside, root = program.computations[body], program.root(body)
    if root.opcode != "tuple":
        return None
    added = LocatedInstruction(inside[root.operands[index]], body)
    while added.at.opcode in ("copy", "bitcast"):
        added = LocatedInstruction(inside[added.at.operands[0]], body)
    if added.at.opcode == "fusion":
        (inner,) = added.at.called["calls"]
        added = LocatedInstruction(program.root(inner), inner)
    if added.at.opcode != "add":
        return None
    parts = [_operand(program, added, n, body) for n in range(2)]
    steps = [int(part.at.argument) for part in parts if part is not None and part.at.opcode == "constant"]
    return steps[0] if len(steps) == 1 and steps[0] > 0 else None
