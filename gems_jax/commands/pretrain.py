"""``gems-jax pretrain``."""

from pathlib import Path
from typing import Any

from gems_jax.arguments import Command, Options, config_of


def _add_options(options: Options) -> None:
    options.add("--out", str, "folder to write; default: model.path", default=None)


def _run(options: Any) -> int:
    from gems_jax.staging import check_writable
    from gems_jax.training.pretrain import pretrain

    config = config_of(options)
    path = options.out or config.model.path
    check_writable(path, "--out" if options.out else "model.path")
    out = Path(path)
    if (out / "config.json").is_file():
        print(f"pretrain: there is a model in {out} already; remove the folder to make another")
        return 0
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds files but no model (config.json): it would be replaced; give another folder")
    pretrain(config, out)
    return 0


PRETRAIN = Command("train a small base model on plain text", _run, _add_options)
