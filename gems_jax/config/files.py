"""Configuration files: read so that every line has an effect, means one thing, and is named where it is wrong."""

import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from gems_jax.config.paths import begins_elsewhere, beside, is_path, is_relative
from gems_jax.config.ranges import hints_of, wrong_value
from gems_jax.config.renamed import current_node, say_renamed
from gems_jax.first_few import first_few

# A configuration is written by hand: more than this is another file, or one that is meant to do harm.
MOST_BYTES = 1 << 18
MOST_DEPTH = 16
MOST_VALUES = 10_000
MOST_ALIASES = 30
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Numbers as YAML 1.2 has them (``1e-3``), dates as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in rules if not tag.endswith((":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
# An integer is one before it is a number with a fraction.
for _rules in _Loader.yaml_implicit_resolvers.values():
    _rules.sort(key=lambda rule: not rule[0].endswith(":int"))


def read_config(path: str, known: Mapping[str, Any]) -> str:
    """A configuration file as YAML text, checked whole, its paths such as the working directory reads them.

    Relative paths begin in the file's folder. Those of a work directory's ``config.yaml`` are absolute; relative ones
    there are of an older version, and begin in the working directory.

    Args:
      path: of the file.
      known: name to type of what may stand at the top, dataclasses for sections.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no small UTF-8 file of YAML, a key twice, fields that are unknown or cannot have their values; all of
        them are named, with their lines.
    """
    file = Path(path)
    if file.is_dir():
        names = sorted(entry.name for entry in file.glob("*.y*ml"))
        there = f"it holds {first_few(names, 3)}" if names else "give a YAML file"
        raise ValueError(f"--config {path} is a folder: {there}")
    if not file.exists():
        raise FileNotFoundError(f"--config {path} does not exist")
    with file.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES:,} bytes: that is no configuration")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}): that is no configuration") from None
    is_kept = file.name == "config.yaml" and (file.parent / "checkpoints").is_dir()
    node = checked_node(text, path, known, say_old=not is_kept)  # nobody may edit what is kept
    _resolve(node, path, "." if is_kept else file.parent, is_kept)
    return yaml.serialize(node)


def checked_node(text: str, where: str, known: Mapping[str, Any], prefix: str = "", say_old: bool = True) -> Any:
    """YAML text of fields as a tree by today's names, checked.

    Args:
      text: the text.
      where: file or option, for messages.
      known: as in `read_config`; of the fields under ``prefix``.
      prefix: what comes before the fields' names, with a dot.
      say_old: whether old names are told.
    """
    old: set[str] = set()
    node = current_node(compose(text, where), old, prefix)
    if say_old:
        say_renamed(old, where)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{where} holds no fields: write sections and fields, such as train: {{steps: 500}}")
    wrong = [f"line {line}: {said}" for line, said in sorted(_wrong(node, known, prefix, {}), key=lambda each: each[0])]
    if wrong:
        raise ValueError(f"{where}, {wrong[0]}" if len(wrong) == 1 else "\n  ".join([f"{where}:", *wrong]))
    return node


