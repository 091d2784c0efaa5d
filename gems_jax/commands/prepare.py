"""``gems-jax prepare``."""

from typing import Any

from gems_jax.arguments import Command, Options, config_of


def _add_options(options: Options) -> None:
    options.flag("--all", "also make a missing base model and null space")


def _run(options: Any) -> int:
    from gems_jax.training.run_assets import run_assets
    from gems_jax.training.stages import ensure_data
    from gems_jax.training.unknown_text import unknown_notes

    config = config_of(options)
    if options.all:
        assets = run_assets(config).assets
        dataset = assets.dataset
        for line in unknown_notes(config, dataset, assets.tokenizer):
            print(line)
    else:
        dataset = ensure_data(config)
    for split, counts in dataset.row_counts().items():
        print(f"  {split}: " + ", ".join(f"{task} {count:,}" for task, count in counts.items()))
    return 0


PREPARE = Command(
    "turn raw interactions into a validated, split dataset; set bad rows aside and count them", _run, _add_options
)
