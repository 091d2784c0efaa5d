"""What the authors' released code does in a step, in PyTorch: three passes, and low-rank Adam kernel by kernel.

`gems_jax.presets.released` has the equations, and the test compares both. As there: bases on a kernel's smaller side,
moments that stay through a refresh, eps added to the uncorrected root. Unlike there: without dropout, and with ranks
that suit the kernels, so that it costs less here.
"""

import math
from typing import Any

import numpy as np
import torch

from benchmarks.train_step.problem import LEARNING_RATE, REFRESH_EVERY, TASKS
from benchmarks.train_step.torch_adamw import TorchRun, tensors

B1, B2, EPS = 0.9, 0.999, 1e-6


class TorchReleasedRun(TorchRun):
    """A pass over the joint batch and one over each task's, fused by `LowRankAdam`."""

    refreshes = True

    def begin(self) -> None:
        super().begin()
        batch = self._problem.task_batch()
        self._tasks = [tensors({name: array[task] for name, array in batch.items()}) for task in range(TASKS)]
        ranks = [self._problem.rank] + TASKS * [self._problem.task_rank]
        self._low_rank = LowRankAdam(self.kernels, ranks, LEARNING_RATE)
        # The gates' network, which no gradient ever reaches.
        sizes = (3 * TASKS, 128, 64, TASKS)
        first, second, last = (torch.nn.Linear(m, n) for m, n in zip(sizes, sizes[1:], strict=False))
        self._gates = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), last, torch.nn.Softmax(-1))

    def step(self) -> np.ndarray:
        passes = [self._pass(batch) for batch in (self._joint, *self._tasks)]
        losses = torch.stack([loss for loss, _ in passes[1:]])
        with torch.no_grad():
            norms = torch.stack([torch.linalg.vector_norm(torch.stack(torch._foreach_norm(g))) for _, g in passes[1:]])
            # A few steps on one batch, and its losses are 0.
            sums = [(x, x.sum()) for x in (losses, norms, torch.ones(TASKS))]
            shares = [x / total if total > 1e-8 else torch.full_like(x, 1 / TASKS) for x, total in sums]
            self._low_rank.step([grads for _, grads in passes], self._gates(torch.cat(shares)))
        return losses.numpy()

    def _pass(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss = self.loss(batch)
        return loss.detach(), list(torch.autograd.grad(loss, self.kernels))

    def make_refresh_due(self) -> None:
        self._low_rank.count = REFRESH_EVERY - 1

    def state_bytes(self) -> dict[str, int]:
        return {"optimiser": self._low_rank.nbytes(), "null_space": 0}


class LowRankAdam:
    """One basis and one pair of moments a kernel and branch.

    Args:
      kernels: to be changed, ``[out, in]``.
      ranks: of the branches: the joint gradient's, then the tasks'.
      learning_rate: a number.
    """

    def __init__(self, kernels: list[Any], ranks: list[int], learning_rate: float):
        self.kernels, self.ranks, self.learning_rate = kernels, ranks, learning_rate
        self.count = 0
        self._branches: list[list[list[torch.Tensor]]] = [[[] for _ in ranks] for _ in kernels]

    def step(self, grads: list[list[torch.Tensor]], gates: torch.Tensor) -> None:
        """One update from ``grads[branch][kernel]`` and the tasks' gates ``[T]``."""
        self.count += 1
        due = self.count == 1 or self.count % REFRESH_EVERY == 0
        rate = self.learning_rate * math.sqrt(1 - B2**self.count) / (1 - B1**self.count)
        weights = [1.0, *gates.tolist()]
        for number, kernel in enumerate(self.kernels):
            turned = kernel.shape[0] >= kernel.shape[1]  # bases are on the smaller side, of a square on the input
            update = 0.0
            for branch, weight in enumerate(weights):
                grad = grads[branch][number]
                update = update + weight * self._direction(number, branch, grad.T if turned else grad, due)
            assert torch.is_tensor(update)
            kernel.sub_(update.T if turned else update, alpha=rate)

    def _direction(self, number: int, branch: int, grad: torch.Tensor, due: bool) -> torch.Tensor:
        held = self._branches[number][branch]
        if due:
            basis = torch.linalg.svd(grad, full_matrices=False)[0][:, : self.ranks[branch]].contiguous()
            moments = held[1:] or [torch.zeros(basis.shape[1], grad.shape[1]) for _ in range(2)]
            held[:] = [basis, *moments]
        basis, first, second = held
        low = basis.T @ grad
        first.mul_(B1).add_(low, alpha=1 - B1)
        second.mul_(B2).addcmul_(low, low, value=1 - B2)
        return basis @ (first / second.sqrt().add_(EPS))

    def nbytes(self) -> int:
        return sum(x.nbytes for branches in self._branches for held in branches for x in held)
