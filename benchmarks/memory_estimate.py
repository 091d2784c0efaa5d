"""How near the estimate of a run's memory is to what its compiled step takes, on CPU.

    python benchmarks/memory_estimate.py --out benchmarks/results/memory_estimate.json

Two small models, two sizes of batch, several methods; the step is compiled and never run. A row has MiB of the
program's arguments and temporaries, as XLA counts them, and the estimate of `gems_jax.training.estimate.memory`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `planning` is no part of the installed package

from benchmarks.result_file import circumstances, write  # noqa: E402
from gems_jax.config.items import ItemsConfig  # noqa: E402
from gems_jax.config.run import Config  # noqa: E402
from gems_jax.config.train import TrainConfig  # noqa: E402
from gems_jax.models import DecoderConfig, T5Config  # noqa: E402
from gems_jax.training.distributed.mesh import make_mesh  # noqa: E402
from gems_jax.training.estimate.memory import estimate  # noqa: E402
from planning.training_step import abstract_step  # noqa: E402

MIB = 2**20
SIZES: dict[str, Any] = {"vocab_size": 8192, "num_added_tokens": 2000, "d_model": 256, "num_heads": 4}
MODELS = {
    "T5, 7 M parameters in kernels": T5Config(d_kv=64, d_ff=512, num_layers=4, num_decoder_layers=4, **SIZES),
    "decoder, 5 M parameters in kernels": DecoderConfig(
        d_ff=768, num_layers=6, num_kv_heads=2, head_dim=64, eos_token_id=1, **SIZES
    ),
}
# Method, gradients, number of tasks, rows of a task, tokens of an input, what is computed again.
RUNS: tuple[tuple[str, str, int, int, int, Any], ...] = (
    ("gems", "full", 2, 8, 64, "full"),
    ("gems", "full", 2, 32, 128, "full"),
    ("gems", "full", 3, 8, 64, "full"),
    ("gems", "projected", 2, 8, 64, "full"),
    ("gems", "projected", 2, 32, 128, "full"),
    ("adamw", "full", 2, 8, 64, "full"),
    ("adamw", "full", 2, 32, 128, "full"),
    ("lora", "full", 2, 8, 64, "full"),
    ("galore", "projected", 2, 8, 64, "full"),
    ("pcgrad", "full", 2, 8, 64, "full"),
    ("adamw", "full", 2, 32, 128, "none"),
    ("adamw", "full", 2, 32, 128, "dots"),
    ("gems", "projected", 2, 32, 128, "none"),
    ("gems", "projected", 2, 32, 128, "dots"),
)


def run_config(method: str, gradients: Any, rows: int, length: int, remat: Any) -> Config:
    """A run of that method with everything else at its default."""
    train = TrainConfig(method=method, gradients=gradients, batch_size=rows, remat=remat)
    return Config(train=train, items=ItemsConfig(max_length=length))


def estimated(model_config: Any, config: Config, tasks: int) -> float:
    """MiB of a step: its parameters once, as the program has no copy of the base model."""
    found = estimate(config, model_config, tasks)
    return (found.total - found.parameters / 2) / MIB


def measured(model_config: Any, config: Config, tasks: int) -> float:
    """MiB that the compiled step takes."""
    names = tuple(f"task {number}" for number in range(tasks))
    memory = abstract_step(model_config, config, make_mesh(config.mesh), "cpu", names).compile().memory_analysis()
    return float(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    rows = []
    for name, model_config in MODELS.items():
        for method, gradients, tasks, batch, length, remat in RUNS:
            config = run_config(method, gradients, batch, length, remat)
            row = {"model": name, "method": method, "gradients": gradients, "tasks": tasks, "rows": batch}
            row |= {"tokens": length, "remat": remat, "measured": measured(model_config, config, tasks)}
            row |= {"estimated": estimated(model_config, config, tasks)}
            print(json.dumps(row), flush=True)
            rows.append(row)
    command = "python benchmarks/memory_estimate.py"
    where = circumstances("jax", "jaxlib", "flax", "optax", device=jax.devices()[0].device_kind)
    write({"command": command, "unit": "MiB", "circumstances": where, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
