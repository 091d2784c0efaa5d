"""Names of what an evaluation during training gives, which a configuration may choose from."""

import difflib
from collections.abc import Iterable


def is_loss(metric: str) -> bool:
    """Whether smaller values of a metric are better."""
    return metric.endswith("loss")


def metric_names(tasks: Iterable[str]) -> list[str]:
    """The metrics that an evaluation during training gives."""
    return [f"eval/{task}/{name}" for task in tasks for name in ("hit@10", "ndcg@10")] + ["eval/general/loss"]


def check_metric(metric: str | None, patience: int, eval_every: int, tasks: Iterable[str]) -> None:
    """Checks that a run with this metric can be.

    Raises:
      ValueError: there is no such metric (with the nearest one), or no evaluation to give it.
    """
    if metric is None:
        if patience:
            raise ValueError(f"train.patience={patience} needs train.metric, such as eval/general/loss")
        return
    if not eval_every:
        raise ValueError(f"train.metric {metric} needs evaluations: set train.eval_every")
    names = metric_names(tasks)
    if metric not in names:
        near = difflib.get_close_matches(metric, names, 1, cutoff=0.0)[0]
        raise ValueError(f"train.metric {metric!r} is no metric of this run; did you mean {near!r}?")
