"""The whole path on a tiny model: GEMS beside GEMS without its null space and joint AdamW."""

import dataclasses
from pathlib import Path

from gems_jax.config.own_rates import with_rates
from gems_jax.config.paths import absolute
from gems_jax.config.run import Config
from gems_jax.models import load
from gems_jax.training.evaluate_run import evaluate_run, table_of
from gems_jax.training.stages import assemble, ensure_base, ensure_data, ensure_null_space
from gems_jax.training.tune import tune
from gems_jax.training.workdir.assets import in_run_order
from gems_jax.training.workdir.files import as_json, read_kept_config


def variants(config: Config) -> dict[str, Config]:
    """The runs that the demo compares, the one of the report last."""
    unconstrained = dataclasses.replace(config.gems, null_space=False)
    # At the run's own learning rate, which is more than joint AdamW has by itself: a model as small as this bears it.
    adamw = dataclasses.replace(with_rates(config).train, method="adamw")
    return {
        "joint AdamW": dataclasses.replace(config, name="joint AdamW", train=adamw),
        "GEMS without null space": dataclasses.replace(config, name="GEMS without null space", gems=unconstrained),
        config.name: config,
    }


def demo(config: Config, workdir: Path) -> Path:
    """Makes everything, tunes, evaluates; what is finished is not done again.

    Args:
      config: of the run; the defaults are the demo's.
      workdir: of the run; the others lie beside it.

    Returns:
      The report's path.
    """
    dataset = ensure_data(config)
    base_folder = ensure_base(config)
    ensure_null_space(config)
    compare: dict[str, str] = {}
    for name, variant in variants(config).items():
        is_main = name == config.name
        folder = workdir if is_main else workdir.parent / name.replace(" ", "_").lower()
        if is_main:
            variant = dataclasses.replace(variant, evaluate=dataclasses.replace(variant.evaluate, compare=compare))
        else:
            compare[name] = str(folder)
        if is_finished(variant, folder):
            print(f"demo: {name} is done already")
            continue
        print(f"demo: {name}")
        base, tokenizer = load(base_folder, variant.model.dtype)
        assets = assemble(variant, in_run_order(dataset, folder), (base, tokenizer))
        constrained = variant.train.method != "adamw" and variant.gems.null_space
        null_space = ensure_null_space(variant, base, tokenizer) if constrained else None
        tuned = tune(variant, assets, null_space, folder)
        results = evaluate_run(variant, assets, base, tuned, folder)
        if is_main:
            print(table_of(results))
    return workdir / "report.html"


def is_finished(config: Config, folder: Path) -> bool:
    """Whether a run with this very configuration has been evaluated."""
    if not all((folder / name).is_file() for name in ("eval.json", "report.html", "config.yaml")):
        return False
    return absolute(read_kept_config(folder / "config.yaml")) == absolute(as_json(config))
