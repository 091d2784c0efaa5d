"""The configuration of a run: frozen dataclasses, read from YAML files and command-line overrides."""

from dataclasses import dataclass, field
from typing import Literal

from gems_jax.config.rankers import Baseline, SasrecConfig, TigerConfig, TwoTowerConfig
from gems_jax.data.preparation.options import Preprocessing
from gems_jax.data.raw.options import TableFiles

# Ways to make identifiers of several tokens.
QUANTISERS = ("rkmeans", "rqvae")


@dataclass(frozen=True)
class DataConfig:
    """The interactions.

    Attributes:
      name: the source: ``marketplace`` (generated), ``table`` (your own logs), ``amazon``, ``amazon_scientific``,
        ``qilin``, ``released`` (the authors' six tables), ``kuaisar``, ``minionerec``, ``collisiongenrec``,
        ``amazon_splits``, or one that was registered; see docs/data.md.
      path: folder of the raw files, for sources that read files.
      dir: folder of the prepared dataset; it is made where it is missing.
      seed: seed of the negatives and of the generated marketplace.
      num_negatives: candidates beside the target in each row of valid and test.
      num_users: users of the generated marketplace.
      max_bad_fraction: preparation stops if a larger share of the rows is bad.
      preprocessing: which users and items stay, how histories and splits are made.
      files: names and columns of a ``table``'s files.
      category: category of an ``amazon``, ``amazon_splits``, ``minionerec`` or ``collisiongenrec`` dataset.
      tokens: folder for encoded training tables: the first run encodes them, later runs map the files into memory; see
        `gems_jax.data.batching.token_cache.encode_once`. ``null``: every run encodes its tables in memory.
      prefetch: training batches that are made ahead; 0: each is made when it is needed.
      threads: threads that make training batches.
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
    """General text, which stands for the knowledge to be kept.

    Attributes:
      train: text that the null space, and a pretrained base, are made from: ``pydoc`` (Python's own documentation), or
        a file, a folder of files or a pattern of plain text in UTF-8 (``.txt``), JSON lines or arrays, parquet or CSV;
        text may be compressed.
      heldout: text that forgetting is measured on, named in the same ways.
      field: field of JSON, parquet and CSV rows that holds the text.
      input_length: tokens of an input.
      eval_batches: number of batches that forgetting is measured on, spread over the text.
      eval_batch_size: inputs in each of these batches.
    """

    train: str = "pydoc"
    heldout: str = "pydoc"
    field: str = "text"
    input_length: int = 96
    eval_batches: int = 16
    eval_batch_size: int = 32


@dataclass(frozen=True)
class PretrainConfig:
    """A small T5 1.1, pretrained on plain text by span corruption, for machines that can download no model.

    Attributes:
      vocab_size: tokens of the tokenizer, which is trained on the same text.
      tokenizer: folder of a tokenizer to use instead.
      d_model: width of the model.
      d_kv: width of an attention head.
      d_ff: width inside a feed-forward layer.
      num_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      num_heads: attention heads of a layer.
      tie_word_embeddings: whether inputs and outputs share one table (T5 1.1 has two).
      steps: number of updates.
      batch_size: inputs of an update.
      learning_rate: highest learning rate of AdamW; it falls to a tenth along a cosine.
      warmup: steps in which the learning rate rises from 0.
      weight_decay: weight decay of kernels.
      seed: seed of the weights and of the order of inputs.
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
      path: Hugging Face folder of the base model. Where it is missing, ``pretrain`` makes it if ``from_text`` is true.
      from_text: whether a missing base model is pretrained.
      dtype: dtype of parameters and computation.
    """

    path: str = "runs/demo/base"
    from_text: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class NullSpaceConfig:
    """The general-domain null space: give exactly one of ``energy``, ``rank`` and ``threshold``.

    Attributes:
      path: folder of the null space; ``calibrate`` makes it where it is missing.
      energy: protect the fewest directions that hold this share of an input's second moment.
      rank: protect this many directions; a number with a decimal point is a share of the input's dimension.
      threshold: protect the directions whose eigenvalue is at least this large.
      min_share: with ``energy``, protect at least this share of the directions, because a few outliers can hold nearly
        all of an input's energy.
      max_directions: protect at most so many directions of each input; ``null``: no such bound.
      unit_norm: whether every token counts alike, whatever the norm of its hidden states: for language models, where in
        some layers a few tokens have nearly all of the energy.
      memory_limit: bytes that second moments may take on a device; where they need more, there is a pass over the text
        for each group of layers that fits. ``null``: one pass.
      side: ``in``: protect directions of the kernels' inputs; ``out``: of their outputs; ``train.method osft`` protects
        both.
      batches: batches of general text that the null space is estimated from.
      batch_size: inputs in each of these batches.
    """

    path: str = "runs/demo/null_space"
    energy: float | None = 0.85
    rank: int | float | None = None
    threshold: float | None = None
    min_share: float | None = 0.35
    max_directions: int | None = None
    unit_norm: bool = False
    memory_limit: int | None = None
    side: Literal["in", "out"] = "in"
    batches: int = 64
    batch_size: int = 32


@dataclass(frozen=True)
class ItemsConfig:
    """Item tokens and prompts.

    Attributes:
      init: how item rows start: as the mean of the ``title`` tokens' rows, or ``random``.
      added_loss: nats a token by which the items may raise the loss on general text by being there, before tuning:
        their rows in the output layer get the smallest common offset for it, see
        `gems_jax.items.lower_item_logits`; ``null``: no offset.
      identifiers: ``tokens`` or ``null``: each item has a token of its own; ``rkmeans`` or ``rqvae``: several that
        items share, made of their texts by the base model, see `gems_jax.identifiers`; or a JSON file of such, see
        `gems_jax.items.load_item_identifiers`.
      collisions: ``reassign``: items of a file that share all tokens get others; ``group``: they are ranked alike;
        ``null``: such a file is refused. No two items share identifiers that are made here.
      levels: tokens of an identifier that is made here.
      codebook_size: tokens of each level.
      path: folder of the identifiers that are made, with embeddings, codebooks and a card; it is made where it is
        missing.
      prompts: each task's template, with ``{history}`` (items' tokens), ``{history_titles}`` or both and,
        for searches, ``{query}``.
      template: ``plain``, or ``chat``: a prompt is what the user says in a chat, as the model's tokenizer words it.
      max_length: most tokens of an input; the oldest items are dropped from longer ones.
      length_buckets: shorter lengths that batches may be padded to; each costs one compilation.
      length_window: number of training steps whose rows are sorted by length together, so that short rows share a
        batch; with ``length_buckets`` this saves padding. 1: rows stay as they are shuffled.
    """

    init: Literal["title", "random"] = "title"
    added_loss: float | None = 1e-4
    identifiers: str | None = None
    collisions: Literal["reassign", "group"] | None = None
    levels: int = 3
    codebook_size: int = 256
    path: str = "runs/demo/identifiers"
    prompts: dict[str, str] = field(
        default_factory=lambda: {
            "rec": "history: {history} next:",
            "src": "search: {query} history: {history} found:",
        }
    )
    template: Literal["plain", "chat"] = "plain"
    max_length: int = 40
    length_buckets: tuple[int, ...] = ()
    length_window: int = 1

    def __post_init__(self) -> None:
        if self.identifiers == "tokens":  # the word for no file
            object.__setattr__(self, "identifiers", None)


@dataclass(frozen=True)
class GemsConfig:
    """Options of `gems_jax.gems`, by the same names.

    Attributes:
      rank: columns of the shared basis; a number with a decimal point is a share of the kernel's smaller side: ``1`` is
        one column, ``1.0`` the whole side.
      task_rank: the same for each task's own basis; ``null``: half of ``rank``; 0: no bases of their own.
      side: side of the kernel that bases span; ``auto``: the null space's, without one the smaller side.
      refresh_every: steps between new bases.
      decomposition: how bases are computed; ``auto``: ``subspace`` on TPU and for projected gradients, ``eigh``
        elsewhere. ``random``: drawn anew inside the null space, whatever the gradients are.
      signs: ``canonical``, or ``align``: rotate a new basis onto the old one within its span.
      moments: whether Adam's moments are kept (``keep``) or zeroed (``reset``) when bases are made anew.
      complementary: whether the tasks' bases are orthogonal to the shared one.
      stagger: whether a refresh is spread over the steps, a few kernels of each stack in every step.
      scale: factor on the low-rank updates.
      gate: how the tasks' own updates are weighted: ``heuristic`` (by their shares of loss, gradient norm and tokens),
        ``learned`` (by a small network) or ``equal``.
      null_space: whether updates stay inside the null space.
      constraint: ``update``: every update is inside the null space; ``gradient``: only gradients are projected, as in
        the authors' release, which guarantees nothing.
    """

    rank: int | float = 0.25
    task_rank: int | float | None = None
    side: Literal["auto", "in", "out"] = "auto"
    refresh_every: int = 200
    decomposition: Literal["auto", "svd", "eigh", "subspace", "random"] = "auto"
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
    """Low-rank adapters (arXiv 2106.09685), for ``train.method: lora``; merged into the kernels when a model is used.

    Attributes:
      rank: rank of every adapter.
      alpha: the adapters' product is multiplied by ``alpha / rank``.
    """

    rank: int = 8
    alpha: float = 16.0


@dataclass(frozen=True)
class OrbitConfig:
    """How ``train.method: orbit`` holds weights to the pretrained ones (arXiv 2605.12419).

    Attributes:
      max_distance: Euclidean distance of the trained weights, item rows aside, from the pretrained ones, beyond which
        the two are averaged.
      share: share of the pretrained weights in that average.
    """

    max_distance: float = 10.0
    share: float = 0.5


@dataclass(frozen=True)
class MeshConfig:
    """How the devices of all processes are laid out; rows of batches are split over those that no field below takes.

    Attributes:
      fsdp: number of devices over which parameters, optimiser state and rows are split.
      tensor: number of devices over which each matrix product is split.
      task: number of devices over which the tasks are split; each holds gradients, bases and moments of its own tasks
        alone.
    """

    fsdp: int = 1
    tensor: int = 1
    task: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """Tuning on all tasks.

    Attributes:
      method: name of a method, such as ``gems``, ``adamw`` or ``pcgrad``; docs/methods.md lists them.
      steps: number of updates.
      batch_size: most rows of each task in an update, over all processes.
      accumulate: parts into which an update's rows are cut, computed one after the other; more parts need less memory.
      gradients: ``full``: whole gradients; ``projected``: products of gradients with the bases, straight from the
        model's program, and refreshes by ``subspace``; ``auto``: ``projected`` on one device for at least 4 million
        parameters in kernels, where no option needs whole gradients and ``accumulate`` is 1.
      sampling: how many rows each task has in a step: ``equal``, in ``ratio`` to the tables' sizes, or by
        ``temperature``; see `gems_jax.data.batching.pipeline.task_batches`.
      temperature: temperature of that sampling, from 1 (``ratio``) upwards (towards ``equal``).
      learning_rate: learning rate of kernels.
      item_learning_rate: learning rate of the item rows, which are added to the embedding.
      other_learning_rate: learning rate of pretrained rows, norms and relative positions, where they are trained.
      schedule: course of the learning rates after ``warmup``: ``cosine`` or ``linear`` decay to 0, or ``constant``.
      warmup: steps in which learning rates rise linearly from 0.
      weight_decay: decoupled weight decay of kernels.
      clip: largest norm of a gradient; ``null``: no clipping, as in the multi-task loop of arXiv 2601.09496.
      clip_by: ``task``: clip each task's gradient by its own norm; ``global``: clip all by the norm of the joint one.
      train_embeddings: whether pretrained rows (embedding and head) train; they are outside the null space and cause
        most of the forgetting.
      train_norms: whether the layers' norms train; they are outside the null space.
      train_positions: whether relative positions train; they are outside the null space.
      loss_vocabulary: ``items``: softmax over the items and the end token; ``full``: over all tokens.
      loss_chunk: label tokens whose logits are held at once; ``null``: as many as make 64 MiB.
      text_task: general text (``text.train``) as one more task, ``text``, with a gradient, a gate and a subspace of its
        own: ``replay``: its loss is the language model's own; ``distill``: the KL divergence of the model's next token
        from the base model's, which is kept beside it; ``none``: there is no such task.
      text_task_weight: factor on that task's loss; it counts as many label tokens as the other tasks do on average.
      text_task_rows: rows of ``text.input_length`` tokens that it has in an update, over all processes.
      compute_dtype: dtype of matrix products; ``null``: ``model.dtype``. ``bfloat16`` with ``model.dtype`` float32 is
        mixed precision with float32 master weights.
      stochastic_rounding: whether bfloat16 parameters are rounded up or down at random, so that small updates are not
        lost. Rounding of either kind takes the stored change out of the null space; ``null_space/leak_stored`` says by
        how much.
      remat: what of a layer the backward pass computes again instead of keeping it: ``full``: all; ``dots``: all but
        the products with kernels; ``none``: nothing, which needs the fewest operations and the most memory; ``null``:
        as the model says, ``full`` for every folder.
      dropout: dropout rate (T5).
      seed: seed of order, dropout and rounding.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations on validation rows; 0: none.
      eval_rows: validation rows of each task in these evaluations.
      metric: validation metric that chooses the best checkpoint, such as ``eval/rec/ndcg@10`` or ``eval/general/loss``;
        ``null``: there is no best one, and only the newest are kept.
      patience: end the run after this many evaluations in a row without a better ``metric``; 0: never end early.
      checkpoint_every: steps between checkpoints; 0: only at the end.
      keep_checkpoints: number of newest checkpoints that are kept, beside the best.
      max_non_finite: end the run after this many updates in a row are refused because a loss or gradient is not finite.
      hang_after: seconds in one phase of a step after which a watchdog prints where the run hangs; 0: no watchdog.
      profile: first and last step to profile, into ``profile/`` of the work directory.
      writers: where metrics go beside ``metrics.jsonl``; each writer needs its package.
    """

    method: str = "gems"
    steps: int = 500
    batch_size: int = 32
    accumulate: int = 1
    gradients: Literal["auto", "full", "projected"] = "auto"
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
    text_task: Literal["none", "replay", "distill"] = "none"
    text_task_weight: float = 1.0
    text_task_rows: int = 8
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    stochastic_rounding: bool = False
    remat: Literal["full", "dots", "none"] | None = None
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
    writers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


@dataclass(frozen=True)
class EvaluateConfig:
    """Measuring a tuned model.

    Attributes:
      split: rows to measure: ``test`` or ``valid``.
      candidates: what each row's target is ranked among: ``sampled``: the row's negatives (``data.num_negatives``);
        ``all``: the whole catalogue; ``both``, apart; ``auto``: ``both`` for catalogues of fewer than 100,000 items,
        else ``sampled``.
      checkpoint: ``last``, or ``best`` by ``train.metric``; ``gems-jax export`` takes it, too.
      beams: width of the beam search, at least 20.
      batch_size: rows that are ranked at once.
      baselines: rankers that the run is measured beside, some of: ``popularity``, ``cooccurrence``, ``bm25``,
        ``sasrec`` and ``tiger``, which are trained for it, ``two-tower``, the base model's vectors of queries and
        items, and ``two-tower-trained``.
      sasrec: how SASRec is trained.
      tiger: how TIGER is trained.
      two_tower: how the two towers are trained.
      rows: rows of each task; ``null``: all.
      samples: bootstrap resamples of the confidence intervals.
      continuations: inputs of general text that the model goes on with before and after tuning; 0: none.
      compare: other runs that the report shows beside this one, each name with its work directory.
    """

    split: Literal["test", "valid"] = "test"
    candidates: Literal["auto", "sampled", "all", "both"] = "auto"
    checkpoint: Literal["last", "best"] = "last"
    beams: int = 20
    batch_size: int = 128
    baselines: tuple[Baseline, ...] = ("popularity", "cooccurrence", "bm25")
    sasrec: SasrecConfig = SasrecConfig()
    tiger: TigerConfig = TigerConfig()
    two_tower: TwoTowerConfig = TwoTowerConfig()
    rows: int | None = None
    samples: int = 1000
    continuations: int = 8
    compare: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """Everything a run is made of.

    Attributes:
      name: name of the run in tables.
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
    orbit: OrbitConfig = field(default_factory=OrbitConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
