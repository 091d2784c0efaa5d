"""The dtype, mesh and batch that a model can be tuned with on the devices there are."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from gems_jax.config.run import Config
from gems_jax.training.doctor import device_memory
from gems_jax.training.estimate.memory import GIB, HEADROOM, Resources, by_batch_size
from gems_jax.training.estimate.shape import abstract_model

# Rows a task: more do not make a step worth more, and on a processor one should end within seconds.
_MOST_ROWS, _MOST_ROWS_CPU, _ENOUGH = 32, 8, 8
# On the host a process also holds the interpreter, the compiler and its programs, and, while a checkpoint is written, a
# copy of what is written.
_PROCESS = 2 * GIB
Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """What fits.

    Attributes:
      config: with it.
      needs: of each device, estimated.
      memory: of each device, in bytes.
    """

    config: Config
    needs: Resources
    memory: float


def fitting(config: Config, items: int, devices: Sequence[Any]) -> Fit:
    """The first of dtypes and meshes whose batch has enough rows, or the one whose batch has most.

    float32 parameters on every device, then split over the devices, then bfloat16 ones alike.

    Args:
      config: of the run, on one device.
      items: added tokens.
      devices: to train on, all of a kind.

    Raises:
      ValueError: not one row of a task fits.
    """
    on_host, memory = devices[0].platform == "cpu", device_memory(devices)
    best: Fit | None = None
    least: Resources | None = None
    for made in _candidates(config, len(devices), on_host):
        model_config, data = abstract_model(made, items).config, len(devices) // made.mesh.fsdp
        needs = by_batch_size(made, model_config, len(made.items.prompts), data)
        rows, step = (_MOST_ROWS_CPU if on_host else _MOST_ROWS), data * made.mesh.fsdp
        rows = max(rows, step)
        while rows >= step and _whole(needs(rows), on_host) > memory:
            rows //= 2
        found = needs(max(rows, step))
        least = found if least is None or found.total < least.total else least
        if rows >= step and (best is None or rows > best.config.train.batch_size):
            train = dataclasses.replace(made.train, batch_size=rows)
            best = Fit(dataclasses.replace(made, train=train), found, memory)
        if best is not None and best.config.train.batch_size >= _ENOUGH:
            return best
    if best is None:
        assert least is not None
        raise ValueError(
            f"{config.model.path} needs {_whole(least, on_host) / GIB:.1f} GiB a device for one row of each task, and "
            f"there are {memory / GIB:.1f}: use more devices, a smaller model, or write the configuration yourself"
        )
    return best


def _candidates(config: Config, devices: int, on_host: bool) -> Iterator[Config]:
    dtypes: tuple[Dtype, ...] = ("float32",) if on_host else ("float32", "bfloat16")
    for dtype in dtypes:
        for fsdp in sorted({1, devices}):
            train = dataclasses.replace(
                config.train,
                compute_dtype=None if on_host or dtype == "bfloat16" else "bfloat16",
                stochastic_rounding=dtype == "bfloat16",
            )
            yield dataclasses.replace(
                config,
                train=train,
                model=dataclasses.replace(config.model, dtype=dtype),
                mesh=dataclasses.replace(config.mesh, fsdp=fsdp),
            )


def _whole(needs: Resources, on_host: bool) -> float:
    """Bytes that must be there for a run of this estimate."""
    if on_host:
        return needs.total + needs.parameters / 2 + needs.optimiser + _PROCESS
    return HEADROOM * needs.total
