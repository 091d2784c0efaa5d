"""The page of what a training step costs: `python docs/performance.py` writes docs/performance.md from the results.

Results are those of `python -m benchmarks.train_step --out benchmarks/results/train_step_SIZE.json`.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.train_step.table import ratio, shown  # noqa: E402

SIZES = {
    "t5-small-8x64": "T5 1.1 small (44 M parameters in kernels), two tasks of 8 x 64 tokens",
    "t5-small-16x128": "T5 1.1 small, two tasks of 16 x 128 tokens",
    "decoder-100m-4x512": "A decoder of 100 M parameters, two tasks of 4 x 512 tokens",
}
HEADS = (
    "method", "CPU time, x joint AdamW [10-90 %]", "with refreshes", "program MiB", "optimiser state MiB", "GFLOP",
    "sent MB", "compile s",
)  # fmt: skip
HEAD = """# What a training step costs

Written by `python docs/performance.py` from `benchmarks/results/train_step_*.json`.

Each row is one training step of two tasks by a named method, in one process and in turns with joint AdamW: medians of
the ratios of CPU seconds and their 10 to 90 % range. "With refreshes" is the mean over 200 steps, one of which makes
new bases. "Program" is what the compiled step needs, arguments and temporaries, refresh included. "Sent" is what eight
data-parallel devices send in a plain step, as the compiled program says. Operations are those of matrix products.
"""
TAIL = """
## Which gradients to take

* `train.gradients: projected` (`gj.projected_task_grads`) gives the updates of whole gradients
  ([optimiser.md](optimiser.md#gradients-that-are-never-formed)) in less time and three fifths to three quarters of the
  memory. It takes longer to compile: the loss is in the program twice, with products by the bases and, for a refresh,
  across. Of what it needs at 8 x 64 tokens 326 MiB are parameters, tables and the optimiser's state, and 78 the
  products of both tasks. The table of 16 x 128 tokens is from before steps took less memory: its programs need 974 MiB
  (whole gradients) and 733 (projected) now.
* A step on whole gradients has this memory in a loop of your own, with gradients and update in one `jax.jit`. A run's
  own step asks first whether all is finite, which makes one more copy of all gradients.
* The thin products `x U` and `(x U)^T dy` cost `(r + r_t + 8) (1 / m + 1 / n)` of what a kernel's gradient `[m, n]`
  costs: with ranks of an eighth and a sixteenth of the smaller side a third to a half, with the trainer's defaults (a
  quarter and an eighth) up to four fifths. Lower ranks are faster.
* A model whose layers are computed again in the backward pass (`remat: full`, the default here, on for all JAX rows)
  spends half of its operations on that and on the forward pass, which no optimiser changes.
* A step moves every kernel once (`W + U X`), whatever the batch: small batches gain less.

Not measured: GPUs and TPUs.
"""


def section(name, result):
    """A size's table and where it was measured."""
    rows = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    for method, row in result["rows"].items():
        if "missing" in row:
            rows.append(f"| {method} | {row['missing']} |" + " - |" * (len(HEADS) - 2))
            continue
        cpu, sent = row.get("seconds", {}).get("cpu", {}), (row.get("sent_bytes") or {}).get("plain")
        cells = [
            ratio(cpu),
            shown(cpu.get("amortised_times_reference")),
            shown(row.get("compiled_bytes"), 2**20),
            shown(row.get("state_bytes", {}).get("optimiser"), 2**20),
            shown(row.get("flops"), 1e9),
            shown(None if sent is None else sum(sent.values()), 1e6),
            shown(row.get("compile_seconds")),
        ]
        rows.append(f"| {method} | {' | '.join(cells)} |")
    settings, versions = result["settings"], ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    about = (
        f"Ranks {settings['rank']} and {settings['task_rank']}, {settings['rounds']} rounds; {result['machine']}; "
        f"{versions}; {result['date']}; `{result['command']}`."
    )
    return f"## {SIZES[name]}\n\n{about}\n\n" + "\n".join(rows) + "\n"


def page():
    """The page's text."""
    found = {name: ROOT / "benchmarks" / "results" / f"train_step_{name}.json" for name in SIZES}
    parts = [section(name, json.loads(path.read_text())) for name, path in found.items() if path.exists()]
    return HEAD + "\n" + "\n".join(parts) + TAIL


if __name__ == "__main__":
    (ROOT / "docs" / "performance.md").write_text(page())
