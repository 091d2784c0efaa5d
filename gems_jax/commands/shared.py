"""What several commands do first."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gems_jax.arguments import config_of
from gems_jax.config.run import Config


def quiet() -> None:
    """Silences what people can do nothing about."""
    warnings.filterwarnings("ignore", message=".*Sharding info not provided.*")
    logging.getLogger("absl").setLevel(logging.ERROR)
    # bm25s sets its own level when it is imported; a filter stays.
    logging.getLogger("bm25s").addFilter(lambda record: record.levelno >= logging.ERROR)


def tuned_run(options: Any, check: Callable[[Config, Path], None], model: bool = True) -> tuple[Config, Path]:
    """Configuration and work directory of a run that has been tuned; ``check`` sees whether they belong together.

    The work directory is a folder on this machine: of one on an object store a copy, with the ``model`` if that is
    needed.
    """
    from gems_jax.training.path_checks import check_run_paths, check_tuned
    from gems_jax.training.workdir.copies import opened

    check_tuned(options.workdir)
    config = config_of(options)
    workdir = opened(options.workdir, config.evaluate.checkpoint if model else None)
    check(config, workdir)
    check_run_paths(config, workdir)
    return config, workdir
