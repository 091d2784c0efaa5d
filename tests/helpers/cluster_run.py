"""Runs of two processes that are told to stop or killed at one moment after the other; run as a program.

    python cluster_run.py FOLDER RUN=MOMENT,RUN=MOMENT... COMMAND...

Each is a pair of processes of its own, on the work directory RUN in the folder. ``kill1@4`` kills process 1 when it has
sent its fourth step, ``term0@6`` sends SIGTERM to process 0 when it has sent its sixth, ``term1@0`` to process 1 as
soon as it has joined; ``end`` lets both go. They are forked from a process that has imported everything, which saves
most of their time. What they say goes to files in the folder; printed are each moment, how both processes ended, and
the seconds between the signal and the end of the last.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from unittest import mock

from few_kernels import few_kernels
from imported import import_all

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


def arrange(moment, number, folder):
    """Sends this process the signal that is meant for it, once it has sent its step."""
    from gems_jax.training.monitoring import metric_log

    what, _, step = moment.partition("@")
    if what == "end" or int(what[-1]) != number:
        return

    def send():
        (folder / "signalled").write_text(str(time.time()))
        os.kill(os.getpid(), SIGNALS[what[:-1]])

    push = metric_log.MetricLogger.push

    def pushing(self, sent):
        push(self, sent)
        if sent.step == int(step):
            send()

    if step == "0":
        send()
    else:
        metric_log.MetricLogger.push = pushing


def keep_programs():
    """JAX keeps what the first process of a cluster compiled; what the others did has keys of its own and is lost."""
    from jax._src import compiler, distributed

    write = compiler._cache_write

    def writing(*args):
        with mock.patch.object(distributed.global_state, "process_id", 0):
            write(*args)

    compiler._cache_write = writing


def member(number, port, folder, run, moment, command):
    from gems_jax import cli
    from gems_jax.training.distributed import cluster

    out = os.open(folder / f"{run}.{moment}.{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ |= {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number),
    }  # fmt: skip
    cluster.join_cluster()
    keep_programs()
    del os.environ["JAX_COORDINATOR_ADDRESS"]
    arrange(moment, number, folder)
    with few_kernels():
        return cli.main([*command, "--workdir", str(folder / run)])


def fork(run):
    child = os.fork()
    if child == 0:
        try:
            sys.exit(run())  # not os._exit: processes of a cluster end together
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    return child


def pair(folder, run, moment, command):
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    children = [fork(lambda: member(number, port, folder, run, moment, command)) for number in range(2)]  # noqa: B023
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    signalled = folder / "signalled"
    seconds = time.time() - float(signalled.read_text()) if signalled.exists() else 0.0
    signalled.unlink(missing_ok=True)
    print(f"{run} {moment} {codes[0]} {codes[1]} {seconds:.1f}", flush=True)


def main():
    import_all()
    for entry in sys.argv[2].split(","):
        pair(Path(sys.argv[1]), *entry.split("="), sys.argv[3:])


if __name__ == "__main__":
    main()
