"""Whether what a run was tuned with is still where its configuration says."""

from pathlib import Path

from gems_jax.config.run import Config
from gems_jax.data.dataset.remote import exists
from gems_jax.data.raw.raw_files import local_name


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
