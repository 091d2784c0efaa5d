"""How much of a gradient its leading singular directions hold."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.config.run import Config
from gems_jax.leaf_path import leaf_path
from gems_jax.linalg.matrix_dims import matrix_specs, stacked_matrix_dims
from gems_jax.study.methods import changed
from gems_jax.task_grads import task_value_and_grad
from gems_jax.training.losses import task_loss
from gems_jax.training.trainable import split_model
from gems_jax.types import PyTree

# Shares of a kernel's smaller side at which the energy is read.
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)


def gradient_spectra(
    config: Config, model: Any, batch: Mapping[str, Any], tasks: tuple[str, ...], shares: tuple[float, ...] = SHARES
) -> dict[str, list[float]]:
    """Energy ``sum_{i<=k} s_i^2 / sum s_i^2`` of each kernel's gradient in its ``k`` leading singular directions.

    Args:
      config: of the study: what the loss is over.
      model: its kernels are differentiated by.
      batch: arrays ``[T, B, ...]``.
      tasks: names in the order of the task axis.
      shares: ``k`` as shares of a kernel's smaller side.

    Returns:
      ``"share"``: the shares; ``"shared"`` and each task: the mean over kernels at each of them.
    """
    graphdef, params, frozen = split_model(model, changed(config, {"train.method": "adamw"}))
    grads = _gradients(graphdef, config.train.loss_vocabulary, params, frozen, dict(batch))
    captured_shares: dict[str, list[np.ndarray]] = {name: [] for name in ("shared", *tasks)}
    specs = matrix_specs(params, stacked_matrix_dims)
    for spec, (path, leaf) in zip(specs, jax.tree_util.tree_leaves_with_path(grads), strict=True):
        if spec is None or not leaf_path(path).endswith("kernel"):
            continue
        matrices = np.asarray(spec.to_matrices(leaf, 1), np.float64)  # [T, layers, in, out]
        for name, stack in zip(("shared", *tasks), (matrices.mean(axis=0), *matrices), strict=True):
            captured_shares[name] += [captured(matrix, shares) for matrix in stack if np.any(matrix)]
    means = {name: np.mean(values, axis=0).round(5).tolist() for name, values in captured_shares.items() if values}
    return {"share": list(shares)} | means


def captured(matrix: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Energy in the leading directions of one matrix ``[m, n]``, one number a share.

    Example:
      >>> captured(np.diag([2.0, 1.0, 1.0, 0.0]), (0.25, 0.5, 1.0)).round(3).tolist()
      [0.667, 0.833, 1.0]
    """
    energy = np.cumsum(np.linalg.svd(matrix, compute_uv=False) ** 2)
    kept = np.clip(np.round(np.asarray(shares) * len(energy)).astype(int), 1, len(energy))
    return np.asarray(energy[kept - 1] / energy[-1])


@functools.partial(jax.jit, static_argnames=("graphdef", "vocabulary"))
def _gradients(graphdef: Any, vocabulary: str, params: PyTree, frozen: PyTree, batch: dict[str, jax.Array]) -> PyTree:
    loss = task_loss(graphdef, vocabulary)
    grads = task_value_and_grad(lambda p, b: loss(p, frozen, b))(params, batch)[1]
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads)