def compose(text: str, where: str) -> Any:
    """The tree of one document of bounded depth and size, also when aliases are replaced by what they stand for."""
    depth = values = aliases = documents = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            values += isinstance(event, yaml.NodeEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            documents += isinstance(event, yaml.DocumentStartEvent)
            line = event.start_mark.line + 1
            if depth > MOST_DEPTH:
                raise ValueError(f"{where}, line {line}: nested deeper than {MOST_DEPTH} levels")
            if values > MOST_VALUES or aliases > MOST_ALIASES:
                raise ValueError(
                    f"{where}, line {line}: more than {MOST_VALUES:,} values or {MOST_ALIASES} aliases: that is no "
                    "configuration"
                )
            if documents > 1:
                raise ValueError(f"{where}, line {line}: a second document begins; a configuration is one")
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark else ""
        said = " ".join(filter(None, (error.context, error.problem)))
        hint = ": indent by spaces" if "'\\t'" in said else ""
        raise ValueError(f"{where}{at}: {said}{hint}") from None
    except yaml.YAMLError as error:  # characters that YAML has not
        raise ValueError(f"{where} is no YAML: {str(error).splitlines()[0]}") from None
    if _size(node, {}) > MOST_VALUES:
        raise ValueError(f"{where}: its aliases stand for more than {MOST_VALUES:,} values: that is no configuration")
    return node


def _size(node: Any, known: dict[int, float]) -> float:
    """Values in a tree, aliases counted as what they stand for; without end where one stands for itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")
        known[id(node)] = 1 + sum(_size(child, known) for child in _children(node))
    return known[id(node)]


def _children(node: Any) -> Iterator[Any]:
    for child in node.value:
        yield from child if isinstance(child, tuple) else (child,)


def _wrong(node: Any, known: Mapping[str, Any], prefix: str, seen: dict[str, int]) -> Iterator[tuple[int, str]]:
    """Lines and what is wrong there, in a mapping of fields.

    Args:
      node: the mapping.
      known: name to type.
      prefix: of the names, with a dot.
      seen: lines of the fields met so far, by dotted name: ``train.steps`` may be written in two ways.
    """
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == _MERGE:
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(merged, yaml.MappingNode):
                    yield from _wrong(merged, known, prefix, {})
            continue
        if not isinstance(key, yaml.ScalarNode) or not key.value:
            yield line, f"a name of a field is needed{f' in {prefix[:-1]}' if prefix else ''}"
            continue
        first, _, rest = key.value.partition(".")
        name = prefix + first
        if not rest:
            if name in seen:
                yield line, f"{name} is given twice, first in line {seen[name]}"
            seen.setdefault(name, line)
        if first not in known:
            yield line, f"{name} is no field; {_nearest(name, known, prefix)}"
            continue
        inner = section_of(known[first])
        if rest:  # "train.steps" at the top
            entry = (yaml.ScalarNode("tag:yaml.org,2002:str", rest, key.start_mark, key.end_mark), value)
            value = yaml.MappingNode("tag:yaml.org,2002:map", [entry], key.start_mark, key.end_mark)
        if inner is not None and isinstance(value, yaml.MappingNode):
            yield from _wrong(value, hints_of(inner), name + ".", seen)
            continue
        yield from wrong_leaf(name, known[first], value)


def wrong_leaf(name: str, hint: Any, node: Any) -> Iterator[tuple[int, str]]:
    """Lines and what is wrong there, in the tree of one field's value."""
    for inner in _mappings(node):
        yield from _twice(inner, name)
    line = node.start_mark.line + 1
    try:
        value = _value_of(node)
    except yaml.YAMLError as error:
        yield line, f"{name}: {getattr(error, 'problem', error)}"
        return
    except TypeError:  # a mapping as a key
        yield line, f"{name}: a name of an entry must be text"
        return
    section = section_of(hint)
    if section is not None and not (value is None and type(None) in get_args(hint)):
        yield line, f"{name} must be a mapping of its fields ({', '.join(list(hints_of(section))[:4])}, ...)"
        return
    if isinstance(value, str):  # numbers in quotes
        value = _as_number(value, hint)
    if said := wrong_value(name, hint, value):
        yield line, said


def _as_number(text: str, hint: Any) -> Any:
    kinds = {hint, *get_args(hint)}
    if str in kinds or not kinds & {int, float}:
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _twice(node: Any, owner: str) -> Iterator[tuple[int, str]]:
    """Keys of a mapping that it has already; ``owner`` is the field it is a part of."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        line, name = key.start_mark.line + 1, str(key.value)
        if (key.tag, name) in lines:
            yield line, f"{owner}.{name} is given twice, first in line {lines[key.tag, name]}"
        lines.setdefault((key.tag, name), line)


def _mappings(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        yield node
    if isinstance(node, yaml.CollectionNode):
        for child in _children(node):
            yield from _mappings(child)


def _value_of(node: Any) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _nearest(name: str, known: Mapping[str, Any], prefix: str) -> str:
    """The known field that is most like a name, here or one level down, or those there are."""
    names = [prefix + each for each in known]
    names += [f"{prefix}{each}.{inner}" for each, hint in known.items() for inner in _fields_of(hint)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


@functools.cache
def section_of(hint: Any) -> type | None:
    """The dataclass that a type is, or may be beside null."""
    return next((each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)), None)  # type: ignore[return-value]


def _fields_of(hint: Any) -> list[str]:
    """Fields of a section that are no sections."""
    section = section_of(hint)
    return [name for name, each in hints_of(section).items() if section_of(each) is None] if section else []


def _resolve(node: Any, path: str, folder: Any, is_kept: bool, prefix: str = "") -> None:
    """Rewrites the tree's paths; says where one can be mistaken for another."""
    for index, (key, value) in enumerate(node.value):
        name = prefix[:-1] if key.tag == _MERGE else prefix + str(key.value)
        if isinstance(value, yaml.MappingNode):
            _resolve(value, path, folder, is_kept, f"{name}." if name else "")
        elif key.tag == _MERGE:
            for merged in value.value:
                _resolve(merged, path, folder, is_kept, f"{name}." if name else "")
        elif isinstance(value, yaml.ScalarNode) and value.tag.endswith(":str") and is_path(name, value.value):
            resolved = beside(value.value, folder)
            node.value[index] = (key, yaml.ScalarNode(value.tag, resolved, value.start_mark, value.end_mark, '"'))
            if is_kept and is_relative(value.value):
                _say(f"{name} in {path} is relative, as older versions kept it: it begins in the working directory")
            elif not is_kept and begins_elsewhere(value.value, resolved):
                _say(
                    f"{name} {value.value!r} is relative to {path}, so it is {resolved}, which does not exist yet; "
                    "that of the same name in the working directory is not used"
                )


def _say(text: str) -> None:
    print(f"gems-jax: {text}", file=sys.stderr)
