"""Several processes as one run: how they find each other, and how the others end when one of them is gone."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gems_jax.first_few import first_few

# Of a process whose cluster is gone; the run goes on when all are started again.
EXIT_MEMBER_LOST = 75
_HEARTBEAT = "GEMS_JAX_HEARTBEAT_TIMEOUT"


def join_cluster(from_environment: bool = False) -> None:
    """Joins a cluster: of a launch script's variables, or whatever the environment has (Slurm, TPU pods).

    ``GEMS_JAX_HEARTBEAT_TIMEOUT`` (seconds, 100) is how long after the last sign of life a process is taken for dead.
    JAX then ends all others (SIGABRT) and names it. Where the connection to it breaks, they end at once, see
    `ending_together`.

    Args:
      from_environment: whether to form a cluster where ``JAX_COORDINATOR_ADDRESS`` is not set.

    Raises:
      ValueError: a variable that is no number of its kind.
    """
    heartbeat = _whole_number(_HEARTBEAT, 100, least=1)
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        count = _whole_number("JAX_NUM_PROCESSES", None, least=1)
        number = _whole_number("JAX_PROCESS_ID", None, least=0)
        jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=heartbeat)
    elif from_environment:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)


def _whole_number(name: str, default: int | None, least: int) -> int:
    text = os.environ.get(name, default)
    try:
        value = int(text)  # type: ignore[arg-type]
        if value < least:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"the variable {name} must be a whole number, at least {least}; it is {text!r}") from None
    return value


def exchange(text: str) -> list[str]:
    """A text of each process, in the order of their numbers; all must call it.

    Example:
      >>> exchange("alone")
      ['alone']
    """
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    content = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(content))))
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(content)] = content
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [gathered[number, :size].tobytes().decode() for number, size in enumerate(sizes.tolist())]


def check_agreement(values: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` in every process unless all have the same values; names what differs.

    Args:
      values: JSON values by name; all processes must call it.
    """
    by_process = [json.loads(text) for text in exchange(json.dumps(dict(values)))]
    for number, other in enumerate(by_process):
        differ = [name for name in by_process[0] | other if by_process[0].get(name) != other.get(name)]
        if differ:
            both = (_both(name, by_process[0].get(name), other.get(name), number) for name in differ)
            shown = first_few(both, between="; ")
            raise ValueError(
                f"the {len(by_process)} processes of this run were not started alike: {shown}; start all with the same "
                "configuration, data and models"
            )


def _both(name: str, first: Any, other: Any, number: int) -> str:
    if len(f"{first}{other}") > 120:
        return f"{name} of process {number} is another than that of process 0"
    return f"{name} is {first!r} in process 0 and {other!r} in process {number}"


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends all processes with a message where one of them finds an error that it alone can see.

    Raises:
      ValueError: in the others; they must all enter it, and do nothing in it that needs the others.
    """
    error: Exception | None = None
    try:
        yield
    except (ValueError, TypeError, OSError) as raised:
        error = raised
    said = exchange("" if error is None else str(error) or type(error).__name__)
    if error is not None:
        raise error
    for number, text in enumerate(said):
        if text:
            raise ValueError(f"process {number} of {len(said)} cannot go on: {text}")


def is_lost(error: BaseException | None) -> bool:
    """Whether an error is what a collective says when another process is gone.

    Memory that ran out is an error of this process, which the others see as this one's end.
    """
    return (
        isinstance(error, jax.errors.JaxRuntimeError)
        and jax.process_count() > 1
        and "RESOURCE_EXHAUSTED" not in str(error)
    )


@contextlib.contextmanager
def ending_together(workdir: Path) -> Iterator[None]:
    """Ends this process, with a message, when a collective fails because another process is gone.

    At once: the ordinary end of a Python process waits until all processes of the cluster have come to theirs.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_lost(error):
            raise
        reason = str(error).splitlines()[0]
        print(
            f"gems-jax: process {jax.process_index()} of {jax.process_count()} ends, since another one is gone or "
            f"cannot be reached ({reason}); what it said last tells why. Start all processes again: the run goes on "
            f"from its newest checkpoint in {workdir}",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_MEMBER_LOST)
