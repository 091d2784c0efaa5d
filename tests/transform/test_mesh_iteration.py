"""Block power iteration on kernels that are split over devices: one device's numbers, and no device has a whole one.

A minute, for five programs on eight devices: that no device gathers a kernel shows in them alone.
"""

import json
import math
import subprocess
import sys

import pytest
import sharded_iteration
from documented_sends import check_sent, line_of

pytestmark = pytest.mark.slow

RUNS = sharded_iteration.RUNS


@pytest.fixture(scope="module")
def eight_devices():
    command = [sys.executable, "-W", "error", sharded_iteration.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("run", RUNS)
def test_steps_over_a_refresh_equal_those_on_one_device(eight_devices, run):
    found = eight_devices[run]
    assert found["moved"] > 0.03
    assert found["params"] < 5e-6
    assert 0 < found["leak"] < 1e-5
    assert found["stays"]
    assert found["compiled"] == 1


@pytest.mark.parametrize("run", [run for run in RUNS if "fsdp" in run])
def test_no_device_has_a_whole_kernel(eight_devices, run):
    member = math.prod(sharded_iteration.SHAPES["up"][1:])
    # Its part of the two tasks' gradients of two members is half of one.
    assert eight_devices[run]["largest"] <= member / 2


@pytest.mark.parametrize("mesh", sharded_iteration.MESHES)
def test_a_refresh_sends_what_the_documentation_says(eight_devices, mesh):
    sent = {m: eight_devices[f"protected, {m}"]["sent"] for m in sharded_iteration.MESHES}
    lines = "\n".join(line_of(m, "iterated", found) for m, found in sent.items())
    check_sent(mesh, "iterated", sent[mesh], lines)
