"""Weights in safetensors files: read one tensor at a time onto its devices, written file by file."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gems_jax.models.family import ITEM_TABLES, Weight

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Endings of files that are read by unpickling, which runs what stands in them.
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Some hundred bytes a tensor.
_MAX_INDEX_BYTES = 1 << 27
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}

Slices = tuple[slice, ...]


class StoredTensor(NamedTuple):
    """A tensor in a file: shape and dtype from the file's head, and how to read a part of it."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Slices], np.ndarray]


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder's safetensors files, by name; nothing but the files' heads is read.

    Raises:
      FileNotFoundError: if there is no such file, or one that the index names is missing.
      ValueError: if a file is damaged, or two hold the same tensor.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        try:
            file = safe_open(path, framework="np")
            for name in file.keys():  # noqa: SIM118, not a dictionary
                if name in tensors:
                    raise ValueError(f"{path} holds tensor {name}, which another file of {folder} holds, too")
                part = file.get_slice(name)
                dtype = part.get_dtype()
                tensors[name] = StoredTensor(tuple(part.get_shape()), _DTYPES.get(dtype, dtype), part.__getitem__)
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file ({error}): copy or download it again") from error
    return tensors


def _weight_files(folder: Path) -> Iterator[Path]:
    if (folder / WEIGHTS).is_file():
        yield folder / WEIGHTS
        return
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        if pickled:
            raise FileNotFoundError(
                f"{folder / WEIGHTS} does not exist, only {pickled[0]}, which is pickled and not read, since reading "
                "it would run what stands in it: convert it to safetensors where you trust it (transformers: "
                "from_pretrained(...).save_pretrained(...))"
            )
        raise FileNotFoundError(
            f"{folder / WEIGHTS} does not exist: the folder needs weights in safetensors format (for random weights "
            "use gems_jax.models.from_config)"
        )
    for name in sorted(set(_weight_map(folder / INDEX).values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist, though {INDEX} names it")
        yield folder / name


def _weight_map(path: Path) -> dict[str, str]:
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, no index of weights has {_MAX_INDEX_BYTES:,}")
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not files or any(Path(name).name != name for name in files.values()):
            raise ValueError("weight_map must give the name of a file beside it for each tensor")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no index of weights: {type(error).__name__}: {error}") from error
    return files


def read_params(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    weights: Mapping[str, Weight],
    tensors: Mapping[str, StoredTensor],
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    """Reads a model's parameters; the host never holds more than one leaf and one tensor of the files.

    Args:
      shapes: leaf path to shape and dtype of all parameters, those of items among them.
      weights: leaf path to tensors, without the item tables.
      tensors: what the files hold, all of the right shape.
      mesh: devices to put them on, see `leaf_sharding`; ``None``: the default device.

    Returns:
      Leaf path to array.
    """
    params = {}
    for leaf, weight in weights.items():
        params[leaf] = _read_leaf(shapes[leaf], weight, tensors, leaf_sharding(leaf, shapes[leaf].shape, mesh))
        items = ITEM_TABLES.get(leaf, "")
        if items in shapes:
            sharding = leaf_sharding(items, shapes[items].shape, mesh)
            params[items] = _read_leaf(shapes[items], weight, tensors, sharding, first_row=shapes[leaf].shape[0])
    return params


def leaf_sharding(leaf: str, shape: tuple[int, ...], mesh: Mesh | None) -> NamedSharding | None:
    """Where a leaf goes: kernels split by output, tables by row, over the mesh's last axis where it divides them."""
    if mesh is None:
        return None
    axis = mesh.axis_names[-1]
    spec: list[str | None] = [None] * len(shape)
    split = len(shape) - 1 if leaf.endswith("/kernel") else None
    split = 0 if leaf in (*ITEM_TABLES, *ITEM_TABLES.values()) else split
    if split is not None and shape[split] % mesh.shape[axis] == 0:
        spec[split] = axis
    return NamedSharding(mesh, PartitionSpec(*spec))


def _read_leaf(
    leaf: jax.ShapeDtypeStruct,
    weight: Weight,
    tensors: Mapping[str, StoredTensor],
    sharding: NamedSharding | None,
    first_row: int = 0,
) -> jax.Array:
    names = weight.names()

    def read(index: Slices) -> np.ndarray:
        """The part of the leaf at ``index``, tensor by tensor."""
        whole = tuple(slice(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True))
        if weight.layers is None:
            rows, *others = whole
            rows = slice(rows.start + first_row, rows.stop + first_row)
            return _oriented(tensors[names[0]], (rows, *others), weight).astype(leaf.dtype)
        layers, inner = range(leaf.shape[0])[whole[0]], whole[1:]
        stacked = np.empty([part.stop - part.start for part in whole], leaf.dtype)
        for row, layer in enumerate(layers):
            stacked[row] = _oriented(tensors[names[layer]], inner, weight)
        return stacked

    if sharding is None:
        return jax.device_put(read((slice(None),) * len(leaf.shape)))
    # Devices that hold the same part share what was read of it.
    parts: dict[str, np.ndarray] = {}

    def read_once(index: Any) -> np.ndarray:
        key = str(index)
        if key not in parts:
            parts[key] = read(index)
        return parts[key]

    return jax.make_array_from_callback(leaf.shape, sharding, read_once)


def _oriented(tensor: StoredTensor, inner: Slices, weight: Weight) -> np.ndarray:
    return tensor.read(inner[::-1]).T if weight.transposed else tensor.read(inner)


def stored_shape(leaf: jax.ShapeDtypeStruct, weight: Weight, added_rows: int = 0) -> tuple[int, ...]:
    """Shape of each tensor that a leaf is read from; a table's with the item rows behind it."""
    shape = leaf.shape if weight.layers is None else leaf.shape[1:]
    shape = (shape[0] + added_rows, *shape[1:]) if added_rows else shape
    return shape[::-1] if weight.transposed else shape


def write_params(params: Mapping[str, jax.Array], weights: Mapping[str, Weight], folder: Path, max_bytes: int) -> None:
    """Writes a model's parameters as ``model.safetensors``, or as parts and their index.

    Args:
      params: leaf path to array, item tables among them.
      weights: leaf path to tensors, without the item tables, whose rows go behind the pretrained ones.
      folder: where to write.
      max_bytes: most bytes of tensors in a file, unless one tensor alone has more. The host never holds more.
    """
    from safetensors.numpy import save_file

    files = _split(params, weights, max_bytes)
    numbered = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    paths = [WEIGHTS] if len(files) == 1 else numbered
    for path, tensors in zip(paths, files, strict=True):
        save_file({name: read() for name, read in tensors.items()}, folder / path, metadata={"format": "pt"})
    if len(files) > 1:
        total = sum(leaf.nbytes for leaf in params.values())
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: path for path, tensors in zip(paths, files, strict=True) for name in tensors},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _split(
    params: Mapping[str, jax.Array], weights: Mapping[str, Weight], max_bytes: int
) -> list[dict[str, Callable[[], np.ndarray]]]:
    """The tensors of each file, by name a function that brings one to the host."""
    files: list[dict[str, Callable[[], np.ndarray]]] = [{}]
    size = 0
    for leaf, weight in weights.items():
        items = params.get(ITEM_TABLES.get(leaf, ""))
        nbytes = params[leaf].nbytes // (weight.layers or 1) + (0 if items is None else items.nbytes)
        for layer, name in enumerate(weight.names()):
            if files[-1] and size + nbytes > max_bytes:
                files.append({})
                size = 0
            files[-1][name] = functools.partial(_tensor, params[leaf], items, weight, layer)
            size += nbytes
    return files


def _tensor(value: jax.Array, items: jax.Array | None, weight: Weight, layer: int) -> np.ndarray:
    # A new array for a layer, since an array keeps the copy of itself that it once gave the host.
    host = np.asarray(value if weight.layers is None else _layer(value, layer))
    host = host if items is None else np.concatenate([host, np.asarray(items)])
    return np.ascontiguousarray(host.T) if weight.transposed else host


@jax.jit
def _layer(stacked: jax.Array, layer: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


def same_values(first: StoredTensor, second: StoredTensor, rows: int = 4096) -> bool:
    """Whether two tensors of the files are equal, compared a few rows at a time."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    end = first.shape[0]
    parts = (slice(start, min(start + rows, end)) for start in range(0, end, rows))
    return all(first.read((part,)).tobytes() == second.read((part,)).tobytes() for part in parts)


def common_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    """``"bfloat16"`` if all tensors are, else ``"float32"``.

    Raises:
      ValueError: if a tensor is not of floating point.

    Example:
      >>> common_dtype({"a": StoredTensor((1,), "bfloat16", lambda part: np.zeros(1))})
      'bfloat16'
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES.values():
            raise ValueError(f"tensor {name} has dtype {tensor.dtype}: weights must be of {sorted(_DTYPES.values())}")
    return "bfloat16" if {tensor.dtype for tensor in tensors.values()} == {"bfloat16"} else "float32"
