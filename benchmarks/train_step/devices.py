"""Bytes that a step sends between eight data-parallel devices, from its compiled program; prints JSON.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.train_step.devices "joint AdamW"

Rows are split over the devices, all else is on each of them; the batch has at least eight rows of a task. Nothing is
run, and what is sent between the devices depends on the sizes of gradients alone.
"""

import argparse
import json
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.train_step.jax_step import JaxMethod, counted
from benchmarks.train_step.methods import JAX
from benchmarks.train_step.problem import Problem, add_options, problem_of
from gems_jax.training.distributed.mesh import make_mesh, on_mesh

DEVICES = 8


def sent_bytes(method: JaxMethod, problem: Problem) -> dict[str, dict[str, float]]:
    """Bytes of the arrays that collectives work on, on each device, by kind; of a plain step and of a refresh."""
    mesh = make_mesh(devices=jax.devices()[:DEVICES])
    whole, rows = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), row_spec(method)))

    def put(tree: Any, where: NamedSharding) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    start = jax.eval_shape(method.start, *jax.eval_shape(problem.parameters))
    batch = method.batch(problem, max(DEVICES, problem.size.rows))
    step = jax.jit(on_mesh(method.step, mesh), donate_argnums=(0, 1), out_shardings=whole)
    text = step.lower(*put(start, whole), put(batch, rows)).compile().as_text()
    found: dict[str, dict[str, float]] = {}
    for kind in ("plain", "refresh") if method.refreshes else ("plain",):
        by_kind = found[kind] = {}
        for collective, size in counted(text, kind == "refresh").bytes.items():
            by_kind[collective.kind] = by_kind.get(collective.kind, 0) + size
    return found


def row_spec(method: JaxMethod) -> PartitionSpec:
    return PartitionSpec("data") if method.joint else PartitionSpec(None, "data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=JAX)
    add_options(parser)
    args = parser.parse_args()
    problem = problem_of(args)
    print(json.dumps(sent_bytes(JAX[args.method](problem), problem)))


if __name__ == "__main__":
    main()
