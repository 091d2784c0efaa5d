"""The ends of the versions that pyproject.toml allows, as constraints for pip: `ends.py lowest`, `ends.py newest`."""

import re
import sys
import tomllib
from pathlib import Path

# Those whose ranges docs/install.md states.
STATED = ("jax", "flax", "optax", "orbax-checkpoint", "transformers")


def ranges():
    """Name -> (lowest version, first version that is too new), of the stated packages."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    found = {}
    for line in project["dependencies"] + project["optional-dependencies"]["train"]:
        name, low, high = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<([\d.]+))?", line).groups()
        found[name] = (low, high)
    return {name: found[name] for name in STATED}


if __name__ == "__main__":
    for package, (lowest, _) in ranges().items():
        if sys.argv[1] == "lowest":  # the newest that the ranges allow is what pip takes by itself
            print(f"{package}=={lowest}")
