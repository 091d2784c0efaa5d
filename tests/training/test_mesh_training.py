"""Training on eight devices, in one process and in two: the numbers, the shardings and the programs of one device's.

A minute and more, for seven whole training steps, five of them for eight devices: what nobody here has, and what a pod
runs.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sharded_training
from documented_sends import check_sent, line_of
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
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
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


@pytest.mark.parametrize("step", ["plain", "refresh"])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_sends_what_the_documentation_says(alone, mesh, step):
    sent = {m: alone["decoder"][m]["collectives"] for m in MESHES}
    lines = "\n".join(line_of(m, s, sent[m][s]) for m in MESHES for s in ("plain", "refresh"))
    check_sent(mesh, step, sent[mesh][step], lines)


def test_activations_stay_where_their_rows_are(alone):
    # Left to the compiler they follow the table's columns, and are sent in every layer.
    assert alone["rows kept"] < 0.5 * alone["rows left"], alone
