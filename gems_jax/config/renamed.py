"""Fields that had another name once. The old one is read wherever a configuration is, with a line that says the new."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

# Old to new dotted names, of a field or a section; both are in the same section. A line here is all that a new name
# needs beside the field itself.
RENAMED: Mapping[str, str] = {
    "data.steps": "data.preprocessing",
}


def current_name(name: str) -> str:
    """Today's name of a dotted field.

    Example:
      >>> current_name("data.steps.core"), current_name("train.steps")
      ('data.preprocessing.core', 'train.steps')
    """
    for old, new in RENAMED.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def current_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A kept configuration, nested or with dotted names, by today's names.

    Example:
      >>> current_values({"data": {"steps": {"core": 3}, "seed": 0}})
      {'data': {'preprocessing': {'core': 3}, 'seed': 0}}
      >>> current_values({"data.steps.core": 3})
      {'data.preprocessing.core': 3}
    """
    current: dict[str, Any] = {}
    for name, value in values.items():
        now = current_name(prefix + name)[len(prefix) :]
        current[now] = current_values(value, f"{prefix}{now}.") if isinstance(value, Mapping) else value
    return current


def current_node(node: Any, old: set[str], prefix: str = "") -> Any:
    """The YAML tree of a mapping of fields by today's names.

    Args:
      node: the tree; it stays as it is.
      old: gets the old names that are in it.
      prefix: what comes before the fields' names, with a dot.
    """
    if not isinstance(node, yaml.MappingNode) or not any(name.startswith(prefix) for name in RENAMED):
        return node
    entries = []
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            if isinstance(value, yaml.SequenceNode):
                inner = [current_node(each, old, prefix) for each in value.value]
                value = yaml.SequenceNode(value.tag, inner, value.start_mark, value.end_mark, value.flow_style)
            else:
                value = current_node(value, old, prefix)
        elif isinstance(key, yaml.ScalarNode):
            now = current_name(prefix + key.value)
            if now != prefix + key.value:
                old |= set(old_names(prefix + key.value))
                key = yaml.ScalarNode(key.tag, now[len(prefix) :], key.start_mark, key.end_mark, key.style)
            value = current_node(value, old, f"{now}.")
        entries.append((key, value))
    return yaml.MappingNode(node.tag, entries, node.start_mark, node.end_mark, node.flow_style)


def say_renamed(old: set[str], where: str) -> None:
    """Says the new names of old ones, a line each."""
    for name in sorted(old):
        print(f"gems-jax: {name} in {where} is called {RENAMED[name]} now; the old name is read, too", file=sys.stderr)


def old_names(name: str) -> Iterator[str]:
    """The old name that a dotted field begins with, if it does."""
    return (old for old in RENAMED if name == old or name.startswith(old + "."))
