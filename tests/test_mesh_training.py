"""Training on eight devices, in one process and in two: the numbers, the places and the programs of one device's."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sharded_training
from sharded_training import FAMILIES, MESHES, STEPS, TOGETHER, arrays_in, difference

RUNS = [(family, mesh) for family, meshes in FAMILIES.items() for mesh in meshes]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of one process and, beside it, two that train together."""
    folder = tmp_path_factory.mktemp("meshes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-W", "error::UserWarning:gems_jax", sharded_training.__file__, str(folder)]
    environment = os.environ | {"XLA_FLAGS": "", "OPENBLAS_NUM_THREADS": "1"}
    errors = [open(folder / f"errors {i}", "w+") for i in range(3)]  # noqa: SIM115, closed below
    commands = [program, [*program, str(port), "0"], [*program, str(port), "1"]]
    processes = [
        subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        for command, file in zip(commands, errors, strict=True)
    ]
    try:
        for process, file in zip(processes, errors, strict=True):
            assert process.wait(timeout=1100) == 0, Path(file.name).read_text()[-3000:]
    finally:
        for process, file in zip(processes, errors, strict=True):
            process.kill()
            process.wait()
            file.close()
    return folder


@pytest.fixture(scope="module")
def alone(ran):
    return json.loads((ran / "alone.json").read_text())


@pytest.fixture(scope="module")
def together(ran):
    return json.loads((ran / "together.json").read_text())


@pytest.mark.parametrize(("family", "mesh"), RUNS)
def test_steps_over_a_refresh_equal_those_on_one_device(alone, family, mesh):
    one, found = alone[family]["one"], alone[family][mesh]
    assert one["moved"] > 0.1
    assert found["params"] < 1e-4  # of the largest entry of each leaf
    np.testing.assert_allclose(found["losses"], one["losses"], rtol=2e-6)
    assert 0 < found["leak"] < 1e-5


@pytest.mark.parametrize(("family", "mesh"), RUNS)
def test_arrays_stay_where_they_were_put_and_nothing_compiles_again(alone, family, mesh):
    assert alone[family][mesh]["stays"] == [True] * (1 + STEPS)
    assert alone[family][mesh]["compiled"] == 1


@pytest.mark.parametrize("mesh", MESHES)
def test_checkpoints_move_from_mesh_to_mesh(alone, mesh):
    found = alone["decoder"][mesh]
    assert found["kept"] == 0
    assert found["in place"]
    assert found["compiled"] == 1  # also with a step behind it


@pytest.mark.parametrize("mesh", TOGETHER)
def test_two_processes_of_four_devices_equal_one_of_eight(ran, alone, together, mesh):
    np.testing.assert_allclose(together[mesh]["losses"], alone["decoder"][mesh]["losses"], rtol=2e-6)
    assert difference(arrays_in(ran / f"two {mesh}.npz"), arrays_in(ran / f"{mesh}.npz")) < 1e-4
    assert together[mesh]["stays"] == [True] * (1 + STEPS)
    assert together[mesh]["compiled"] == 1


def test_checkpoints_move_between_one_process_and_two(alone, together):
    for found in (alone["from two processes"], together["from one process"]):
        assert found == {"kept": 0, "in place": True, "compiled": 1}


# --- what is sent -----------------------------------------------------------------------------------------------

TABLE = Path(__file__).parents[1] / "docs" / "scaling.md"
KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def line_of(mesh, step, found):
    """A line of the table: calls and bytes of each kind."""
    cells = [f"{calls} / {size:,}" for calls, size in (found.get(kind, (0, 0)) for kind in KINDS)]
    return f"| {mesh} | {step} | {' | '.join(cells)} |"


def documented():
    """Calls and bytes by mesh and step, as the documentation has them."""
    found = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 2 + len(KINDS) and cells[1] in ("plain", "refresh"):
            pairs = [cell.replace(",", "").split(" / ") for cell in cells[2:]]
            found[cells[0], cells[1]] = [(int(calls), int(size)) for calls, size in pairs]
    return found


@pytest.mark.parametrize("step", ["plain", "refresh"])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_sends_what_the_documentation_says(alone, mesh, step):
    sent = alone["decoder"][mesh]["collectives"]
    assert set(sent[step]) <= set(KINDS)
    lines = "\n".join(
        line_of(m, s, alone["decoder"][m]["collectives"][s]) for m in MESHES for s in ("plain", "refresh")
    )
    wanted = documented().get((mesh, step))
    assert wanted is not None, f"docs/scaling.md should have\n{lines}"
    found = [sent[step].get(kind, (0, 0)) for kind in KINDS]
    for (calls, size), (most_calls, most) in zip(found, wanted, strict=True):
        # Another version of the compiler may do a little better or worse.
        assert calls <= 1.25 * most_calls + 2, f"docs/scaling.md should have\n{lines}"
        assert 0.5 * most - 64 <= size <= 1.25 * most + 64, f"docs/scaling.md should have\n{lines}"


def test_activations_stay_where_their_rows_are(alone):
    # Left to the compiler they follow the table's columns, and are sent in every layer.
    assert alone["rows kept"] < 0.5 * alone["rows left"], alone
