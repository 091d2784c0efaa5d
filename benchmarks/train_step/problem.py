"""What all methods train: the kernels of a model with random weights, on one batch of two tasks.

Everything but the kernels is frozen, as the trainer freezes tables, norms and positions by default; there are no item
rows. Answers have two tokens, an item and the end token, as in a run; the loss is over a vocabulary of 8,192 tokens.
"""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

import gems_jax as gj
from gems_jax.models import DecoderConfig, T5Config
from gems_jax.models.registry import FAMILIES
from gems_jax.models.remat import REMAT
from gems_jax.training.estimate.abstract import ANSWER, batch_lengths
from gems_jax.training.losses import task_loss

TASKS = 2
LEARNING_RATE = 1e-4
REFRESH_EVERY = 200


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and a batch.

    Attributes:
      config: of the model.
      rows: of each task.
      length: of each row's input, in tokens.
      checkpointed: whether PyTorch computes layers again, too; by default it keeps what it computed.
    """

    config: T5Config | DecoderConfig
    rows: int
    length: int
    checkpointed: bool = False


# T5 1.1 small has 44 M parameters in its kernels.
_T5_SMALL = T5Config(
    vocab_size=8192, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_decoder_layers=8, num_heads=6
)  # fmt: skip
_DECODER = DecoderConfig(
    vocab_size=8192, d_model=768, d_ff=2048, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64, eos_token_id=1
)  # fmt: skip
# For tests: kernels of one shape, which are quick to compile for.
_TINY = DecoderConfig(
    vocab_size=64, d_model=16, d_ff=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, eos_token_id=1
)  # fmt: skip
SIZES = {
    "tiny": Size(_TINY, 2, 8),
    "t5-small-8x64": Size(_T5_SMALL, 8, 64),
    "t5-small-16x128": Size(_T5_SMALL, 16, 128),
    "decoder-100m-4x512": Size(_DECODER, 4, 512, checkpointed=True),
}

Kernels = dict[str, jax.Array]
Batch = dict[str, Any]


class Problem:
    """A size, the ranks, and whether there is a null space.

    Args:
      size: of `SIZES`.
      rank: columns of the shared basis, of LoRA's adapters and of GaLore's projectors; ``None``: an eighth of the
        model's width. A task's basis has half as many.
      protected: share of each input's directions that GEMS keeps its updates out of; ``None``: no null space.
      remat: what the backward pass computes again, see `gems_jax.models.remat.checkpointed`.
    """

    def __init__(self, size: str, rank: int | None = None, protected: float | None = None, remat: str = "full"):
        self.size = SIZES[size]
        self.config = dataclasses.replace(self.size.config, remat=remat)
        self.rank = self.config.d_model // 8 if rank is None else rank
        self.task_rank = self.rank // 2
        self.protected = protected
        graph, kernels, self._frozen = nnx.split(nnx.eval_shape(self._model), _is_kernel, ...)
        self._paths = [gj.leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(kernels)]
        self._treedef = jax.tree.structure(kernels)
        self._loss = task_loss(graph, "full", ANSWER)

    def _model(self) -> Any:
        return FAMILIES[self.config.model_type].model.create(self.config, jax.random.key(0))

    def parameters(self) -> tuple[Kernels, Any]:
        """Kernels by path, and all else."""
        _, kernels, frozen = nnx.split(self._model(), _is_kernel, ...)
        return dict(zip(self._paths, jax.tree.leaves(kernels), strict=True)), frozen

    def loss(self, kernels: Kernels, frozen: Any, batch: Batch) -> jax.Array:
        """Mean over the label tokens of one batch ``[B, ...]``."""
        return self._loss(jax.tree.unflatten(self._treedef, [kernels[path] for path in self._paths]), frozen, batch)

    def task_batch(self, rows: int | None = None) -> Batch:
        """Random tokens, int32 ``[T, B, tokens]``, none of them padding."""
        rng = np.random.default_rng(0)
        lead = (TASKS, self.size.rows if rows is None else rows)
        columns = batch_lengths(self.config, self.size.length)
        batch = {name: rng.integers(2, self.config.vocab_size, (*lead, n), np.int32) for name, n in columns.items()}
        batch["attention_mask"] = np.ones_like(batch["attention_mask"])
        # A decoder's answer stands at the end of its input.
        answered = np.arange(columns["labels"]) >= columns["labels"] - ANSWER
        batch["label_mask"] = np.broadcast_to(answered, batch["labels"].shape).astype(np.int32)
        return batch

    def joint_batch(self, rows: int | None = None) -> Batch:
        """The tasks' rows behind each other, ``[T * B, tokens]``."""
        return {name: array.reshape(-1, array.shape[-1]) for name, array in self.task_batch(rows).items()}

    def null_space(self) -> gj.NullSpace | None:
        """Estimated from the tasks' own batch: its cost does not depend on what is in it."""
        if self.protected is None:
            return None
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        text = {name: array for name, array in self.joint_batch().items() if name in names}
        return gj.estimate_null_space(self._model(), [text], rank=self.protected, progress=False)


def _is_kernel(path: tuple[Any, ...], _: Any) -> bool:
    return path[-1] == "kernel"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what a `Problem` is."""
    parser.add_argument("--size", choices=SIZES, default="t5-small-8x64", help="model, rows of a task x input tokens")
    parser.add_argument("--rank", type=int, help="default: an eighth of the model's width; a task's is half of it")
    parser.add_argument("--remat", choices=REMAT, default="full", help="what JAX's backward passes compute again")
    parser.add_argument("--protected", type=float, help="share of directions in the null space; default: none")


def problem_of(args: argparse.Namespace) -> Problem:
    return Problem(args.size, args.rank, args.protected, args.remat)
