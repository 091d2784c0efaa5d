"""Programs compiled for eight devices that are one processor; run as a program of its own, prints JSON.

A process has its devices for life, so `planning/test_plan` runs this in one of its own.

    planned_steps.py FOLDER loops                     the training step, its layers in a loop and one after the other
    planned_steps.py FOLDER adapters                  shapes of arrays in the training step of LoRA
    planned_steps.py FOLDER TOPOLOGY [OPTION ...]     what benchmarks/plan.py prints
"""

import contextlib
import functools
import io
import json
import sys
from pathlib import Path
from unittest import mock

import jax

# All kernels of one shape, so that the optimiser treats them as one stack: quick to compile.
MODEL = {
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}
TINY = {
    "items": 16,
    "items.max_length": 8,
    "train.batch_size": 8,
    "gems.rank": 4,
    "gems.task_rank": 0,
    "lora.rank": 2,
    "mesh.fsdp": 4,
    "mesh.tensor": 2,
}


def argv(folder, topology):
    words = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    return ["--model", str(folder), "--topology", topology, *words]


def planned(folder, topology, *options):
    """What benchmarks/plan.py prints."""
    import plan

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = plan.main([*argv(folder, topology), *options])
    return {"code": code, "said": out.getvalue()}


def loops(folder):
    """Costs of the training step with its layers in a loop, and one after the other."""
    import dataclasses

    import plan

    from gems_jax.config.train import MeshConfig
    from gems_jax.training.distributed.mesh import make_mesh
    from planning.costs import costs_of
    from planning.training_step import abstract_step

    options, config = plan.read_options(argv(folder, "H100:8"))
    # What a backward pass computes again is merged with the forward pass where layers are not in a loop.
    model = dataclasses.replace(plan.model_config(options.model, config, options.items), remat="none")
    jax.config.update("jax_num_cpu_devices", 8)
    # Rows alone are split, which leaves the compiler no choice.
    mesh = make_mesh(MeshConfig(), jax.devices("cpu"))

    config = dataclasses.replace(config, train=dataclasses.replace(config.train, method="adamw"))

    def found():
        costs = costs_of(abstract_step(model, config, mesh, "cpu").compile().as_text())
        by_kind: dict[str, float] = {}
        for key, sent in costs.wire.items():
            by_kind[key.kind] = by_kind.get(key.kind, 0) + sent
        return {"flops": costs.total_flops, "wire": by_kind}

    looped = found()
    with mock.patch.object(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True)):
        unrolled = found()
    return {"looped": looped, "unrolled": unrolled}


# Unlike all other sizes of the model.
WIDE = 48


def adapters(folder):
    """Last two axes of the arrays of LoRA's training step, its kernels split over two axes of a mesh."""
    import dataclasses

    import plan

    from gems_jax.training.distributed.mesh import make_mesh
    from planning.hlo import parse
    from planning.training_step import abstract_step

    (folder / "config.json").write_text(json.dumps(MODEL | {"intermediate_size": WIDE}))
    options, config = plan.read_options(argv(folder, "H100:8"))
    jax.config.update("jax_num_cpu_devices", 8)
    model = plan.model_config(options.model, config, options.items)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, method="lora"))
    compiled = abstract_step(model, config, make_mesh(config.mesh, jax.devices("cpu")), "cpu").compile()
    computations = parse(compiled.as_text()).computations.values()
    return sorted({x.dims[-2:] for c in computations for one in c.values() for x in one.shapes})


def main(folder, what, *options):
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "benchmarks")]
    jax.config.update("jax_platforms", "cpu")
    (Path(folder) / "config.json").write_text(json.dumps(MODEL))
    alone = {"loops": loops, "adapters": adapters}
    print(json.dumps(alone[what](Path(folder)) if what in alone else planned(folder, what, *options)))


if __name__ == "__main__":
    main(*sys.argv[1:])
