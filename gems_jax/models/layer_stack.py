"""Layers one after the other: their parameters stacked, in one scan, or each layer with arrays of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gems_jax.models.remat import checkpointed


def apply_layers(
    block: Any, apply: Callable[[Any, Any, Any], tuple[Any, Any]], x: Any, others: Any, remat: str = "none"
) -> tuple[Any, Any]:
    """Applies layers one after the other.

    Args:
      block: a module whose parameters are those of all layers, ``[L, ...]``, or an `nnx.List` of layers.
      apply: ``apply(layer, x, other) -> (x, output)``.
      x: what the first layer gets.
      others: tree of what differs from layer to layer, with them as the leading axis.
      remat: what the backward pass computes again, see `checkpointed`.

    Returns:
      The result of the last layer, and the outputs of all, stacked.
    """
    if isinstance(block, nnx.List):
        outputs = []
        for index, layer in enumerate(block):
            graph, state = nnx.split(layer)
            x, output = _body(graph, apply, remat)(x, (state, _member(others, index)))
            outputs.append(output)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
    graph, stacked = nnx.split(block)
    return jax.lax.scan(_body(graph, apply, remat), x, (stacked, others))


def _body(graph: Any, apply: Callable[[Any, Any, Any], tuple[Any, Any]], remat: str) -> Callable[..., Any]:
    def body(x: Any, layer: tuple[Any, Any]) -> tuple[Any, Any]:
        state, other = layer
        return apply(nnx.merge(graph, state), x, other)

    return checkpointed(body, remat)


def _member(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def unstacked(model: Any) -> Any:
    """The same model with arrays of its own for every layer: to rank and generate with, faster on CPUs.

    There XLA copies each layer's kernels out of their stack at every pass: ranking with a T5 of T5-small's size took
    1.05 to 1.14 times as long (``benchmarks/ranking.py``). Programs of such a model grow with its layers, and take
    longer to compile. It computes the same numbers. It is not for training, nor for `save`.

    Args:
      model: a `T5` or a `Decoder`; it stays as it is.

    Returns:
      A model of the same class. The layers' parameters are copies, the others are shared.

    Example:
      >>> import jax
      >>> from gems_jax.models import T5, T5Config
      >>> config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> model = unstacked(T5.create(config, jax.random.key(0)))
      >>> len(model.encoder.block), model.encoder.block[0].mlp.wo.kernel.shape
      (2, (16, 8))
    """
    made = nnx.merge(*nnx.split(model))
    for _, module in list(nnx.iter_modules(made)):
        block = getattr(module, "block", None)
        if block is None or isinstance(block, nnx.List):
            continue
        graph, stacked = nnx.split(block)
        layers = len(jax.tree.leaves(stacked)[0])
        apart = nnx.List([nnx.merge(graph, _member(stacked, index)) for index in range(layers)])
        setattr(module, "block", apart)  # noqa: B010
    return made


def is_unstacked(model: Any) -> bool:
    """Whether a model was made by `unstacked`."""
    return any(isinstance(getattr(module, "block", None), nnx.List) for _, module in nnx.iter_modules(model))
