"""Learned, heuristic and constant gates on small problems of two tasks, several seeds, in one run on this machine.

    OPENBLAS_NUM_THREADS=1 python benchmarks/gates.py --out benchmarks/results/gates.json

A student network learns from fresh batches of a teacher's outputs. In ``both help`` two equal tasks see the same
teacher with a little noise each; in ``one is weak`` half of what the second task's labels hold is noise; in ``a small
one is noise`` the second task has an eighth of the rows and its labels are nothing but noise. Two errors are taken
after training, on fresh data, as shares of the labels' variance: ``mean`` over all rows of both tasks, which is what
a learned gate is trained on, and ``clean``, from the teacher's own outputs. Beside them where the first task's gate
stood, mean over the last tenth of the steps. Mean and standard deviation over seeds; all gates see the same batches,
so seeds are compared in pairs.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from result_file import circumstances, spread_of, write

import gems_jax as gj
from gems_jax.transform.gates import Gate

# Share of noise in the labels of each task, and the share of the rows that it has.
PROBLEMS = {
    "both help": ((0.1, 0.1), (1.0, 1.0)),
    "one is weak": ((0.1, 0.5), (1.0, 1.0)),
    "a small one is noise": ((0.1, 1.0), (1.0, 0.125)),
}


def gates_to_compare() -> dict[str, Gate]:
    return {
        "constant, equal": gj.gates.constant([1, 1]),
        "constant, first task": gj.gates.constant([1, 0]),
        "heuristic": gj.gates.heuristic(),
        "learned, defaults": gj.gates.learned(),
        "learned, 1e-3, entropy 0.01": gj.gates.learned(learning_rate=1e-3, entropy=0.01),
        "learned, 1e-3, entropy 0.1": gj.gates.learned(learning_rate=1e-3, entropy=0.1),
    }


def network(params: list[jax.Array], x: jax.Array) -> jax.Array:
    for kernel in params[:-1]:
        x = jnp.tanh(x @ kernel)
    return x @ params[-1]


def draw_network(key: jax.Array, widths: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(key, len(widths) - 1)
    pairs = zip(keys, widths[:-1], widths[1:], strict=True)
    return [jax.random.normal(k, (m, n)) * (2 / m) ** 0.5 for k, m, n in pairs]


def trainer(gate: Gate, args: argparse.Namespace) -> Callable[..., dict[str, jax.Array]]:
    """``run(seed, noise [T], rows [T]) -> errors and gates [steps, T]``, compiled once a gate."""
    widths = (args.inputs, args.width, args.width, args.outputs)
    tx = gj.gems(args.learning_rate, num_tasks=2, rank=args.rank, refresh_every=args.refresh_every, gate=gate)

    def loss(params: list[jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        return gj.token_mean(jnp.mean((network(params, batch["x"]) - batch["y"]) ** 2, axis=-1), batch["mask"])

    def run(seed: jax.Array, noise: jax.Array, rows: jax.Array) -> dict[str, jax.Array]:
        teacher_key, student_key, data_key, test_key = jax.random.split(jax.random.key(seed), 4)
        teacher, student = draw_network(teacher_key, widths), draw_network(student_key, widths)
        spread = jnp.std(network(teacher, jax.random.normal(test_key, (2048, args.inputs))))

        def draw(key: jax.Array, size: int) -> dict[str, jax.Array]:
            input_key, noise_key = jax.random.split(key)
            x = jax.random.normal(input_key, (2, size, args.inputs))
            clean, share = network(teacher, x), noise[:, None, None]
            y = jnp.sqrt(1 - share) * clean + jnp.sqrt(share) * spread * jax.random.normal(noise_key, clean.shape)
            mask = (jnp.arange(size) < size * rows[:, None]).astype(jnp.float32)
            return {"x": x, "y": y, "mask": mask, "clean": clean}

        def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            batch = draw(key, args.rows)
            losses, grads = gj.task_value_and_grad(loss)(params, batch)
            counts = jnp.sum(batch["mask"], axis=1)
            updates, state = tx.update(grads, state, params, task_losses=losses, task_counts=counts)
            return (optax.apply_updates(params, updates), state), gj.diagnostics(state)["gates"]

        start = (student, tx.init(student))
        (params, _), gates = jax.lax.scan(step, start, jax.random.split(data_key, args.steps))
        test = draw(test_key, 2048)
        losses = jax.vmap(loss, in_axes=(None, 0))(params, test)
        # The best answer to the first task's labels is the teacher's, shrunk by what noise took of their variance.
        missed = network(params, test["x"][0]) - jnp.sqrt(1 - noise[0]) * test["clean"][0]
        return {
            "mean": jnp.sum(losses * rows) / jnp.sum(rows) / spread**2,
            "clean": jnp.mean(missed**2) / spread**2,
            "gates": gates,
        }

    return jax.jit(run)


def summary(measured: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, Any]:
    """Summary of one gate on one problem: arrays of all seeds, beside the heuristic gate's."""
    gates = measured["gates"]
    last = gates[:, -max(1, gates.shape[1] // 10) :, 0].mean(axis=1)
    row: dict[str, Any] = {"first_gate": spread_of(last.tolist()), "smallest_gate": float(gates.min())}
    for error in ("mean", "clean"):
        better = int(np.sum(measured[error] < reference[error]))
        row[error] = spread_of(measured[error].tolist()) | {"better_than_heuristic": better}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--inputs", type=int, default=12)
    parser.add_argument("--outputs", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--refresh-every", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, default=6, help="at least 2")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    begin = time.perf_counter()
    by_problem: dict[str, dict[str, dict[str, np.ndarray]]] = {problem: {} for problem in PROBLEMS}
    for name, gate in gates_to_compare().items():
        run = trainer(gate, args)
        for problem, (noise, rows) in PROBLEMS.items():
            seeds = [run(jnp.asarray(s), jnp.asarray(noise), jnp.asarray(rows)) for s in range(args.seeds)]
            by_problem[problem][name] = {key: np.array([one[key] for one in seeds]) for key in seeds[0]}
    table = {p: {name: summary(one, of["heuristic"]) for name, one in of.items()} for p, of in by_problem.items()}
    for problem, of in table.items():
        print(f"{problem:28s}  error, all rows (wins)        error, clean (wins)           gate of the first task")
        for name, row in of.items():
            columns = [
                f"{row[e]['mean']:.4f} +- {row[e]['std']:.4f} ({row[e]['better_than_heuristic']}/{args.seeds})"
                for e in ("mean", "clean")
            ]
            gate_column = f"{row['first_gate']['mean']:.3f} +- {row['first_gate']['std']:.3f}"
            print(f"  {name:28s}{columns[0]:30s}{columns[1]:30s}{gate_column}")
    result = {
        "rows": table,
        "problems": {p: {"noise_in_labels": noise, "rows": rows} for p, (noise, rows) in PROBLEMS.items()},
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "seeds": list(range(args.seeds)),
        "seconds": round(time.perf_counter() - begin, 1),
        "command": " ".join(["python", *sys.argv]),
        **circumstances("jax", "jaxlib", "optax", "numpy", device=jax.devices()[0].device_kind),
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
