"""The fields of ``mesh`` and ``train``: a run, and the devices that it is spread over."""

from dataclasses import dataclass
from typing import Literal


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
      learning_rate: learning rate of kernels; ``null``: the method's own, which docs/methods.md lists.
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
    learning_rate: float | None = None
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
