"""Rooms of the package: each imports what stands below it alone, no two files need each other, the core is light.

And what stands outside the package calls things in it by the names that they have.
"""

import sys

import pytest
from house import DOCS, MODULES, leaderboard, performance, results, rooms
from named_code import ROOT, absent_words, missing, named, named_in_prose, named_in_strings, pages, programs

import gems_jax as gj

IMPORTS = rooms.read()
PROGRAMS = programs()


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


def test_the_page_of_what_a_step_costs_has_the_results_as_they_are():
    assert (DOCS / "performance.md").read_text() == performance.page(), "run: python docs/performance.py"


def test_the_page_of_what_has_to_be_beaten_has_the_results_as_they_are():
    assert (DOCS / "leaderboard.md").read_text() == leaderboard.page(), "run: python docs/leaderboard.py"


def test_the_picture_of_the_results_is_of_the_results_as_they_are():
    assert (DOCS / "results.svg").read_text() == results.drawing(), "run: python docs/results.py"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_outside_the_package_takes_names_that_are_there(path):
    assert missing(named(PROGRAMS[path])) == []


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_speaks_of_names_that_are_there(path):
    assert missing(named_in_prose(path.read_text())) == []


def test_the_tour_of_the_house_names_files_and_functions_that_are_there():
    assert absent_words((DOCS / "architecture.md").read_text()) == []
    page = "`transform/gone.py` has `no_such_name(x)`, not `gone/`, as `transform/step.py` has `take_step`"
    assert absent_words(page) == ["gone/", "no_such_name", "transform/gone.py"]


def test_programs_in_strings_of_tests_import_names_that_are_there():
    # But for this file, which has names that are gone.
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name != "test_house.py"}
    assert {path: names for path, text in texts.items() if (names := missing(named_in_strings(text)))} == {}


@pytest.mark.parametrize(
    ("names", "text", "gone"),
    [
        (named, "def f():\n    from gems_jax.task_grads import merge_tasks, absent", "gems_jax.task_grads.absent"),
        (named, "import gems_jax.absent", "gems_jax.absent"),
        (named, "import planning.costs as m\nm.absent(1)", "planning.costs.absent"),
        (named, "import gems_jax.linalg\ngems_jax.linalg.absent", "gems_jax.linalg.absent"),
        (named, "import gems_jax as gj\ngj.gates.constant, gj.gates.absent()", "gems_jax.gates.absent"),
        (named_in_prose, "Call `gj.gems`, not `gj.absent(x)`.", "gems_jax.absent"),
        (named_in_strings, "run('import jax; import gems_jax.absent')", "gems_jax.absent"),
        (named_in_strings, "run('from gems_jax import (\\n    gems,\\n    absent,\\n)')", "gems_jax.absent"),
    ],
)
def test_a_name_that_is_gone_is_found(names, text, gone):
    assert missing(names(text)) == [gone]
