"""Names of this project that programs and pages outside the package use."""

import ast
import json
import pkgutil
import re
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("gems_jax", "planning")
OUR_MODULE = r"(?:gems_jax|planning)[\w.]*"
# One statement, also in the middle of a line, as programs in strings have it.
IMPORT = re.compile(rf"from {OUR_MODULE} import (?:\([\w\s,]+\)|\w+(?:, \w+)*)|import {OUR_MODULE}")
DOTTED = re.compile(r"(?<![\w/.-])(gj|gems_jax|planning)((?:\.[A-Za-z_]\w*)+)")


def programs():
    """File -> text of every program that lies outside the package; the blocks of a page are one program."""
    found = {}
    for folder in ("benchmarks", "examples", "launch", "docs"):
        found |= {path: path.read_text() for path in sorted((ROOT / folder).rglob("*.py"))}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(lines) for lines in cells)
        found[path] = re.sub(r"^( *)[%!].*", r"\1pass", text, flags=re.MULTILINE)  # not Python
    for path in pages():
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
        found |= {path: "\n".join(blocks)} if blocks else {}
    return found


def pages():
    """The files that people read."""
    own = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
    return [*own, *sorted((ROOT / "docs").glob("*.md"))]


def imported(node):
    """Full name -> the name it has in the program, of all that an import statement takes from this project."""
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
        return {f"{node.module}.{alias.name}": alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Import):
        ours = [alias for alias in node.names if alias.name.split(".")[0] in OURS]
        return {alias.name: alias.asname or alias.name for alias in ours}
    return {}


def named(program):
    """Full names that a program imports, and those that it reads off the modules among them."""
    nodes = list(ast.walk(ast.parse(program)))
    taken = {(full, name) for node in nodes for full, name in imported(node).items()}
    # A variable of the same name is no module.
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    modules = {name: full for full, name in taken if isinstance(resolved(full), types.ModuleType) and name not in own}
    modules |= {name: name for name in OURS}
    read = {full for full, _ in taken}
    for node in nodes:
        chain = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        first, _, rest = chain.partition(".")
        if first in modules and re.fullmatch(r"[\w.]+", rest):
            read.add(f"{modules[first]}.{rest}")
    return read


def named_in_strings(program):
    """Full names that import statements in a program's strings take."""
    strings = [node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
    lines = [line for text in strings if isinstance(text, str) for line in IMPORT.findall(text)]
    return {full for line in lines for node in ast.parse(line).body for full in imported(node)}


def named_in_prose(page):
    """Full names anywhere on a page."""
    return {first.replace("gj", "gems_jax") + rest for first, rest in DOTTED.findall(page)}


def absent_words(page):
    """Words between backticks of a page that are no file, no folder and no name in the package's code."""
    folders = (*OURS, "tests", "docs", "benchmarks", "launch")
    places = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*")]
    code = [(ROOT / place).read_text() for place in places if place.endswith(".py") and place.startswith(OURS)]
    names = set(re.findall(r"\w+", "\n".join(code)))

    def there(word):
        if "/" in word or word.endswith(".py"):
            return any(f"/{word}" in f"/{place}" for place in places)
        return word.split(".")[-1] in names

    return sorted(word for word in set(re.findall(r"`([A-Za-z_][\w./]*)[`(]", page)) if not there(word))


def resolved(full, absent=None):
    """The module, class, function or value of this name."""
    try:
        return pkgutil.resolve_name(full)
    except (ImportError, AttributeError):
        return absent


def missing(full_names):
    """Those of the names that nothing has."""
    return sorted(full for full in full_names if resolved(full, absent=ast) is ast)
