"""The whole step of gradient multi-subspace tuning in numpy float64, written from the formulas alone.

One kernel ``[m, n]`` per entry, no stacks, singular value decomposition only. Slow and plain on purpose.
"""

from dataclasses import dataclass, field

import numpy as np


def signed(basis):
    """Largest-magnitude entry of each column positive."""
    rows = np.argmax(np.abs(basis), axis=0)
    return basis * np.where(basis[rows, np.arange(basis.shape[1])] < 0, -1.0, 1.0)


class Adam:
    """Bias-corrected, as optax.scale_by_adam with its defaults."""

    def __init__(self, shape):
        self.m, self.v, self.t = np.zeros(shape), np.zeros(shape), 0

    def step(self, g):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g * g
        return (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


def shares(x, floor):
    x = np.asarray(x, float)
    return x / x.sum() if x.sum() > floor else np.full(len(x), 1 / len(x))


def heuristic_gates(losses, norms, counts, a=0.4, b=0.4, c=0.2):
    g = a * shares(losses, 1e-8) + b * shares(norms, 1e-8) + c * shares(counts, 0)
    return g / g.sum()


@dataclass
class Reference:
    """``rank``, ``task_rank``: of every kernel; ``protected``: ``{name: K [p, k]}`` on the projected axis."""

    num_tasks: int
    rank: int
    task_rank: int
    sides: dict
    refresh_every: int = 200
    scale: float = 1.0
    weight_decay: float = 0.0
    learning_rate: float = 1.0
    protected: dict = field(default_factory=dict)
    complementary: bool = False
    signs: str = "canonical"
    moments: str = "keep"

    def __post_init__(self):
        self.count, self.bases, self.inner, self.plain, self.gates = 0, {}, {}, {}, None

    def basis(self, gradient, rank, null, exclude, old):
        projected = null @ gradient
        if exclude is not None:
            projected = projected - exclude @ (exclude.T @ projected)
        new = signed(np.linalg.svd(projected, full_matrices=False)[0][:, :rank])
        if self.signs == "align" and old is not None:
            left, _, right = np.linalg.svd(new.T @ old)
            new = new @ (left @ right)
        return new

    def step(self, params, grads, losses=None, counts=None):
        """``params``: name -> array, ``grads``: name -> ``[T, ...]``. Returns the new parameters."""
        tasks = range(self.num_tasks)
        losses = np.ones(self.num_tasks) if losses is None else np.asarray(losses, float)
        counts = np.ones(self.num_tasks) if counts is None else np.asarray(counts, float)
        norms = np.sqrt([sum((g[t].astype(float) ** 2).sum() for g in grads.values()) for t in tasks])
        present = (counts > 0) & (norms > 0)
        weights = np.where(present, counts, 0) / counts[present].sum()
        gates = self.gates = heuristic_gates(losses * present, norms * present, counts * present)
        updated = {}
        for name, w in params.items():
            g = grads[name].astype(float)
            shared = np.tensordot(weights, g, 1)
            if name not in self.sides:
                adam = self.plain.setdefault(name, Adam(w.shape))
                updated[name] = w - self.learning_rate * (adam.step(shared) + self.weight_decay * w)
                continue
            flip = (lambda x: x) if self.sides[name] == "in" else (lambda x: np.swapaxes(x, -1, -2))
            g, shared, kernel = flip(g), flip(shared), flip(w)
            k = self.protected.get(name)
            null = np.eye(len(kernel)) - (0 if k is None else k @ k.T)
            total = np.zeros_like(kernel)
            branches = [("shared", shared, self.rank, 1.0)]
            branches += [(t, g[t], self.task_rank, gates[t]) for t in tasks if self.task_rank and present[t]]
            for branch, gradient, rank, gate in branches:
                key = (name, branch)
                if self.count % self.refresh_every == 0 or key not in self.bases:
                    exclude = self.bases[(name, "shared")] if self.complementary and branch != "shared" else None
                    self.bases[key] = self.basis(gradient, rank, null, exclude, self.bases.get(key))
                    if self.moments == "reset":
                        self.inner.pop(key, None)
                u = self.bases[key]
                low = u.T @ gradient
                adam = self.inner.setdefault(key, Adam(low.shape))
                total += gate * self.scale * (u @ adam.step(low))
            updated[name] = w - self.learning_rate * flip(total + self.weight_decay * (null @ kernel))
        self.count += 1
        return updated
