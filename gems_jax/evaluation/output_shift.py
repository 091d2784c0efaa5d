"""How far each layer's output has moved on general inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gems_jax.leaf_path import leaf_path
from gems_jax.linalg.matrix_dims import MatrixRule, MatrixSpec
from gems_jax.null_space.moment_groups import moment_groups
from gems_jax.null_space.moment_pass import MomentPass, as_function, kernel_specs, moment_pass
from gems_jax.null_space.second_moment import SecondMoment
from gems_jax.null_space.tracing.interpreter import Layers
from gems_jax.null_space.tracing.kernel_inputs import kernel_inputs
from gems_jax.types import PyTree, TextBatch

# Kernel's path to one number, or one a layer (experts within a layer, nested).
Shifts = dict[str, Any]
Energies = dict[str, np.ndarray]


class OutputShift:
    """``|x dW| / |x W|`` of every kernel, over the inputs ``x`` that the base model gives it on general text.

    ``sqrt(tr(dW^T M dW) / tr(W^T M W))`` with ``M`` the sum of ``x x^T`` over all tokens and ``dW`` the change by
    tuning: exactly the root of ``sum |x dW|^2 / sum |x W|^2``, for any number of tokens at the cost of a forward pass
    that sums second moments, once for kernels that share an input. ``M`` is kept in float32, so a ratio below about
    3e-4 of what ``dW`` would do in the strongest direction is rounding.

    The moments are the base model's alone, so that any number of tuned models can be compared once they are summed.

    Args:
      base: the model before tuning, a Flax NNX module such as a ``gems_jax.models.T5`` or ``Decoder``.
      batch: one batch of the text, of the kind and shapes of all.
      memory_limit: bytes that second moments may take at a time; the text is then read ``passes`` times.
      matrix_dims: which leaves are kernels; default `gems_jax.linalg.matrix_dims.stacked_matrix_dims`.

    Example:
      >>> import jax
      >>> from gems_jax.models import T5, T5Config
      >>> config = T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> model, ones = T5.create(config, jax.random.key(0)), np.ones((2, 3), np.int32)
      >>> batch = {"input_ids": 5 * ones, "attention_mask": ones, "decoder_input_ids": 4 * ones, "label_mask": ones}
      >>> shift, energies = OutputShift(model, batch), {}
      >>> for number in range(shift.passes):
      ...     shift.begin(number)
      ...     shift.add(batch)
      ...     energies = shift.energies(model, energies)
      >>> ratios(energies)["encoder/block/mlp/wo/kernel"]
      [0.0]
    """

    def __init__(
        self,
        base: Any,
        batch: TextBatch,
        *,
        memory_limit: int | None = None,
        matrix_dims: MatrixRule | None = None,
    ):
        self._function = as_function(base)
        self._specs = kernel_specs(self._function.params, matrix_dims)
        traced = kernel_inputs(self._function.apply, self._function.params, self._function.called(batch), self._specs)
        self._inputs = {entry.name: entry for entry in traced.inputs}
        self._groups = moment_groups(traced.inputs, memory_limit)
        self._base = _leaves(self._function.params, self._specs)
        self._group: Mapping[str, Layers | None] = {}
        self._sums: dict[str, SecondMoment] = {}
        self._pass: MomentPass | None = None

    @property
    def passes(self) -> int:
        """How often the text is read: once unless ``memory_limit`` divides the layers into several groups."""
        return len(self._groups)

    def begin(self, number: int) -> None:
        """Starts pass ``number`` over the text."""
        self._group = self._groups[number]
        self._pass = moment_pass(self._function, self._specs, "in", list(self._inputs.values()), self._group)
        self._sums = self._pass.start()

    def add(self, batch: TextBatch) -> None:
        """Adds the inputs that a batch gives the kernels."""
        assert self._pass is not None, "begin a pass first"
        arrays = {key: jnp.asarray(value) for key, value in batch.items()}
        self._sums = self._pass.add(self._function.params, arrays, self._sums)

    def check(self, tuned: Any) -> None:
        """Raises ``ValueError`` if the tuned model has no kernel of a path and shape that the base model has."""
        self._kernels(tuned)

    def energies(self, tuned: Any, before: Energies | None = None) -> Energies:
        """``tr(dW^T M dW)`` and ``tr(W^T M W)`` of the kernels whose moments this pass has summed.

        Args:
          tuned: the same model with other weights.
          before: those of former passes.

        Returns:
          Kernel's path to ``[2, *stack]``, those before among them.

        Raises:
          ValueError: as `check`.
        """
        kernels, collected = self._kernels(tuned), dict(before or {})
        for name, moment in self._sums.items():
            layers = self._group[name]
            for path in self._inputs[name].kernels:
                spec = self._specs[path]
                assert spec is not None
                energies = np.asarray(_energies(spec, self._base[path], kernels[path], moment.total, layers))
                if layers is None:
                    collected[path] = energies
                else:
                    whole = collected.setdefault(path, np.zeros((2, *spec.batch_shape), np.float32))
                    whole[:, layers[0] : layers[1]] = energies
        return collected

    def _kernels(self, tuned: Any) -> dict[str, jax.Array]:
        kernels = _leaves(as_function(tuned).params, self._specs)
        for path, leaf in self._base.items():
            other = kernels.get(path)
            if other is None or other.shape != leaf.shape:
                raise ValueError(
                    f"the tuned model has {'no kernel' if other is None else f'a kernel of {list(other.shape)}'} "
                    f"at {path!r}, the base model one of {list(leaf.shape)}: compare models of one shape, "
                    "adapters merged"
                )
        return kernels


def ratios(energies: Energies) -> Shifts:
    """Roots of the ratios of `OutputShift.energies`: path to a number, or to a list of one a layer.

    Example:
      >>> ratios({"kernel": np.array([[4.0, 0.0], [16.0, 0.0]])})
      {'kernel': [0.5, 0.0]}
    """
    shifts: Shifts = {}
    for path in sorted(energies):
        moved, output = energies[path]
        with np.errstate(divide="ignore", invalid="ignore"):
            shifts[path] = np.sqrt(np.where(output > 0, np.maximum(moved, 0.0) / output, 0.0)).tolist()
    return shifts


def _energies(
    spec: MatrixSpec, base: jax.Array, tuned: jax.Array, lower: jax.Array, layers: tuple[int, int] | None
) -> jax.Array:
    """``tr(dW^T M dW)`` and ``tr(W^T M W)``, float32 ``[2, *stack]``.

    Args:
      spec: role of the kernel's axes.
      base, tuned: the kernel, before and after.
      lower: ``[*stack, d, d]``, right on and below the diagonal; no stack where all layers have the same inputs.
      layers: of the kernel's first batch axis, those that ``lower`` is of; ``None``: all.
    """
    first = slice(None) if layers is None else slice(*layers)

    def matrices(leaf: jax.Array) -> jax.Array:
        stack = spec.to_matrices(leaf.astype(jnp.float32)).reshape(*spec.batch_shape, *spec.matrix_shape)
        return stack[first] if spec.batch_shape else stack

    return _traces(matrices(base), matrices(tuned), lower)


@jax.jit
def _traces(base: jax.Array, tuned: jax.Array, lower: jax.Array) -> jax.Array:
    moment = jnp.tril(lower) + jnp.tril(lower, -1).mT

    def trace(kernel: jax.Array) -> jax.Array:
        product = jnp.matmul(moment, kernel, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(kernel * product, axis=(-2, -1))

    return jnp.stack([trace(tuned - base), trace(base)])


def _leaves(params: PyTree, paths: Mapping[str, Any]) -> dict[str, jax.Array]:
    leaves = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return {path: leaves[path] for path in paths if path in leaves}
