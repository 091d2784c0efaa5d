"""A null space is made on all devices of a run that splits its parameters, and is that of one device."""

import os
import subprocess
import sys

import numpy as np
import pytest
from tiny import gems_jax, options

import gems_jax as gj

# Says over how many devices the moments are spread.
PROGRAM = """
import sys
from gems_jax import cli
from gems_jax.training import stages

estimate = stages.estimate_null_space


def told(*args, mesh, **options):
    print("devices", mesh.size, file=sys.stderr)
    return estimate(*args, mesh=mesh, **options)


stages.estimate_null_space = told
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_calibration_takes_the_devices_that_hold_the_model(prepared, tmp_path):
    argv = ["calibrate", *options(prepared.root, null_space__path=tmp_path / "spread"), "--mesh.fsdp", "2"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, argv)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "devices 4" in done.stderr
    alone, spread = (gj.NullSpace.load(folder) for folder in (prepared.root / "null_space", tmp_path / "spread"))
    assert alone.factors.keys() == spread.factors.keys()
    for name, factor in alone.factors.items():
        other = spread.factors[name]
        np.testing.assert_array_equal(factor.kept, other.kept)
        for one, two in zip(*(_projectors(each) for each in (factor, other)), strict=True):
            np.testing.assert_allclose(one, two, atol=2e-3)
    # A run on one device takes it: it is for the same weights and settings.
    words = options(prepared.root, null_space__path=tmp_path / "spread", train__steps=1)
    assert gems_jax("train", *words, "--workdir", tmp_path / "run", "--dry-run") == 0


def _projectors(factor):
    basis = np.asarray(factor.basis, np.float64).reshape(-1, *factor.basis.shape[-2:])
    return [matrix @ matrix.T for matrix in basis]
