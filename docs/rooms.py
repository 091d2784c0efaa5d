"""The rooms of the package, read off its imports: `python docs/rooms.py` draws them to docs/rooms.svg.

`tests/test_house.py` holds the imports to the floors below, and the drawing to the imports.
"""

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up. A module is in the room of the longest name here that its own begins with.
FLOORS = (
    ("gems_jax.types", "gems_jax.version", "gems_jax.first_few", "gems_jax.google_store"),
    ("gems_jax.object_store",),
    ("gems_jax.boxes", "gems_jax.extra_arguments", "gems_jax.staging", "gems_jax.whole_number"),
    ("gems_jax.argument_checks", "gems_jax.leaf_path", "gems_jax.checksums"),
    ("gems_jax.masked_leaves", "gems_jax.task_batch"),
    ("gems_jax.task_grads", "gems_jax.linalg"),
    ("gems_jax.null_space", "gems_jax.baselines"),
    ("gems_jax.transform",),
    ("gems_jax.projected",),
    ("gems_jax.models",),
    ("gems_jax.items",),
    ("gems_jax.data",),
    ("gems_jax.ranking", "gems_jax.config", "gems_jax.identifiers"),
    ("gems_jax.neural_rankers",),
    ("gems_jax.evaluation",),
    ("gems_jax.report",),
    ("gems_jax.training",),
    ("gems_jax.study", "planning"),
    ("gems_jax.arguments", "gems_jax.failures"),
    ("gems_jax.serving", "gems_jax.completion"),
    ("gems_jax.commands",),
    ("gems_jax.cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
CORE = {room for rooms in FLOORS[:9] for room in rooms}
WIDTH, HEIGHT, GAP, LEFT = 190, 34, 26, 20


def modules():
    """Name -> file of every module."""
    found = {}
    for top in ("gems_jax", "planning"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(source, known, when_loaded=False):
    """Modules that a text imports: ours as in ``known``, others by their first name.

    Anywhere, inside functions too, or only those that loading it brings along.
    """
    names = set()
    tree = ast.parse(source)
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"imports are absolute, not from {'.' * node.level}{node.module or ''}")
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in full}
    return {name if name in known else name.partition(".")[0] for name in names}


def room_of(module):
    """The room of a module; ``None``: the package itself, which has the public names."""
    while module not in FLOOR_OF and "." in module:
        module = module.rpartition(".")[0]
    return module if module in FLOOR_OF else None


def needs(imports):
    """Room -> rooms that it imports."""
    found = {room: set() for room in FLOOR_OF}
    for module, names in imports.items():
        here = room_of(module)
        if here:
            found[here] |= {room_of(name) for name in names & set(imports)} - {here, None}
    return found


def direct(rooms):
    """Without what follows from the rest: a room that is reached through another one is not drawn again."""

    def reached(room):
        return rooms[room].union(*(reached(below) for below in rooms[room]))

    return {room: {b for b in below if not any(b in reached(o) for o in below - {b})} for room, below in rooms.items()}


def drawing(imports):
    """The rooms as SVG, the command on top; lines lead to what a room imports."""
    middle, boxes = {}, []
    for floor, rooms in enumerate(FLOORS):
        y = GAP + (len(FLOORS) - 1 - floor) * (HEIGHT + GAP)
        for place, room in enumerate(rooms):
            x = LEFT + place * (WIDTH + 2 * GAP) + (floor % 2) * GAP
            count = sum(room_of(name) == room for name in imports)
            middle[room] = (x + WIDTH / 2, y)
            fill = "#dcebfa" if room in CORE else "#f3f0e6"
            label = f"{room.removeprefix('gems_jax.')}{'' if count == 1 else f' ({count} files)'}"
            boxes.append(
                f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="{fill}" stroke="#456"/>'
                f'<text x="{x + WIDTH / 2}" y="{y + HEIGHT / 2 + 4}" text-anchor="middle">{escape(label)}</text>'
            )
    lines = []
    for room, below in sorted(direct(needs(imports)).items()):
        for other in sorted(below):
            (x, y), (to_x, to_y) = middle[room], middle[other]
            lines.append(f'<line x1="{x}" y1="{y + HEIGHT}" x2="{to_x}" y2="{to_y}" stroke="#9ab"/>')
    width = 2 * LEFT + GAP + max(map(len, FLOORS)) * (WIDTH + 2 * GAP)
    height = GAP + len(FLOORS) * (HEIGHT + GAP)
    size = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *lines, *boxes, "</svg>"]) + "\n"


def read():
    """Module -> what it imports."""
    known = modules()
    return {name: imported(path.read_text(), known) for name, path in known.items()}


if __name__ == "__main__":
    (ROOT / "docs" / "rooms.svg").write_text(drawing(read()))
