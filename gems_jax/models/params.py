"""Parameters of a model by leaf path."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gems_jax.first_few import first_few
from gems_jax.leaf_path import leaf_path


def param_shapes(model: type, config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Leaf path to shape and dtype of the parameters of ``model(config, key)``, none of which is made."""
    return {leaf_path(path): leaf for path, leaf in _abstract(model, config)[1]}


def params_of(model: nnx.Module) -> dict[str, jax.Array]:
    """Leaf path to parameter."""
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))}


def kernel_sizes(model: nnx.Module) -> dict[str, int]:
    """Leaf path to number of parameters, of kernels alone."""
    return {path: leaf.size for path, leaf in params_of(model).items() if path.endswith("kernel")}


def model_from_params(model: type, config: Any, params: Mapping[str, Any]) -> Any:
    """A model with given weights.

    Args:
      model: class of the model, made by ``model(config, key)``.
      config: shape of the model.
      params: leaf path, such as ``"encoder/block/attention/q/kernel"``, to array.

    Raises:
      ValueError: if a leaf is missing, unknown or of another shape.
    """
    graph, shapes, tree = _abstract(model, config)
    names, kind = [leaf_path(path) for path, _ in shapes], type(config).__name__
    missing, unknown = set(names) - set(params), set(params) - set(names)
    if missing or unknown:
        raise ValueError(
            f"parameters do not fit this {kind}: missing {first_few(sorted(missing)) or 'none'}, "
            f"unknown {first_few(sorted(unknown)) or 'none'}"
        )
    leaves = []
    for name, (_, leaf) in zip(names, shapes, strict=True):
        if params[name].shape != leaf.shape:
            raise ValueError(f"{name} has shape {params[name].shape}, this {kind} needs {leaf.shape}")
        leaves.append(jnp.asarray(params[name], leaf.dtype))
    return nnx.merge(graph, jax.tree_util.tree_unflatten(tree, leaves))


def with_dtype(model: Any, dtype: str) -> Any:
    """The same model with parameters and computation of another dtype.

    Args:
      model: of one of this package's families.
      dtype: ``"float32"`` or ``"bfloat16"``.

    Example:
      >>> from gems_jax.models import Decoder, DecoderConfig
      >>> sizes = {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
      >>> config = DecoderConfig(vocab_size=12, **sizes)
      >>> with_dtype(Decoder.create(config, jax.random.key(0)), "bfloat16").token_embedding.embedding.dtype
      dtype(bfloat16)
    """
    config = dataclasses.replace(model.config, dtype=dtype, param_dtype=dtype)
    return type(model).from_params(config, params_of(model))


def _abstract(model: type, config: Any) -> tuple[Any, list[tuple[Any, jax.ShapeDtypeStruct]], Any]:
    graph, abstract = nnx.split(nnx.eval_shape(lambda: model(config, jax.random.key(0))))
    return graph, *jax.tree_util.tree_flatten_with_path(abstract)
