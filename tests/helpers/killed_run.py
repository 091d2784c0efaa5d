"""A run that is killed with SIGKILL at one moment after the other; run as a program.

    python killed_run.py MOMENTS COMMAND...

Each of the comma-separated moments is a process of its own that runs the command and dies there; after them one runs
to the end. They are forked from one that has imported everything, which saves most of their time.
"""

import importlib
import os
import signal
import sys

from few_kernels import few_kernels
from imported import import_all


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def before(module, name, condition=lambda *args: True):
    """Dies when a function is called and the condition on its arguments holds."""
    owner = importlib.import_module(module) if isinstance(module, str) else module
    function = getattr(owner, name)

    def dying(*args, **options):
        if condition(*args):
            die()
        return function(*args, **options)

    setattr(owner, name, dying)


def arrange(moment):
    from gems_jax.training import validation
    from gems_jax.training.monitoring import metric_log
    from gems_jax.training.workdir import checkpoints, files

    name, _, number = moment.partition("@")
    if name == "calibration":
        before("gems_jax.null_space.estimate", "_decompose")
    elif name == "step":  # mid-epoch: this step's line was never read
        before(metric_log.MetricLogger, "push", lambda _, sent: sent.step == int(number))
    elif name == "evaluation":
        before(validation, "evaluate_ranking")
    elif name == "sealing":  # inside a save: all is written but the checksums
        before(checkpoints, "write_checksums")
    elif name == "log":  # the checkpoint before it is in place, the line is not written
        before(files.Log, "write", lambda _, line: line["step"] == int(number))
    else:
        raise ValueError(moment)


def in_a_process_of_its_own(run):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    import_all()
    from gems_jax import cli

    moments, command = [m for m in sys.argv[1].split(",") if m], sys.argv[2:]

    def train():
        with few_kernels():
            return cli.main(command)

    def dying(moment):
        arrange(moment)
        return train()

    for moment in moments:
        code = in_a_process_of_its_own(lambda: dying(moment))  # noqa: B023, called at once
        print(f"{moment}: {code}", flush=True)
        if code != -signal.SIGKILL:
            return 1
    return in_a_process_of_its_own(train)


if __name__ == "__main__":
    sys.exit(main())
