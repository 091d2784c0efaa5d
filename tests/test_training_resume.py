"""A run killed at any moment ends with the same bits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny import compiled_programs, gems_jax, metrics, options

HERE = Path(__file__).parent
SETTINGS = {
    "train__checkpoint_every": 2,
    "train__eval_every": 3,
    "train__eval_rows": 8,
    "train__metric": "eval/general/loss",
    "text__eval_batches": 1,
}


def contents(workdir, step):
    """All arrays of a checkpoint, whatever devices they were on, and where the run stood."""
    place, reader, found = (workdir / "checkpoints" / str(step)).resolve(), ocp.PyTreeCheckpointer(), {}
    for part in ("params", "optimiser"):
        names = reader.metadata(place / part).item_metadata.tree
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        found |= {f"{part}/{name}": array for name, array in reader.restore(place / part, restore_args=wanted).items()}
    return found, (place / "data" / "metadata").read_text()


def timeless(lines):
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def assert_same_run(found, expected, step=8):
    (arrays, position), (wanted, wanted_position) = contents(found, step), contents(expected, step)
    assert set(arrays) == set(wanted)
    for name in wanted:
        np.testing.assert_array_equal(np.asarray(arrays[name]), np.asarray(wanted[name]), err_msg=name)
    assert position == wanted_position
    assert timeless(metrics(found)) == timeless(metrics(expected))


MOMENTS = ["calibration", "step@4", "sealing", "evaluation", "log@7"]


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory):
    """A folder of two runs of the same settings, one killed and one whole, and what was said of the killed one."""
    root = tmp_path_factory.mktemp("resume")
    for part in ("data", "base"):
        shutil.copytree(prepared.root / part, root / part)
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": compiled_programs(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, HERE / "killed_run.py", ",".join(MOMENTS), *command(root, root / "killed")],
        env=environment,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        assert gems_jax(*command(root, root / "whole")) == 0
    return root, done.stdout


def command(root, workdir):
    return ["train", *options(root, **SETTINGS), "--workdir", str(workdir)]


def test_a_run_killed_at_scripted_moments_ends_with_the_same_bits(runs):
    root, said = runs
    assert [line for line in said.splitlines() if line.endswith(": -9")] == [f"{moment}: -9" for moment in MOMENTS]
    assert_same_run(root / "killed", root / "whole")


def test_a_run_goes_on_from_the_newest_intact_checkpoint(runs, capsys):
    root, _ = runs
    newest = root / "killed" / "checkpoints" / "8"
    path = max(newest.rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    with pytest.warns(UserWarning, match=rf"{newest} is damaged \(.*{path.name} has other content.*step 6"):
        assert gems_jax(*command(root, root / "killed")) == 0
    assert "resuming from step 6" in capsys.readouterr().out
    assert_same_run(root / "killed", root / "whole")
    assert [found.name for found in (root / "killed" / "damaged").iterdir()] == ["8.0"]
