"""Two processes as one run: stopped by a word to either, ended when one is killed, and the same bits in the end.

Minutes, for five pairs of processes: a pod that is preempted must not lose or change a run.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from few_kernels import few_kernels
from same_run import assert_same_run
from tiny import gems_jax, metrics, options

from gems_jax.training.distributed import cluster

TESTS = Path(__file__).parents[1]
STEPS, HEARTBEAT = 10, 20
# GEMS inside the null space, over refreshes.
SETTINGS = {"train__steps": STEPS, "train__checkpoint_every": 3, "train__keep_checkpoints": 4}
MOMENTS = ["whole=end", "told=term1@0", "told=kill1@5", "told=term0@6", "told=end"]


def command(prepared):
    return ["train", *options(prepared.root, **SETTINGS)]


@pytest.fixture(scope="module")
def ran(prepared, tmp_path_factory):
    """The folder of an undisturbed run and one that was not left alone, and how their processes ended."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "GEMS_JAX_HEARTBEAT_TIMEOUT": str(HEARTBEAT),
    }
    done = subprocess.run(
        [sys.executable, TESTS / "helpers" / "cluster_run.py", folder, ",".join(MOMENTS), *command(prepared)],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=1100,
    )
    said = "".join(f"\n== {file.name}\n{file.read_text()[-1500:]}" for file in sorted(folder.glob("*.txt")))
    assert done.returncode == 0, done.stdout + done.stderr + said
    ended = {}
    for line in done.stdout.splitlines():
        run, moment, *numbers = line.split()
        ended[f"{run}={moment}"] = [float(number) for number in numbers]
    assert list(ended) == MOMENTS, done.stdout + said
    return folder, ended


def said(folder, entry, process):
    return (folder / f"{entry.replace('=', '.')}.{process}.txt").read_text()


def stopped_at(folder, entry):
    """The step that both processes say they stopped at."""
    lines = [line for n in range(2) for line in said(folder, entry, n).splitlines() if "stopped by a signal" in line]
    assert len(lines) == 2, lines
    assert lines[0] == lines[1]
    return int(lines[0].split("at step ")[1].split(";")[0])


def test_one_process_told_to_stop_while_running_stops_both_after_the_same_step(ran):
    folder, ended = ran
    *codes, seconds = ended["told=term0@6"]
    assert codes == [143, 143]
    assert seconds < 30  # what is given before SIGKILL
    assert 6 <= stopped_at(folder, "told=term0@6") <= 8
    assert f"resuming from step {stopped_at(folder, 'told=term0@6')}" in said(folder, "told=end", 0)


def test_one_process_told_to_stop_while_it_starts_stops_both_at_their_first_steps(ran):
    folder, ended = ran
    assert ended["told=term1@0"][:2] == [143, 143]
    step = stopped_at(folder, "told=term1@0")
    assert step <= 2
    assert f"resuming from step {step}" in said(folder, "told=kill1@5", 0)


def test_a_killed_process_ends_the_other_with_a_message_in_time(ran):
    folder, ended = ran
    first, second, seconds = ended["told=kill1@5"]
    assert (first, second) == (cluster.EXIT_MEMBER_LOST, -9)
    assert seconds < HEARTBEAT
    message = said(folder, "told=kill1@5", 0)
    assert "process 0 of 2 ends, since another one is gone" in message
    assert f"goes on from its newest checkpoint in {folder / 'told'}" in message


def test_a_run_whose_processes_were_stopped_and_killed_ends_with_the_same_bits(ran):
    folder, ended = ran
    assert ended["whole=end"][:2] == ended["told=end"][:2] == [0, 0]
    assert_same_run(folder / "told", folder / "whole", STEPS)


def test_the_first_process_alone_speaks_and_writes(ran):
    folder, _ = ran
    assert [line["step"] for line in metrics(folder / "whole")] == list(range(1, STEPS + 1))
    assert "train: step 1/" in said(folder, "whole=end", 0)
    assert "train: " not in said(folder, "whole=end", 1)
    assert not (folder / "told" / "lock.json").exists()


