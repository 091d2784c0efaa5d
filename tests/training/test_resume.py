"""A run killed at any moment ends with the same bits.

Minutes, for six processes: each moment is one at which a file is half written or a number half counted.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from few_kernels import few_kernels
from same_run import assert_same_run
from tiny import gems_jax, options

TESTS = Path(__file__).parents[1]
SETTINGS = {
    "train__checkpoint_every": 2,
    "train__eval_every": 3,
    "train__eval_rows": 8,
    "train__metric": "eval/general/loss",
    "text__eval_batches": 1,
}


MOMENTS = ["calibration", "step@4", "sealing", "evaluation", "log@7"]


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory):
    """A folder of two runs of the same settings, one killed and one whole, and what was said of the killed one."""
    root = tmp_path_factory.mktemp("resume")
    for part in ("data", "base"):
        shutil.copytree(prepared.root / part, root / part)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, TESTS / "helpers" / "killed_run.py", ",".join(MOMENTS), *command(root, root / "killed")],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        assert train(root, "whole") == 0
    return root, done.stdout


def command(root, workdir):
    return ["train", *options(root, **SETTINGS), "--workdir", str(workdir)]


def train(root, name):
    with few_kernels():
        return gems_jax(*command(root, root / name))


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
        assert train(root, "killed") == 0
    assert "resuming from step 6" in capsys.readouterr().out
    assert_same_run(root / "killed", root / "whole")
    assert [found.name for found in (root / "killed" / "damaged").iterdir()] == ["8.0"]
