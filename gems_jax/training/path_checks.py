"""Whether a run has been tuned, and what it was tuned with is still where its configuration says."""

import os
from pathlib import Path

from gems_jax.config.run import Config
from gems_jax.data.dataset.remote import exists
from gems_jax.data.raw.raw_files import local_name
from gems_jax.staging import check_utf8, is_remote


def check_tuned(workdir: str | os.PathLike[str]) -> None:
    """Checks, before anything is loaded or made, that a folder is the work directory of a run that has saved a model.

    One on an object store is looked at when it is copied (`gems_jax.training.workdir.copies.opened`).

    Raises:
      FileNotFoundError: it is none, or holds no checkpoint.
      ValueError: its name is no UTF-8.
    """
    if is_remote(workdir):
        return
    folder = Path(workdir)
    check_utf8(folder, "--workdir")
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no work directory (no config.yaml); run gems-jax train first")
    if not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        raise FileNotFoundError(f"{folder} holds no checkpoint yet; run gems-jax train until it has saved one")


def check_run_paths(config: Config, workdir: Path) -> None:
    """Checks that a tuned run's base model and data are where its configuration says: others would be of no use to it.

    Raises:
      FileNotFoundError: there is nothing, and data cannot be prepared again.
    """
    missing = {}
    if not (Path(config.model.path) / "config.json").is_file():
        missing["model.path"] = config.model.path
    if not exists(config.data.dir) and config.data.path is not None and not Path(local_name(config.data.path)).exists():
        missing["data.dir"] = config.data.dir
    if missing:
        raise FileNotFoundError(
            f"{workdir} was tuned with {' and '.join(f'{name} {path}' for name, path in missing.items())}, where "
            "there is nothing now: bring it back or, if it was moved, say where it is: "
            + " ".join(f"--{name} FOLDER" for name in missing)
        )
