"""Programs of examples/ run as they stand, and differ from other loops by the lines that they show."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ALL = {path.stem: path for path in sorted(EXAMPLES.glob("*.py"))}
# Eight devices need a process of their own, tunix an environment of its own (make example-tunix).
IN_THIS_PROCESS = sorted(set(ALL) - {"scan_on_a_mesh", "tunix_trainer"})


def untrue(program):
    """Lines of a program's diff that it has and should not have, or has not and should have."""
    block = re.search(r"```diff\n(.*?)```", ast.get_docstring(ast.parse(program)), re.DOTALL).group(1)
    code = {re.sub(r"  # noqa.*", "", line) for line in program.replace(block, "").splitlines()}
    changed = [line for line in block.splitlines() if line[0] in "+-"]
    assert {line[0] for line in changed} == {"+", "-"}
    assert len(changed) <= 10
    return [line for line in changed if (line[1:] in code) != (line[0] == "+")]


@pytest.mark.parametrize("name", IN_THIS_PROCESS)
def test_an_example_runs_and_its_own_checks_hold(name, capsys):
    runpy.run_path(str(ALL[name]))
    assert "->" in capsys.readouterr().out


def test_the_example_on_a_mesh_finds_eight_devices():
    done = subprocess.run([sys.executable, ALL["scan_on_a_mesh"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on 8 devices" in done.stdout


@pytest.mark.parametrize("name", ALL)
def test_an_example_shows_what_it_changes_in_a_loop(name):
    assert untrue(ALL[name].read_text()) == []


def test_a_diff_that_is_not_the_program_s_is_found():
    program = ALL["constrained_adamw"].read_text()
    start, behind = program.split("```\n", 1)
    assert untrue(f"{start}```\n{behind.replace('optax.chain(', 'optax.chained(')}") == [
        "+tx = optax.chain(optax.adamw(1e-2), gj.constrain_to_null_space(null_space))"
    ]
    assert untrue(program + "tx = optax.adamw(1e-2)\n") == ["-tx = optax.adamw(1e-2)"]


def test_the_list_of_examples_is_whole():
    listed = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(ALL)
