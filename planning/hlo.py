"""Reads the text of compiled programs (HLO) into instructions: names, shapes, what calls what."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(
    r"(calls|body|condition|to_apply|true_computation|false_computation|branch_computations|called_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+)")
_LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+)")


class Shape(NamedTuple):
    """An array's element type and dimensions, and the number of the memory it lies in: 0 is the device's main one."""

    dtype: str
    dims: tuple[int, ...]
    memory: int = 0

    @property
    def elements(self) -> int:
        count = 1
        for size in self.dims:
            count *= size
        return count

    @property
    def bytes(self) -> float:
        return self.elements * _width(self.dtype)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: such as ``"dot.3"`` and ``"dot"``.
      shapes: of the result; several for a tuple, flattened.
      operands: names of the instructions it reads.
      argument: what stands between the parentheses: a constant's value, a parameter's number.
      attributes: the rest of the line.
      called: computations by role, such as ``{"body": ("region_1",), "condition": ("region_2",)}``.
      root: whether it is the computation's result.
      source: file of the Python code it comes from, ``""`` where the program does not say.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str
    called: Mapping[str, tuple[str, ...]]
    root: bool = False
    source: str = ""

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)


@dataclass
class Program:
    """Computations by name, each its instructions by name in order."""

    computations: dict[str, dict[str, Instruction]] = field(default_factory=dict)
    entry: str = ""

    def root(self, computation: str) -> Instruction:
        return next(x for x in self.computations[computation].values() if x.root)


def parse(text: str) -> Program:
    """A program from the text of ``compiled.as_text()``.

    Raises:
      ValueError: the text holds no entry computation.

    Example:
      >>> import jax
      >>> program = parse(jax.jit(lambda x: x + 1).lower(1.0).compile().as_text())
      >>> [x.shapes[0].dtype for x in program.computations[program.entry].values() if x.opcode == "parameter"]
      ['f32']
    """
    program, sources = Program(), _sources(text)
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _instruction(line, sources)
            if instruction is not None:
                current[instruction.name] = instruction
        elif line.endswith("{") and (head := _HEAD.match(line)):
            current = program.computations.setdefault(head.group(2), {})
            program.entry = head.group(2) if head.group(1) else program.entry
    if not program.entry:
        raise ValueError("this is no compiled program: it has no ENTRY computation; give compiled.as_text()")
    return program


def shapes_of(text: str) -> tuple[Shape, ...]:
    """All shapes in a text.

    Example:
      >>> shapes_of("(f32[2,3]{1,0:T(8,128)S(1)}, pred[])")
      (Shape(dtype='f32', dims=(2, 3), memory=1), Shape(dtype='pred', dims=(), memory=0))
    """
    return tuple(_shapes(text))


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        memory = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        yield Shape(dtype, sizes, int(memory.group(1)) if memory else 0)


def _width(dtype: str) -> float:
    if dtype in _WIDTHS:
        return _WIDTHS[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    if bits is None:
        raise ValueError(f"the compiled program holds arrays of the unknown type {dtype!r}")
    return int(bits.group(1)) / 8


def _closing(text: str, start: int) -> int:
    """Where the parenthesis opened at ``start`` closes."""
    depth = 0
    for end in range(start, len(text)):
        depth += (text[end] == "(") - (text[end] == ")")
        if depth == 0:
            return end
    raise ValueError(f"a parenthesis is not closed in: {text[:200]}")


def _instruction(line: str, sources: Mapping[str, str]) -> Instruction | None:
    left, equals, right = line.strip().partition(" = ")
    if not equals:
        return None
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    opcode, parenthesis, _ = right[end:].partition("(")
    start = end + len(opcode)
    if not parenthesis:
        return None
    stop = _closing(right, start)
    argument, attributes = right[start + 1 : stop], right[stop + 1 :]
    called = {
        role: tuple(name.strip().lstrip("%") for name in (several or one).split(","))
        for role, several, one in _CALLS.findall(attributes)
    }
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode.strip(),
        shapes=shapes_of(right[:end]),
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=attributes,
        called=called,
        root=left.startswith("ROOT "),
        source=_source(attributes, sources),
    )


def _source(attributes: str, sources: Mapping[str, str]) -> str:
    if plain := re.search(r'source_file="([^"]*)"', attributes):
        return plain.group(1)
    frame = re.search(r"stack_frame_id=(\d+)", attributes)
    return sources.get(frame.group(1), "") if frame else ""


def _sources(text: str) -> dict[str, str]:
    """File of each numbered stack frame, from the tables at the head of a program."""
    names: dict[str, str] = {}
    locations: dict[str, str] = {}
    frames: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            break
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            section = line
        elif section == "FileNames" and (named := re.match(r'^(\d+) "(.*)"$', line)):
            names[named.group(1)] = named.group(2)
        elif section == "FileLocations" and (location := _LOCATION.match(line)):
            locations[location.group(1)] = names.get(location.group(2), "")
        elif section == "StackFrames" and (frame := _FRAME.match(line)):
            frames[frame.group(1)] = locations.get(frame.group(2), "")
    return frames
