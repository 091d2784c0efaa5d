"""What two runs have in common: arrays of a checkpoint and lines of the log, to the bit."""

import jax
import numpy as np
import orbax.checkpoint as ocp
from tiny import metrics


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
