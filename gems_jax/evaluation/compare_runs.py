"""Two evaluated runs compared user by user, from what each has saved in its work directory.

python -m gems_jax.evaluation.compare_runs runs/gems runs/joint --metrics ndcg@10 hit@10
"""

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gems_jax.evaluation.evaluate import load_rankings
from gems_jax.evaluation.paired import compare_rankings, metric_of_rows
from gems_jax.staging import is_remote

COMPARED = ("ndcg@10", "hit@10")

Comparison = dict[str, dict[str, dict[str, Any]]]


def compare_runs(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    names: Sequence[str] = COMPARED,
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """`gems_jax.evaluation.paired.paired_test` of every task that both runs have ranked.

    Args:
      a, b: work directories, or other folders of ``ranking_<task>.npz``, of the same rows.
      names: metrics with cut-offs, such as ``"ndcg@10"``.
      samples, seed: as of `paired_test`.

    Returns:
      Task to metric to ``"a"`` and ``"b"``, the two means, ``"difference"``, ``"low"``, ``"high"``, ``"p_value"`` and
      ``"users"`` (see `PairedTest`); JSON values only. A positive difference speaks for ``a``.

    Raises:
      FileNotFoundError: if a folder holds no rankings.
      ValueError: if no task is in both, they ranked different rows, or a metric is unknown.
    """
    for folder in (a, b):
        if is_remote(folder):
            raise ValueError(f"{folder} is on an object store: copy it here, or name it as evaluate.compare of a run")
    tasks = {folder: _tasks(Path(folder)) for folder in (a, b)}
    shared = [task for task in tasks[a] if task in tasks[b]]
    if not shared:
        raise ValueError(f"{a} has ranked {', '.join(tasks[a])}, {b} {', '.join(tasks[b])}: no task is in both")
    comparison: Comparison = {}
    for task in shared:
        one, other = (load_rankings(Path(folder) / f"ranking_{task}.npz") for folder in (a, b))
        try:
            comparison[task] = {
                name: {
                    "a": float(metric_of_rows(one, name).mean()),
                    "b": float(metric_of_rows(other, name).mean()),
                    **compare_rankings(one, other, name, samples=samples, seed=seed)._asdict(),
                }
                for name in names
            }
        except ValueError as error:
            raise ValueError(f"{a} and {b}, task {task!r}: {error}") from None
    return comparison


def compare_with_each(
    run: str | os.PathLike[str], others: Mapping[str, str | os.PathLike[str]], *, samples: int = 10_000
) -> dict[str, Comparison]:
    """`compare_runs` of a run with each of several others; those that cannot be compared are left out with a warning.

    Args:
      run: work directory.
      others: names and work directories.
      samples: as of `paired_test`.

    Returns:
      Name to `compare_runs`, as the report shows it.
    """
    comparisons = {}
    for name, folder in others.items():
        try:
            comparisons[name] = compare_runs(run, folder, samples=samples)
        except (ValueError, FileNotFoundError) as error:
            warnings.warn(f"{name!r} is not compared user by user: {error}", stacklevel=2)
    return comparisons


def comparison_lines(comparison: Comparison) -> str:
    """A line a task and metric, for a terminal.

    Args:
      comparison: of `compare_runs`.

    Example:
      >>> row = {"a": 0.25, "b": 0.125, "difference": 0.125, "low": 0.0625, "high": 0.25, "p_value": 0.01, "users": 8}
      >>> print(comparison_lines({"rec": {"ndcg@10": row}}))
      rec  ndcg@10  0.2500 against 0.1250: +0.1250 [+0.0625, +0.2500], p = 0.0100, 8 users
    """
    return "\n".join(_line(task, name, row) for task, rows in comparison.items() for name, row in rows.items())


def _line(task: str, name: str, row: Mapping[str, Any]) -> str:
    return (
        f"{task}  {name}  {row['a']:.4f} against {row['b']:.4f}: {row['difference']:+.4f} "
        f"[{row['low']:+.4f}, {row['high']:+.4f}], p = {row['p_value']:.4f}, {row['users']:,} users"
    )


def _tasks(folder: Path) -> list[str]:
    tasks = sorted(path.stem.removeprefix("ranking_") for path in folder.glob("ranking_*.npz"))
    if not tasks:
        raise FileNotFoundError(f"{folder} holds no ranking_<task>.npz: evaluate the run there first")
    return tasks


def main(argv: Sequence[str] | None = None) -> int:
    """Compares two folders and prints a line a task and metric; 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="work directory of an evaluated run")
    parser.add_argument("b", help="of the run it is compared with")
    parser.add_argument("--metrics", nargs="+", default=list(COMPARED))
    parser.add_argument("--samples", type=int, default=10_000, help="sign flips and resamples")
    options = parser.parse_args(argv)
    try:
        print(comparison_lines(compare_runs(options.a, options.b, options.metrics, samples=options.samples)))
    except (ValueError, FileNotFoundError) as error:
        print(f"compare_runs: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
