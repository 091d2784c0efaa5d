"""``gems-jax calibrate``."""

from typing import Any

from gems_jax.arguments import Command, config_of


def _run(options: Any) -> int:
    from gems_jax.staging import check_writable
    from gems_jax.training.stages import calibrate, ensure_base

    config = config_of(options)
    check_writable(config.null_space.path, "null_space.path")
    ensure_base(config)
    calibrate(config)
    return 0


CALIBRATE = Command("estimate the base model's null space from general text", _run)
