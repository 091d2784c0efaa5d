"""What a run is made of: frozen dataclasses, read from YAML files and command-line overrides."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from gems_jax.config.methods import METHODS
from gems_jax.config.metric_names import check_metric
from gems_jax.config.ranges import refuse, wrong_fields
from gems_jax.data.batching.prompts import parse_template
from gems_jax.data.raw.options import Preprocessing, TableFiles
from gems_jax.staging import is_remote


@dataclass(frozen=True)
class DataConfig:
    """The interactions.

    Attributes:
      name: of the source: ``marketplace`` (generated), ``table`` (your own logs), ``amazon``, ``amazon_scientific``,
        ``qilin`` or ``released`` (the authors' six tables); see docs/data.md. One that was registered, too.
      path: folder of the raw files, for datasets that have some.
      dir: folder of the prepared dataset; made where it is missing.
      seed: of negatives, and of the generated marketplace.
      num_negatives: candidates beside the target in valid and test.
      num_users: of the generated marketplace.
      max_bad_fraction: share of bad rows above which preparation stops.
      preprocessing: which users and items stay, how histories and splits are made.
      files: names and columns of a ``table``.
      category: of an ``amazon`` dataset.
      tokens: folder where training tables are kept as tokens: each is encoded once, by whatever run comes first, and
        mapped into memory from then on, see `gems_jax.data.batching.token_cache.encode_once`; ``None``: encoded at
        every start, in memory.
      prefetch: training batches made ahead, see `gems_jax.data.batching.pipeline.task_batches`; 0: each when it is
        needed.
      threads: that make them.
    """

    name: str = "marketplace"
    path: str | None = None
    dir: str = "runs/demo/data"
    seed: int = 0
    num_negatives: int = 99
    num_users: int = 800
    max_bad_fraction: float = 0.01
    preprocessing: Preprocessing = Preprocessing()
    files: TableFiles | None = None
    category: str | None = None
    tokens: str | None = None
    prefetch: int = 4
    threads: int = 1


@dataclass(frozen=True)
class TextConfig:
    """General text, whose knowledge is to be kept.

    Attributes:
      train: a file, a folder of files or a pattern, of plain text in UTF-8 (``.txt``), JSON lines or arrays, parquet
        or CSV, text also compressed; or ``pydoc``: Python's own documentation.
      heldout: the same for measuring drift.
      field: of rows of JSON, parquet and CSV, that holds their text.
      input_length: tokens of an input.
      eval_batches: batches of ``eval_batch_size`` inputs that drift is measured on, spread over the text.
      eval_batch_size: inputs a batch.
    """

    train: str = "pydoc"
    heldout: str = "pydoc"
    field: str = "text"
    input_length: int = 96
    eval_batches: int = 16
    eval_batch_size: int = 32


@dataclass(frozen=True)
class PretrainConfig:
    """A small T5 1.1 from plain text by span corruption, for machines that can download none.

    Attributes:
      vocab_size: of the tokenizer trained on the same text.
      tokenizer: folder of a tokenizer to use instead.
      d_model, d_kv, d_ff, num_layers, num_decoder_layers, num_heads: shape of the model.
      tie_word_embeddings: one table for inputs and outputs (T5 1.1 has two).
      steps, batch_size, learning_rate, warmup: of AdamW with a cosine schedule to a tenth.
      weight_decay: of kernels.
      seed: of weights and order.
    """

    vocab_size: int = 2048
    tokenizer: str | None = None
    d_model: int = 96
    d_kv: int = 24
    d_ff: int = 192
    num_layers: int = 2
    num_decoder_layers: int = 2
    num_heads: int = 4
    tie_word_embeddings: bool = False
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 4e-3
    warmup: int = 60
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """The base model.

    Attributes:
      path: Hugging Face folder; made by ``pretrain`` where it is missing and ``from_text`` is set.
      from_text: whether a missing base model is pretrained.
      dtype: of parameters and computation.
    """

    path: str = "runs/demo/base"
    from_text: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class NullSpaceConfig:
    """The general-domain null space: exactly one of ``energy``, ``rank``, ``threshold``.

    Attributes:
      path: folder; made by ``calibrate`` where it is missing.
      energy, rank, threshold, side: see `gems_jax.NullSpace.from_moments`.
      min_share: where ``energy`` is the rule, the least share of an input's directions that is protected: one outlier
        can hold nearly all of an input's energy.
      batches: batches of general text it is estimated from.
      batch_size: inputs a batch.
    """

    path: str = "runs/demo/null_space"
    energy: float | None = 0.85
    rank: int | float | None = None
    threshold: float | None = None
    min_share: float | None = 0.35
    side: Literal["in", "out"] = "in"
    batches: int = 64
    batch_size: int = 32


@dataclass(frozen=True)
class ItemsConfig:
    """Item tokens and prompts.

    Attributes:
      init: of their rows: the mean of the ``title`` tokens' rows, or ``random``.
      identifiers: JSON file of items that share tokens, see `gems_jax.items.load_item_identifiers`; ``None``: each
        item has a token of its own.
      prompts: a template a task, of ``{history}`` and, for searches, ``{query}``.
      max_length: tokens of an input; the oldest items are dropped.
      length_buckets: lengths that batches may have instead, a compilation each.
      length_window: steps of training whose rows are sorted by length and cut into batches, short with short, which
        with ``length_buckets`` saves padding; 1: rows stay as they are shuffled.
    """

    init: Literal["title", "random"] = "title"
    identifiers: str | None = None
    prompts: dict[str, str] = field(
        default_factory=lambda: {
            "rec": "history: {history} next:",
            "src": "search: {query} history: {history} found:",
        }
    )
    max_length: int = 40
    length_buckets: tuple[int, ...] = ()
    length_window: int = 1


@dataclass(frozen=True)
class GemsConfig:
    """Options of `gems_jax.gems`, by the same names.

    Attributes:
      null_space: whether updates are constrained.
      gate: ``heuristic``, ``learned`` or ``equal``.
      rank, task_rank: a whole number of columns, or with a decimal point a share: ``1`` is one column, ``1.0`` all.
      others: see `gems_jax.gems`.
    """

    rank: int | float = 0.25
    task_rank: int | float | None = None
    side: Literal["auto", "in", "out"] = "auto"
    refresh_every: int = 200
    decomposition: Literal["auto", "svd", "eigh", "subspace"] = "auto"
    signs: Literal["canonical", "align"] = "canonical"
    moments: Literal["keep", "reset"] = "keep"
    complementary: bool = False
    stagger: bool = False
    scale: float = 1.0
    gate: Literal["heuristic", "learned", "equal"] = "heuristic"
    null_space: bool = True
    constraint: Literal["update", "gradient"] = "update"


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685), for ``train.method: lora``; merged into kernels where the model is used.

    Attributes:
      rank: of every adapter.
      alpha: scale; the adapters' product is multiplied by ``alpha / rank``.
    """

    rank: int = 8
    alpha: float = 16.0


@dataclass(frozen=True)
class MeshConfig:
    """How the devices of all processes are laid out; what is left of them splits the rows of batches.

    Attributes:
      fsdp: devices over which parameters and optimiser state are split; they split rows, too.
      tensor: devices over which the products themselves are split.
      task: devices over which the tasks are split, each with gradients, bases and moments of its tasks alone.
    """

    fsdp: int = 1
    tensor: int = 1
    task: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """Tuning on all tasks.

    Attributes:
      method: a name of `gems_jax.config.methods.METHODS`, such as ``gems``, ``adamw`` or ``pcgrad``; docs/methods.md
        lists them.
      steps: updates.
      batch_size: most rows of each task an update, over all processes.
      accumulate: parts that the rows of an update are worked through in, one after the other; needs less memory.
      sampling: rows of each task a step: ``equal``, ``ratio`` to the tables' sizes or by ``temperature``; see
        `gems_jax.data.batching.pipeline.task_batches`.
      temperature: of the sampling of that name.
      learning_rate: of kernels.
      item_learning_rate: of the added item rows.
      other_learning_rate: of pretrained rows, norms and relative positions where they are trained.
      schedule: ``cosine`` or ``linear`` decay to 0, or ``constant``, after ``warmup`` steps.
      warmup: steps of linear warm-up.
      weight_decay: decoupled, on kernels.
      clip: largest norm of a gradient; ``None``: no clipping, as in the multi-task loop of arXiv 2601.09496.
      clip_by: ``task``: each task's gradient by its own norm; ``global``: all by the norm of the joint gradient.
      train_embeddings, train_norms, train_positions: whether pretrained rows (embedding and head), norms and
        relative positions train; they are outside the null space and cause most of the forgetting.
      loss_vocabulary: ``items``: the softmax over the items and the end token; ``full``: over all tokens.
      loss_chunk: label tokens whose logits are held at once; ``None``: as many as make 64 MiB.
      compute_dtype: of the products, where it is not ``model.dtype``: ``bfloat16`` with ``model.dtype`` float32 is
        mixed precision with float32 master weights.
      stochastic_rounding: whether bfloat16 parameters are rounded up or down at random, so that small updates are not
        lost. Rounding, of either kind, takes the stored change out of the null space: ``null_space/leak_stored``.
      dropout: rate (T5).
      seed: of order, dropout and rounding.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations on validation rows; 0: none.
      eval_rows: validation rows of each task in those.
      metric: of those evaluations, such as ``eval/rec/ndcg@10`` or ``eval/general/loss``, by which the best checkpoint
        is kept; ``None``: the last ones alone are.
      patience: evaluations in a row without a better ``metric`` after which the run ends; 0: it never ends early.
      checkpoint_every: steps between checkpoints; 0: only the last.
      keep_checkpoints: newest checkpoints that are kept, beside the best.
      max_non_finite: updates in a row that may be refused because a loss or gradient is not finite.
      hang_after: seconds in one phase of a step after which a watchdog says so; 0: no watchdog.
      profile: first and last step to be profiled, into ``profile/`` of the work directory.
      writers: where metrics go beside ``metrics.jsonl``; each needs its package.
    """

    method: str = "gems"
    steps: int = 500
    batch_size: int = 32
    accumulate: int = 1
    sampling: Literal["equal", "ratio", "temperature"] = "equal"
    temperature: float = 1.0
    learning_rate: float = 3e-3
    item_learning_rate: float = 3e-3
    other_learning_rate: float = 1e-3
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    warmup: int = 20
    weight_decay: float = 0.0
    clip: float | None = None
    clip_by: Literal["task", "global"] = "task"
    train_embeddings: bool = False
    train_norms: bool = False
    train_positions: bool = False
    loss_vocabulary: Literal["items", "full"] = "items"
    loss_chunk: int | None = None
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    stochastic_rounding: bool = False
    dropout: float = 0.0
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_rows: int = 500
    metric: str | None = None
    patience: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    max_non_finite: int = 10
    hang_after: float = 900.0
    profile: tuple[int, int] | None = None
    writers: tuple[Literal["tensorboard", "wandb"], ...] = ()


@dataclass(frozen=True)
class EvaluateConfig:
    """Measuring a tuned model.

    Attributes:
      split: ``test`` or ``valid``.
      checkpoint: ``last`` or ``best``, by ``train.metric``; `gems-jax export` takes it, too.
      beams: items whose end token is scored.
      batch_size: rows a pass.
      rows: rows of each task; ``None``: all.
      samples: bootstrap resamples of the confidence intervals.
      compare: work directories of other runs, shown beside this one.
    """

    split: Literal["test", "valid"] = "test"
    checkpoint: Literal["last", "best"] = "last"
    beams: int = 20
    batch_size: int = 128
    rows: int | None = None
    samples: int = 1000
    compare: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """Everything a run is made of.

    Attributes:
      name: of the run, in tables.
    """

    name: str = "GEMS"
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    null_space: NullSpaceConfig = field(default_factory=NullSpaceConfig)
    items: ItemsConfig = field(default_factory=ItemsConfig)
    gems: GemsConfig = field(default_factory=GemsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def check(config: Config) -> None:
    """Checks every field, and then whether they go together; nothing is read or made.

    Raises:
      ValueError: all fields that cannot be, by name.

    Example:
      >>> check(Config(train=TrainConfig(steps=0, learning_rate=-1.0)))
      Traceback (most recent call last):
      ...
      ValueError: 2 fields of the configuration cannot be:
        train.steps must be a whole number from 1 on, got 0
        train.learning_rate must be a number above 0, got -1.0
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
    local |= {"pretrain.tokenizer": config.pretrain.tokenizer, "items.identifiers": config.items.identifiers}
    local |= {f"evaluate.compare.{name}": place for name, place in config.evaluate.compare.items()}
    for field_name, place in local.items():
        if place is not None and is_remote(place):
            yield f"{field_name} {place} is no path on this machine: name a copy here"
    for task, template in config.items.prompts.items():
        try:
            parse_template(template)
        except ValueError as error:
            yield f"items.prompts.{task}: {error}"
    if train.batch_size % train.accumulate:
        yield f"train.batch_size {train.batch_size} must be divisible by train.accumulate {train.accumulate}"
    if train.temperature != 1 and train.sampling != "temperature":
        yield f"train.temperature has no effect on train.sampling {train.sampling}; leave it out, or use temperature"
    if train.stochastic_rounding and config.model.dtype != "bfloat16":
        yield "train.stochastic_rounding has an effect on model.dtype bfloat16 alone; leave it out"
    if METHODS[train.method].whole_rank and isinstance(config.gems.rank, float):
        yield f"train.method {train.method} needs a whole number as gems.rank, got {config.gems.rank}"
    if isinstance(rule.rank, float) and rule.rank == 1:
        yield "null_space.rank 1.0 is all directions, so that no kernel could move; 1 is one direction, 0.5 are half"
    if train.profile is not None and train.profile[0] > train.profile[1]:
        yield f"train.profile is the first and the last step to profile; got {list(train.profile)}"
    if config.evaluate.checkpoint == "best" and train.metric is None:
        yield "evaluate.checkpoint best needs train.metric, by which the best checkpoint is kept"
    try:
        check_metric(train.metric, train.patience, train.eval_every, config.items.prompts)
    except ValueError as error:
        yield str(error)
