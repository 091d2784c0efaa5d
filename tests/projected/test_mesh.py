"""Projected gradients on eight devices: the numbers of one, and no kernel's gradient is sent.

Half a minute, for programs on eight devices: what a pod sends shows in them alone.
"""

import json
import subprocess
import sys

import projected_mesh
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def eight_devices():
    command = [sys.executable, "-W", "error", projected_mesh.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", projected_mesh.MESHES)
def test_steps_over_a_refresh_equal_those_on_one_device(eight_devices, mesh):
    assert eight_devices[mesh]["off"] < 1e-5
    assert eight_devices[mesh]["compiled"] == 1


def test_devices_that_share_the_rows_add_up_products_alone(eight_devices):
    # Of both tasks: 8 columns of the sketch beside the shared basis' 4, against 32 rows of a whole gradient.
    assert eight_devices["data 8"]["all_reduced"] <= 2 * (4 + 8) * 48
