"""Whether a configuration can be: each field by itself, and then all together."""

from collections.abc import Iterator

from gems_jax.config.gradients import why_whole
from gems_jax.config.items import QUANTISERS, ItemsConfig
from gems_jax.config.methods import METHODS
from gems_jax.config.metric_names import check_metric
from gems_jax.config.ranges import refuse, wrong_fields
from gems_jax.config.run import Config
from gems_jax.config.text_task import text_task_contradictions
from gems_jax.data.batching.prompts import parse_template
from gems_jax.staging import is_remote


def check(config: Config) -> None:
    """Checks every field, and then whether they go together; nothing is read or made.

    Raises:
      ValueError: all fields that cannot be, by name.

    Example:
      >>> from gems_jax.config.train import TrainConfig
      >>> check(Config(train=TrainConfig(steps=0, learning_rate=-1.0)))
      Traceback (most recent call last):
      ...
      ValueError: 2 fields of the configuration cannot be:
        train.steps must be a whole number from 1 on, got 0
        train.learning_rate must be a number above 0, or null, got -1.0
    """
    refuse(list(wrong_fields(config)))
    refuse(list(_contradictions(config)))


def _contradictions(config: Config) -> Iterator[str]:
    """Fields that are right alone and wrong together."""
    train, rule = config.train, config.null_space
    given = [name for name in ("energy", "rank", "threshold") if getattr(rule, name) is not None]
    if len(given) != 1:
        yield (
            f"exactly one of null_space.energy, null_space.rank and null_space.threshold must be given, got "
            f"{' and '.join(given) or 'none'}; set the others to null"
        )
    local: dict[str, str | None] = {"model.path": config.model.path}
    local |= {"null_space.path": config.null_space.path}
    items = config.items
    local |= {"pretrain.tokenizer": config.pretrain.tokenizer, "items.identifiers": items.identifiers}
    local |= {"items.path": items.path}
    for field_name, path in local.items():
        if path is not None and is_remote(path):
            yield f"{field_name} {path} is no path on this machine: name a copy here"
    made = items.identifiers in QUANTISERS
    if items.collisions is not None and (made or items.identifiers is None):
        what = "are reassigned anyway" if made else "do not collide"
        yield f"items.collisions has no effect: items.identifiers {items.identifiers or 'tokens'} {what}; leave it out"
    if not made and (items.levels, items.codebook_size) != (ItemsConfig.levels, ItemsConfig.codebook_size):
        yield f"items.levels and items.codebook_size need items.identifiers {' or '.join(QUANTISERS)}; leave them out"
    if items.capacity_factor is not None and items.identifiers != "rkmeans":
        yield "items.capacity_factor needs items.identifiers rkmeans; leave it out"
    for task, template in config.items.prompts.items():
        try:
            parse_template(template)
        except ValueError as error:
            yield f"items.prompts.{task}: {error}"
    if train.batch_size % train.accumulate:
        yield f"train.batch_size {train.batch_size} must be divisible by train.accumulate {train.accumulate}"
    yield from text_task_contradictions(config)
    if train.temperature != 1 and train.sampling != "temperature":
        yield f"train.temperature has no effect on train.sampling {train.sampling}; leave it out, or use temperature"
    if train.stochastic_rounding and config.model.dtype != "bfloat16":
        yield "train.stochastic_rounding has an effect on model.dtype bfloat16 alone; leave it out"
    if METHODS[train.method].whole_rank and isinstance(config.gems.rank, float):
        yield f"train.method {train.method} needs a whole number as gems.rank, got {config.gems.rank}"
    if METHODS[train.method].null_space == "weights" and rule.threshold is not None:
        yield f"train.method {train.method} needs null_space.energy or null_space.rank, and no null_space.threshold"
    if METHODS[train.method].null_space == "weights" and rule.max_directions is not None:
        yield f"train.method {train.method} has no use for null_space.max_directions; leave it out"
    if METHODS[train.method].null_space == "weights" and rule.unit_norm:
        yield f"train.method {train.method} has no use for null_space.unit_norm; leave it out"
    why = why_whole(train, config.gems)
    if train.gradients == "projected" and why is not None:
        yield f"train.gradients projected cannot be: {why}; use full or auto"
    if isinstance(rule.rank, float) and rule.rank == 1:
        yield "null_space.rank 1.0 is all directions, so that no kernel could move; 1 is one direction, 0.5 are half"
    if train.profile is not None and train.profile[0] > train.profile[1]:
        yield f"train.profile is the first and the last step to profile; got {list(train.profile)}"
    for name, shape in (("sasrec", config.evaluate.sasrec), ("tiger", config.evaluate.tiger)):
        if shape.width % shape.heads:
            yield f"evaluate.{name}.width {shape.width} must be divisible by evaluate.{name}.heads {shape.heads}"
    if config.evaluate.checkpoint == "best" and train.metric is None:
        yield "evaluate.checkpoint best needs train.metric, by which the best checkpoint is kept"
    try:
        check_metric(train.metric, train.patience, train.eval_every, config.items.prompts)
    except ValueError as error:
        yield str(error)
