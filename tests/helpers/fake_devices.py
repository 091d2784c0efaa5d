"""Devices made of one processor."""

import os

import jax


def fake_devices(count):
    """Makes so many, before the first use of any.

    They share a pool of threads, by default one for each. A collective holds a thread until all its devices are there,
    and devices may take up independent ones in different order: then all threads wait, and XLA ends the program.
    """
    os.environ.setdefault("NPROC", str(4 * count))  # size of the pool
    jax.config.update("jax_num_cpu_devices", count)