def test_one_process_goes_on_with_the_run_of_two_inside_the_null_space(ran, prepared, tmp_path):
    folder, _ = ran
    one = shutil.copytree(folder / "whole", tmp_path / "one")
    for step in (6, 9, STEPS):
        shutil.rmtree(one / "checkpoints" / str(step))
    with few_kernels():
        assert gems_jax(*command(prepared), "--workdir", one) == 0
    found, wanted = metrics(one), metrics(folder / "whole")
    assert found[:3] == wanted[:3]
    for name in ("loss/rec", "loss/src", "gate/rec", "update_norm"):
        values, expected = ([line[name] for line in lines] for lines in (found, wanted))
        np.testing.assert_allclose(values, expected, rtol=1e-5, err_msg=name)
    assert max(line["null_space/leak"] for line in found) <= 1e-5


def pair_of(command, **variables):
    """Two processes of one cluster, ``command(number)`` each."""
    with socket.socket() as s:
        s.bind(("", 0))
        address = f"localhost:{s.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2", "OPENBLAS_NUM_THREADS": "1", **variables,
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command(n))], env=environment | {"JAX_PROCESS_ID": str(n)}, cwd=TESTS.parent,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for n in range(2)
    ]  # fmt: skip


def test_processes_that_are_started_with_other_configurations_all_end_with_a_message(tmp_path):
    train = ["-m", "gems_jax.cli", "train", "--workdir", tmp_path / "run", "--data.threads"]
    members = pair_of(lambda n: [*train, 1 + n, "--train.seed", n])
    for member in members:
        said = member.communicate(timeout=120)[1]
        assert member.returncode == 2, said
        assert "not started alike: train.seed is 0 in process 0 and 1 in process 1; start all with the same" in said
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("process", [0, 1])
def test_what_one_process_finds_wrong_ends_all_and_long_values_are_not_shown(process, monkeypatch):
    monkeypatch.setattr(cluster, "exchange", lambda text: [text, "no room"] if process == 0 else ["no room", text])
    message = f"process {1 - process} of 2 cannot go on: no room"
    with pytest.raises(ValueError, match=message), cluster.failing_together():
        pass
    with pytest.raises(OSError, match="mine"), cluster.failing_together():
        raise OSError("mine")
    monkeypatch.setattr(cluster, "exchange", lambda text: [text, json.dumps({"rows": "x" * 200})])
    with pytest.raises(ValueError, match="rows of process 1 is another than that of process 0"):
        cluster.check_agreement({"rows": "y"})


MEMBER = """
import os, signal, time
import jax, numpy as np
from gems_jax.training.distributed import cluster
cluster.join_cluster()
mesh = jax.make_mesh((2,), ("x",))
spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
whole = jax.jit(lambda x: x.sum())
for number in range(10_000):
    if number == 3 and jax.process_index() == 1:
        print(f"still {time.time()}", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    float(whole(jax.make_array_from_process_local_data(spread, np.ones(1, np.float32), (2,))))
"""


def test_a_process_that_stands_still_ends_the_other_within_the_heartbeats_timeout():
    """No connection breaks here, as where a machine loses its network: only signs of life are missing."""
    with contextlib.ExitStack() as stack:
        members = pair_of(lambda n: ["-c", MEMBER], GEMS_JAX_HEARTBEAT_TIMEOUT="5")
        first, second = map(stack.enter_context, members)
        stack.callback(second.kill)
        since = next(float(line.split()[1]) for line in second.stdout if line.startswith("still"))
        message = first.communicate(timeout=120)[1]
        assert time.time() - since < 30
        assert first.returncode not in (0, None)
        assert "unhealthy (stopped sending heartbeats)" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("GEMS_JAX_HEARTBEAT_TIMEOUT", "soon"), ("GEMS_JAX_HEARTBEAT_TIMEOUT", "0"), ("JAX_NUM_PROCESSES", "two")],
)
def test_a_variable_that_is_no_number_is_named(name, value, monkeypatch):
    for variable, good in (("COORDINATOR_ADDRESS", "localhost:1"), ("NUM_PROCESSES", "2"), ("PROCESS_ID", "0")):
        monkeypatch.setenv(f"JAX_{variable}", good)
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} must be a whole number.*{value!r}"):
        cluster.join_cluster()
