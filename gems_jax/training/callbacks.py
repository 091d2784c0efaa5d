"""Where a run calls what its user wrote."""

from collections.abc import Mapping
from pathlib import Path


class Callback:
    """Told what happens in a run, for `gems_jax.training.tune.tune`; override what you need.

    Each of several processes calls its own, so that nothing here may wait for another process. Numbers are those of
    all processes together. An exception ends the run, as one of the run itself does.

    Example:
      >>> class Losses(Callback):
      ...     def __init__(self):
      ...         self.seen = []
      ...
      ...     def on_update(self, step, metrics):
      ...         self.seen.append((step, metrics["loss/rec"]))
    """

    def on_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each update, when its numbers are here: the next one has been sent already, unless it was the last.

        Args:
          step: updates made, from 1.
          metrics: by the names of ``metrics.jsonl``; what only lines of it have (rates, leaks out of the null space) is
            there where ``train.log_every`` writes one. A refused update has numbers that are not finite.
        """

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each evaluation of validation rows.

        Args:
          step: updates made.
          metrics: ``eval/...``, as in ``metrics.jsonl``.
        """

    def on_checkpoint(self, step: int, path: Path) -> None:
        """When a checkpoint is on disk whole: it is written while the run goes on.

        Args:
          step: updates made.
          path: of its folder, which newer ones replace (``train.keep_checkpoints``).
        """
