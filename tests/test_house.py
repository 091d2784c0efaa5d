"""Rooms of the package: each imports what stands below it alone, no two files need each other, the core is light."""

import sys

import pytest
from house import DOCS, MODULES, rooms

import gems_jax as gj

IMPORTS = rooms.read()


def upward(imports):
    """Pairs of modules of which the first imports the second, in another room that does not stand below."""
    found = []
    for module, names in imports.items():
        for other in sorted(names & set(imports)):
            here, there = rooms.room_of(module), rooms.room_of(other)
            if here and here != there and (there is None or rooms.FLOOR_OF[there] >= rooms.FLOOR_OF[here]):
                found.append((module, other))
    return found


def circles(imports):
    """Sets of modules that reach each other by imports, functions' own included."""
    reached = {}
    for start in imports:
        seen, waiting = set(), [start]
        while waiting:
            for other in imports[waiting.pop()] & set(imports):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        reached[start] = seen
    return sorted({tuple(sorted(m for m in reached[s] if s in reached[m])) for s in imports if s in reached[s]})


def test_every_module_is_in_a_room():
    assert [name for name in MODULES if rooms.room_of(name) is None] == ["gems_jax"]


def test_rooms_import_what_stands_below_them():
    assert upward(IMPORTS) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(IMPORTS) == []


def test_loading_the_core_imports_jax_and_optax_alone():
    allowed = set(sys.stdlib_module_names) | {"jax", "optax", "numpy", "gems_jax"}
    core = {name: path.read_text() for name, path in MODULES.items() if rooms.room_of(name) in rooms.CORE}
    loaded = {name: rooms.imported(text, MODULES, when_loaded=True) for name, text in core.items()}
    assert {(name, other) for name, names in loaded.items() for other in names - allowed - set(MODULES)} == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from gems_jax.transform.step import take_step", "upward"),
        ("def f():\n    import gems_jax.cli", "upward"),
        ("from gems_jax.linalg import polar", "circle"),
    ],
)
def test_an_import_that_runs_up_or_in_a_circle_is_found(text, found):
    changed = IMPORTS | {"gems_jax.linalg.polar": IMPORTS["gems_jax.linalg.polar"] | rooms.imported(text, MODULES)}
    if found == "upward":
        assert [pair[0] for pair in upward(changed)] == ["gems_jax.linalg.polar"]
    else:
        assert ("gems_jax.linalg.polar",) in circles(changed)


def test_public_names_are_listed_and_found():
    assert set(gj._LAZY) <= set(gj.__all__) <= set(dir(gj))
    assert all(getattr(gj, name) is not None for name in gj.__all__)


def test_the_drawing_shows_the_imports_as_they_are():
    assert (DOCS / "rooms.svg").read_text() == rooms.drawing(IMPORTS), "run: python docs/rooms.py"
