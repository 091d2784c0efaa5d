"""Which model a run answers with, in one word."""

import hashlib
import json
from pathlib import Path

from gems_jax.checksums import NAME as SUMS
from gems_jax.config.run import Config
from gems_jax.training.workdir import assets, edits
from gems_jax.training.workdir.files import as_json


def model_fingerprint(config: Config, workdir: Path) -> str:
    """A digest that another model, catalogue or way to rank would change.

    Args:
      config: of the run, with the options of its evaluation.
      workdir: of the run.
    """
    digest = hashlib.sha256(json.dumps(as_json(config)["evaluate"], sort_keys=True).encode())
    edited = [path for path in [workdir / edits.NAME] if path.is_file()]
    for path in [workdir / assets.NAME, *edited, *sorted((workdir / "checkpoints").glob(f"*/{SUMS}"))]:
        digest.update(f"{path.relative_to(workdir)} ".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
