#!/usr/bin/env python3
"""Fills launch/gke_jobset.yaml from the environment and prints one of its JobSets: render_jobset.py tpu|gpu OPTIONS."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TEMPLATE = Path(__file__).with_name("gke_jobset.yaml")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
# What can stand in a YAML scalar without quotes and in a name of Kubernetes.
_PLAIN = re.compile(r"[\w./:@-]+")


def render(template: str, variant: str, variables: Mapping[str, str], arguments: Sequence[str]) -> str:
    """One document of the template with its variables filled in.

    Args:
      template: documents, each with the label ``variant``.
      variant: of the document to take.
      variables: values; those missing take the template's defaults.
      arguments: of the command.

    Raises:
      ValueError: an unknown variant, a variable without value and default, a value that YAML would read otherwise.
    """
    documents = {
        label.group(1): part
        for part in template.split("\n---\n")
        if (label := re.search(r"labels: \{variant: (\w+)\}", part))
    }
    if variant not in documents:
        raise ValueError(f"the variant {variant!r} is unknown; choose {' or '.join(sorted(documents))}")

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name == "ARGUMENTS":
            return json.dumps(list(arguments))
        chosen = variables.get(name) or default
        if chosen is None:
            raise ValueError(f"{name} has no default: set it in the environment")
        if not _PLAIN.fullmatch(chosen):
            raise ValueError(f"{name}={chosen!r} may hold letters, digits and . / : @ _ - alone")
        return chosen

    return "---\n" + _VARIABLE.sub(value, documents[variant]).rstrip("\n") + "\n"


def main(argv: Sequence[str]) -> int:
    if not argv:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(render(TEMPLATE.read_text(encoding="utf-8"), argv[0], os.environ, argv[1:]), end="")
    except ValueError as error:
        print(f"render_jobset.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
