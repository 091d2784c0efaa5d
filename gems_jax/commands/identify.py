"""``gems-jax identify``."""

from typing import Any

from gems_jax.arguments import Command, config_of


def _run(options: Any) -> int:
    from gems_jax.models import load
    from gems_jax.staging import check_writable
    from gems_jax.training.identify import check_made, identify
    from gems_jax.training.stages import ensure_base, ensure_data

    config = config_of(options)
    check_made(config)
    check_writable(config.items.path, "items.path")
    dataset = ensure_data(config)
    identify(config, dataset, *load(ensure_base(config), config.model.dtype))
    return 0


IDENTIFY = Command("make identifiers of several tokens for the items, from their texts", _run)
