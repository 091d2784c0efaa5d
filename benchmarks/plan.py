"""The needs of a training step on devices that are not here: memory, operations, communication, and time at best.

    python benchmarks/plan.py --config configs/qwen3_8b.yaml --model qwen3-8b --topology v5e:16x16 \\
        --mesh fsdp=64,tensor=4 --train.batch_size 256
    python benchmarks/plan.py --config C --topology H100:8 --mesh fsdp=8

Compiles the training step ahead of time on abstract arrays, for GEMS and beside it for AdamW and LoRA. For TPUs it is
the TPU's own program (``pip install "jax[tpu]"``, no TPU); for GPUs, whose compiler needs one, the partitioned program
of as many CPU devices: its operations and communication hold, its temporaries do not (bfloat16 is widened).
The model is that of ``--model``: a published shape by name, or a Hugging Face ``config.json`` or its folder; default:
``model.path`` of the configuration. Fields of the configuration are overridden as in ``gems-jax train``. Prints
Markdown. ``--no-compile`` gives the sizes of the step's arguments alone, in seconds and without libtpu. There are
``--items`` item tokens, and ``--protected`` is the share of each input's directions that updates are kept out of.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `planning` is no part of the installed package

from memory import CONFIGS  # noqa: E402

from gems_jax.config.run import Config  # noqa: E402
from gems_jax.config.train import MeshConfig  # noqa: E402
from gems_jax.training.distributed.mesh import make_mesh  # noqa: E402
from planning.chips import Chip, chip_named  # noqa: E402
from planning.costs import branches_of, costs_of  # noqa: E402
from planning.hlo import Instruction  # noqa: E402
from planning.tables import (  # noqa: E402
    StepPlan,
    arguments_table,
    collective_table,
    largest_table,
    memory_table,
    time_table,
)
from planning.training_step import AbstractStep, abstract_step  # noqa: E402

# Their shapes as published in each model's config.json; the number of the end token plays no part.
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
MODELS = {
    name.lower().replace(" ", "-"): {"eos_token_id": 1} | shape
    for name, shape in (CONFIGS | {"Llama 3 8B": LLAMA}).items()
}
# Runs of loops whose trip count is data, in refreshes: from a former basis a new one takes two passes, of which one
# multiplies by the gradient; with projected gradients two passes of the model. Both are counted as if they did all of
# it. A plain step runs the model once, and none of the others.
TRIPS = {"plain": 1, "refresh": 2}
METHODS = ("gems", "adamw", "lora")


def main(argv: Sequence[str] | None = None) -> int:
    try:
        options, config = read_options(sys.argv[1:] if argv is None else argv)
        chip = chip_named(options.topology)
        devices = find_devices(options.topology, chip, options.no_compile)
        mesh = make_mesh(mesh_sizes(options.mesh) if options.mesh else config.mesh, devices)
        model = model_config(options.model or config.model.path, config, options.items)
        platform = "gpu" if chip.name.startswith("H") else "tpu"
        steps = {
            method: abstract_step(model, of_method(config, method), mesh, platform, protected=options.protected)
            for method in options.methods.split(",")
        }
        plans = [] if options.no_compile else [plan(method, step) for method, step in steps.items()]
    except (ValueError, OSError) as error:
        print(f"plan.py: error: {error}", file=sys.stderr)
        return 2
    train = config.train
    rows = f"{train.batch_size // train.accumulate} rows" + ("" if train.accumulate == 1 else " a part")
    print(f"{options.model or config.model.path} on {options.topology}: {mesh.size} devices, ", end="")
    print(", ".join(f"{name} {size}" for name, size in mesh.shape.items()) + ";")
    print(f"2 tasks, {rows} of {config.items.max_length} tokens each, {model.num_added_tokens:,} items;")
    print(f"{datetime.date.today()}, {versions()}\n")
    for p in plans:
        for kind, costs in p.costs.items():
            if costs.guessed:
                files = ", ".join(f"{Path(name).name or '?'} {count:.0f}" for name, count in costs.guessed.items())
                trips = TRIPS[kind]
                print(f"{p.method}, {kind}: loops of unknown length, run {trips} times: {files}", file=sys.stderr)
    tables = [arguments_table(steps)]
    tables += [largest_table(steps["gems"])] if "gems" in steps else []
    tables += [memory_table(plans, chip), time_table(plans, chip), collective_table(plans)] if plans else []
    print("\n\n".join("\n".join(table) for table in tables))
    return 0


def read_options(argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """The options of this program, and the configuration with all others."""
    from gems_jax.arguments import parse_config

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--topology", required=True, help="chip:AxB of TPUs or chip:N of GPUs, as v5e:16x16, H100:8")
    parser.add_argument("--mesh", help="sizes of mesh axes, as fsdp=64,tensor=4; default: those of the configuration")
    parser.add_argument("--model", help=f"{', '.join(MODELS)}, or the path of a config.json; default: model.path")
    parser.add_argument("--methods", default=",".join(METHODS), help="of gems, adamw, lora")
    parser.add_argument("--items", type=int, default=20_000, help="item tokens, where the model has none")
    parser.add_argument("--protected", type=float, default=0.5, help="share of directions in the null space's factors")
    parser.add_argument("--no-compile", action="store_true", help="only what the step is called with; in seconds")
    options, others = parser.parse_known_args(argv)
    if unknown := sorted(set(options.methods.split(",")) - set(METHODS)):
        raise ValueError(f"the method {unknown[0]!r} is unknown; choose of {', '.join(METHODS)}")
    if not 0 < options.protected < 1:
        raise ValueError(f"--protected is a share between 0 and 1, such as 0.5; got {options.protected}")
    return options, parse_config(others)


def mesh_sizes(text: str) -> MeshConfig:
    """``"fsdp=64,tensor=4"`` as sizes by axis."""
    pairs = [part.partition("=") for part in text.split(",")]
    axes = [field.name for field in dataclasses.fields(MeshConfig)]
    if not all(name in axes and size.isdigit() for name, _, size in pairs):
        raise ValueError(f"--mesh {text!r} must look like fsdp=64,tensor=4; there are the axes {', '.join(axes)}")
    return MeshConfig(**{name: int(size) for name, _, size in pairs})


def find_devices(topology: str, chip: Chip, stand_ins: bool = False) -> Any:
    """Devices to compile for, none of which needs to exist, or as many stand-ins."""
    shape = topology.partition(":")[2]
    if not all(part.isdigit() for part in shape.split("x")):
        raise ValueError(f"the topology {topology!r} must name the devices, as v5e:16x16 or H100:8")
    if chip.name.startswith("H") or stand_ins:
        # No array is made on them.
        jax.config.update("jax_num_cpu_devices", math.prod(int(part) for part in shape.split("x")))
        return jax.devices("cpu")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('compiling for TPUs needs their compiler, not a TPU: pip install "jax[tpu]"')
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this machine is no cloud machine to be asked
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is opened, so none is fought over
    return topologies.get_topology_desc(topology.lower(), platform="tpu").devices


def model_config(model: str, config: Config, items: int) -> Any:
    """The model's shape in the configuration's numbers, with item tokens."""
    from flax import nnx

    from gems_jax.models import from_config

    if model not in MODELS and not Path(model).exists():
        raise ValueError(f"there is no model {model!r}: give --model, one of {', '.join(MODELS)} or a config.json")
    values: Any = MODELS.get(model, model)
    shape = nnx.eval_shape(lambda: from_config(values, jax.random.key(0))).config
    numbers = {"dtype": config.model.dtype, "param_dtype": config.model.dtype}
    return dataclasses.replace(shape, num_added_tokens=shape.num_added_tokens or items, **numbers)


def of_method(config: Config, method: str) -> Config:
    train: Any = config.train
    return dataclasses.replace(config, train=dataclasses.replace(train, method=method))


def plan(method: str, step: AbstractStep) -> StepPlan:
    """Compiles the step of one method and counts what it does."""
    begin = time.perf_counter()
    compiled = step.compile()
    print(f"plan.py: {method} compiled in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    text = compiled.as_text()
    kinds = ("plain", "refresh") if method == "gems" else ("plain",)
    costs = {kind: costs_of(text, usual(refresh=kind == "refresh"), unknown_trips=TRIPS[kind]) for kind in kinds}
    return StepPlan(method, compiled.memory_analysis(), costs)


def usual(refresh: bool) -> Callable[[Instruction], int | None]:
    """The branches of a usual step, by the file of the conditional; of others the one with the most operations.

    Updates are not refused, blocks are well conditioned, the null space's leak is not measured, and a part of an update
    is its last.
    """
    branches = {"refresh_groups.py": int(refresh), "orthonormal.py": 1, "guard.py": 1, "step.py": 0, "wrappers.py": 1}
    branches["step_passes.py"] = 1

    def taken(x: Instruction) -> int | None:
        name = Path(x.source).name
        if name == "power_iteration.py":
            # New bases of projected gradients come from a sweep: the third of four ways.
            return int(refresh) * (2 if len(branches_of(x)) > 2 else 1)
        if name not in branches:
            print(f"plan.py: an unknown conditional, of {name or 'an unknown file'}", file=sys.stderr)
        return branches.get(name)

    return taken


def versions() -> str:
    names = [name for name in ("jax", "jaxlib", "libtpu", "flax", "optax") if importlib.util.find_spec(name)]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
