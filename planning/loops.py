"""How often the loops of a compiled program run."""

import math
import re
from typing import NamedTuple

from planning.hlo import Instruction, Program


class Value(NamedTuple):
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
      computation: where it stands.
    """
    if said := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
        return int(said.group(1))
    (condition,), (body,) = loop.called["condition"], loop.called["body"]
    compared = _root(program, condition)
    if compared.at.opcode != "compare" or "direction=LT" not in compared.at.attributes:
        return None
    counter, bound = (_operand(program, compared, n, condition) for n in range(2))
    index = counter and re.search(r"index=(\d+)", counter.at.attributes)
    if bound is None or bound.at.opcode != "constant" or not index:
        return None
    place = int(index.group(1))
    begin, step = _element(program, loop.operands[0], computation, place), _increment(program, body, place)
    if begin is None or step is None:
        return None
    return max(0, math.ceil((int(bound.at.argument) - begin) / step))


def _root(program: Program, computation: str) -> Value:
    """A computation's result, seen through one fusion."""
    root = program.root(computation)
    if root.opcode != "fusion":
        return Value(root, computation)
    (inner,) = root.called["calls"]
    return Value(program.root(inner), inner)


def _operand(program: Program, value: Value, number: int, outside: str) -> Value | None:
    """An operand; a fusion's parameter is what the computation ``outside`` gives it."""
    found = program.computations[value.computation].get(value.at.operands[number])
    if found is None:
        return None
    if found.opcode == "parameter" and value.computation != outside:
        fusion = next(
            x for x in program.computations[outside].values() if value.computation in x.called.get("calls", ())
        )
        return Value(program.computations[outside][fusion.operands[int(found.argument)]], outside)
    return Value(found, value.computation)


def _element(program: Program, name: str, computation: str, place: int) -> int | None:
    """The constant at a place of the tuple that a loop begins with."""
    body = program.computations[computation]
    start = body.get(name)
    if start is None or start.opcode != "tuple":
        return None
    first = body.get(start.operands[place])
    while first is not None and first.opcode in ("copy", "bitcast"):
        first = body.get(first.operands[0])
    return int(first.argument) if first is not None and first.opcode == "constant" else None


def _increment(program: Program, body: str, place: int) -> int | None:
    """What a loop's body adds to its counter."""
    inside, root = program.computations[body], program.root(body)
    if root.opcode != "tuple":
        return None
    added = Value(inside[root.operands[place]], body)
    while added.at.opcode in ("copy", "bitcast"):
        added = Value(inside[added.at.operands[0]], body)
    if added.at.opcode == "fusion":
        (inner,) = added.at.called["calls"]
        added = Value(program.root(inner), inner)
    if added.at.opcode != "add":
        return None
    parts = [_operand(program, added, n, body) for n in range(2)]
    steps = [int(part.at.argument) for part in parts if part is not None and part.at.opcode == "constant"]
    return steps[0] if len(steps) == 1 and steps[0] > 0 else None
