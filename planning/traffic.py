"""Bytes that an instruction of a compiled program moves between a device's main memory and its registers."""

import re

from planning.hlo import Instruction, Program

# What moves nothing, or is counted where it starts or in the computation it calls.
_NOTHING = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|after-all|partition-id|replica-id|"
    r"add-dependency|opt-barrier|async-\w+|send|recv|[\w-]+-done"
)


def moved_bytes(program: Program, x: Instruction, body: dict[str, Instruction]) -> float:
    """Bytes that an instruction reads and writes; a fusion as a whole, arrays in the main memory alone.

    Slices count as what they take out of or put into an array, not as the whole array: a scan's body reads its
    own layer of a stack.

    Args:
      program: for the computations of fusions.
      x: the instruction.
      body: the computation it stands in.
    """
    if _NOTHING.fullmatch(x.opcode):
        return 0.0
    if x.opcode == "copy-start":
        return sum(_there(shape.bytes, shape.memory) for shape in x.shapes[:2])
    if x.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _main(x)
    if x.opcode in ("dynamic-update-slice", "scatter"):
        update = body.get(x.operands[1 if x.opcode == "dynamic-update-slice" else -1])
        return 2 * _main(update) if update is not None else 0.0
    if x.opcode != "fusion":
        return _main(x) + sum(_main(body[name]) for name in x.operands if name in body)
    inner = program.computations[x.called["calls"][0]]
    total = _written(program, next(i for i in inner.values() if i.root), inner)
    for number, name in enumerate(x.operands):
        if name in body:
            total += min(_main(body[name]), _read(program, inner, number))
    return total if any(shape.memory == 0 for shape in x.shapes) else total - _written_elsewhere(program, x, inner)


def _there(size: float, memory: int) -> float:
    return size if memory == 0 else 0.0


def _main(x: Instruction) -> float:
    """Bytes of an instruction's result that lie in the main memory."""
    return sum(_there(shape.bytes, shape.memory) for shape in x.shapes)


def _read(program: Program, inner: dict[str, Instruction], number: int) -> float:
    """How much of its parameter a fused computation reads."""
    parameter = next((i for i in inner.values() if i.opcode == "parameter" and i.argument == str(number)), None)
    return 0.0 if parameter is None else _taken(program, parameter, inner)


def _taken(program: Program, x: Instruction, inner: dict[str, Instruction]) -> float:
    total = 0.0
    for user in inner.values():
        if x.name not in user.operands:
            continue
        if user.opcode == "dynamic-slice" and user.operands[0] == x.name:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == x.name:
            continue  # updated in place
        elif user.opcode == "bitcast":
            total += _taken(program, user, inner)
        elif user.opcode == "fusion":
            nested = program.computations[user.called["calls"][0]]
            total += sum(_read(program, nested, i) for i, name in enumerate(user.operands) if name == x.name)
        elif user.opcode not in ("tuple", "get-tuple-element"):
            return x.bytes
    return min(total, x.bytes)


def _written(program: Program, root: Instruction, inner: dict[str, Instruction]) -> float:
    """Bytes that a fused computation writes: the update alone where it is in place, none of a passed argument."""
    if root.opcode == "tuple":
        return sum(_written(program, inner[name], inner) for name in root.operands if name in inner)
    if root.opcode == "bitcast" and root.operands[0] in inner:
        return _written(program, inner[root.operands[0]], inner)
    if root.opcode == "dynamic-update-slice":
        return inner[root.operands[1]].bytes
    if root.opcode == "parameter":
        return 0.0
    return _main(root)


def _written_elsewhere(program: Program, x: Instruction, inner: dict[str, Instruction]) -> float:
    """Bytes that `_written` counted although the fusion's result is not in the main memory."""
    return _written(program, next(i for i in inner.values() if i.root), inner)
