"""What the pages show: fenced blocks, and commands, those between backticks in a text among them."""

import os
import re
import subprocess
from typing import NamedTuple

from named_code import ROOT, pages

PROGRAMS = ("gems-jax", "python", "make", "pip", "docker", "kubectl", "curl", "sbatch", "hf", ".venv/bin/python")
SCRIPTS = ("local.sh", "gpu.sh", "tpu_vm.sh", "render_jobset.py")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMES = "|".join(map(re.escape, (*PROGRAMS, "source", *(f"launch/{name}" for name in SCRIPTS))))
_COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{_NAMES}) \S")
# Writes down the page, the variables before the command that scripts take, and the words as the shell made them.
_NOTES = """#!/bin/bash
{ printf '%s\\0' "$PAGE" "${0#"$PLACE"/}" "$@"; printf '\\n'; } >> "$NOTED"
"""


class Block(NamedTuple):
    """A fenced block, and the line before it."""

    page: str
    language: str
    text: str
    before: str


def blocks():
    """All fenced blocks of all pages."""
    found = []
    for path in pages():
        text = path.read_text()
        for block in _FENCED.finditer(text):
            before = text[: block.start()].rstrip().rpartition("\n")[2]
            found.append(Block(path.relative_to(ROOT).as_posix(), block[1], block[2], before))
    return found


def fenced(page, language):
    """The texts of a page's blocks in one language."""
    return [block.text for block in blocks() if (block.page, block.language) == (page, language)]


def run(page):
    """What the page's Python defines, run block after block."""
    programs, defined = fenced(page, "python"), {"__name__": "page"}
    assert programs
    for number, program in enumerate(programs):
        exec(compile(program, f"{page}, block {number + 1}", "exec"), defined)  # noqa: S102
    return defined


def hidden():
    """Code that no fence shows, by the spaces before it: none of the tests would find it."""
    found = []
    for path in pages():
        text = _FENCED.sub("", path.read_text())
        found += [(path.name, line) for line in re.findall(r"\n\n(?: {4,}|\t)(\S.*)", text)]
    return found


def quoted():
    """Page and text of every command between backticks that has words behind its name."""
    found = []
    for path in pages():
        for text in re.findall(r"`([^`]+)`", _FENCED.sub("", path.read_text())):
            words = " ".join(text.replace("\\|", "|").split())
            if _COMMAND.match(words):
                found.append((path.relative_to(ROOT).as_posix(), words))
    return list(dict.fromkeys(found))


def commands(folder):
    """``(page, words)`` of every command of all pages, as bash divides them.

    Bash runs the blocks and what stands between backticks, with programs in the place of the real ones that write down
    what they are called with.

    Args:
      folder: an empty one, in which it runs.
    """
    bin_folder, noted = folder / "bin", folder / "noted"
    script = ["set -e"]
    for name in (*(f"bin/{name}" for name in PROGRAMS), *(f"launch/{name}" for name in SCRIPTS)):
        place = folder / (name.removeprefix("bin/") if name.startswith("bin/.") else name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_NOTES)
        place.chmod(0o755)
    for block in blocks():
        if block.language == "bash":
            script += [f"export PAGE={block.page}", f"(\n{block.text})"]
    for page, words in quoted():
        script += [f"export PAGE={page}", f"( {words} )"]
    environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "NOTED": str(noted), "PLACE": str(folder)}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\0") for line in noted.read_text().removesuffix("\0\n").split("\0\n")]
    return [(page, [program.removeprefix("bin/"), *words]) for page, program, *words in lines]
