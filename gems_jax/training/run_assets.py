"""All that a command on a run stands on: base model, what tuning starts from, null space, data."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from gems_jax.config.run import Config
from gems_jax.data.dataset.remote import exists
from gems_jax.models import load
from gems_jax.null_space.space import NullSpace
from gems_jax.training.distributed.mesh import make_mesh, shard_mesh
from gems_jax.training.identify import is_missing
from gems_jax.training.optimiser.chain import needs_null_space
from gems_jax.training.stages import Assets, assemble, ensure_base, ensure_data, ensure_null_space
from gems_jax.training.workdir.assets import in_run_order


class RunAssets(NamedTuple):
    """What a run stands on.

    Args:
      base: the base model, before items were added.
      assets: of tuning.
      null_space: where the run needs one.
    """

    base: Any
    assets: Assets
    null_space: NullSpace | None


def run_assets(config: Config, workdir: Path | None = None, tuned: bool = False) -> RunAssets:
    """Base model, assets for tuning, null space; made where missing (by one process).

    Items have the numbers that a run in ``workdir`` has given them. A ``tuned`` run needs no null space any more, and
    its rows need no beginning.
    """
    if jax.process_count() > 1:
        missing = [] if exists(config.data.dir) else [config.data.dir]
        folders = [config.model.path, *([config.null_space.path] if needs_null_space(config) else [])]
        missing += [folder for folder in folders if not Path(folder).is_dir()]
        missing += [config.items.path] if is_missing(config) else []
        if missing:
            raise FileNotFoundError(
                f"{', '.join(missing)} must exist before several processes train: run gems-jax prepare --all with the "
                "same configuration once"
            )
    dataset = ensure_data(config)
    if workdir is not None:
        dataset = in_run_order(dataset, workdir, config.data.dir)
    # A mesh is laid out for the run: other commands take the devices there are.
    trains = workdir is not None and not tuned
    devices = make_mesh(config.mesh).devices.flatten().tolist() if trains else jax.devices()
    base, tokenizer = load(ensure_base(config), config.model.dtype, shard_mesh(config.mesh, devices))
    null_space = ensure_null_space(config, base, tokenizer) if needs_null_space(config) and not tuned else None
    return RunAssets(base, assemble(config, dataset, (base, tokenizer), tuned), null_space)
