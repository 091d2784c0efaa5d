"""A tuned run that answers from Python: loaded once, asked often."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gems_jax.arguments import parse_config
from gems_jax.config.run import Config
from gems_jax.serving.answers import Answer
from gems_jax.serving.engine import Engine
from gems_jax.serving.requests import Request
from gems_jax.training.path_checks import check_run_paths, check_tuned
from gems_jax.training.stages import Assets, untuned_model
from gems_jax.training.tuned import load_run
from gems_jax.training.workdir.copies import config_file, opened


def load_engine(
    config: Config,
    workdir: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    beams: int | None = None,
    listed: int = 0,
    base: bool = False,
) -> Engine:
    """The engine of a tuned run.

    Args:
      config: of the run.
      workdir: of the run, here or on an object store, of which a copy is made as it is there now.
      batch_size: requests that are ranked at once; ``None``: ``evaluate.batch_size``.
      beams: width of the search; ``None``: ``evaluate.beams``.
      listed: see `Engine`.
      base: whether the model before its first step is kept, too; where it cannot be made again this is said, and it is
        left out.

    Raises:
      FileNotFoundError, ValueError: as `gems_jax.training.tuned.load_run`.
    """
    _, assets, model, edits = load_run(config, opened(workdir, config.evaluate.checkpoint))
    return Engine(
        model,
        assets.tokenizer,
        assets.dataset,
        assets.items,
        assets.templates(config),
        config.items.max_length,
        beams=beams or config.evaluate.beams,
        vocabulary=config.train.loss_vocabulary,
        batch_size=batch_size or config.evaluate.batch_size,
        listed=listed,
        edited=edits.notice(),
        base=_untuned(config, assets) if base else None,
    )


def _untuned(config: Config, assets: Assets) -> Any | None:
    try:
        return untuned_model(config, assets)
    except (OSError, ValueError) as error:
        print(f"serve: answers come without the base model beside them, which cannot be made: {error}", file=sys.stderr)
        return None


def config_of_run(workdir: str | os.PathLike[str]) -> Config:
    """The configuration that a run was tuned with.

    Raises:
      FileNotFoundError, ValueError: the folder holds no tuned run, or what it was tuned with is gone.
    """
    check_tuned(workdir)
    config = parse_config(["--config", str(config_file(workdir))])
    check_run_paths(config, Path(workdir))
    return config


class Recommender:
    """Answers requests by the model of a tuned run.

    It loads the model once. Requests are ranked in batches of a few shapes, and the program of each is compiled when a
    batch first has it; `warm_up` compiles them before.

    Args:
      workdir: of the run, as ``gems-jax train`` made it; here or on an object store.
      batch_size: requests that are ranked at once; ``None``: ``evaluate.batch_size`` of the run.
      beams: width of the search; ``None``: ``evaluate.beams`` of the run. Where a request asks for more results, it is
        the next power of two.

    Raises:
      FileNotFoundError: the folder holds no tuned run, or what it was tuned with is gone.
      ValueError: something is damaged, or the run was tuned on something else.

    Example::

      recommender = gj.Recommender("runs/demo/gems")
      for item in recommender.search("red lamp", user="user0003", k=5).items:
          print(item.title, item.score)
    """

    def __init__(self, workdir: str | os.PathLike[str], *, batch_size: int | None = None, beams: int | None = None):
        self._engine = load_engine(config_of_run(workdir), workdir, batch_size=batch_size, beams=beams)

    @property
    def edited(self) -> str:
        """How the catalogue was edited since training, in a few words; empty where it was not."""
        return self._engine.catalogue.edited

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that may be asked for."""
        return self._engine.catalogue.tasks

    def recommend(
        self,
        user: str | None = None,
        history: Iterable[str] | None = None,
        k: int = 10,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
    ) -> Answer:
        """What to recommend: the best items but for those of the history.

        Args:
          user: whose history the dataset knows.
          history: item ids, oldest first, of someone else.
          k: number of items.
          allow: item ids to choose from; ``None``: the catalogue.
          deny: item ids to leave out.

        Returns:
          At most k items, best first: as if the catalogue had only the items that may be recommended.

        Raises:
          RequestError: (a ``ValueError``) no such user or item, or a value that cannot be.
        """
        return self.rank("rec", [{"user": user, "history": history, "k": k, "allow": allow, "deny": deny}])[0]

    def search(
        self,
        query: str,
        user: str | None = None,
        history: Iterable[str] | None = None,
        k: int = 10,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] | None = None,
    ) -> Answer:
        """What a query finds; items of the history are marked as known. Arguments as of `recommend`."""
        request = {"query": query, "user": user, "history": history, "k": k, "allow": allow, "deny": deny}
        return self.rank("src", [request])[0]

    def rank(self, task: str, requests: Sequence[Mapping[str, Any] | Request]) -> list[Answer]:
        """The answers to many requests, in their order.

        Args:
          task: of the run; requests may name another.
          requests: each a `Request`, or a mapping of its fields.

        Raises:
          RequestError: as of `recommend`.
        """
        return self._engine.rank([one if isinstance(one, Request) else Request.of(one, task) for one in requests])

    def warm_up(self) -> int:
        """Compiles the programs of all usual shapes; returns their number."""
        return self._engine.warm_up()
