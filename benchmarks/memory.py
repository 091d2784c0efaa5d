"""Optimiser state of published models, from shapes alone: a table in Markdown.

    python benchmarks/memory.py

Per row: AdamW's state for all parameters, and the state of `gems_jax.gems` for two tasks at ranks of an eighth and a
quarter of each kernel's smaller side, with the embedding and the norms frozen, as the trainer does by default. The
null-space factors stand beside it, at half of the directions protected, which is the most they can take.
"""

from typing import Any

import jax
import optax
from flax import nnx

import gems_jax as gj
from gems_jax.linalg.matrix_dims import stacked_matrix_dims
from gems_jax.models import from_config

T5: dict[str, Any] = {
    "model_type": "t5",
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "vocab_size": 32128,
    "d_kv": 64,
}
QWEN3: dict[str, Any] = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "T5 1.1 small": T5 | {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "T5 1.1 base": T5 | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "Qwen3 0.6B": QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"tie_word_embeddings": True},
    "Qwen3 1.7B": QWEN3
    | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"tie_word_embeddings": True},
    "Qwen3 8B": QWEN3
    | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
    | {"tie_word_embeddings": False},
}  # fmt: skip
# Kernels that share their input with one before them.
SHARES = ("/k/", "/v/", "/up/", "/wi_1/")


def kernels(config: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The kernels of a model, abstract, and the number of all its parameters."""
    model = nnx.eval_shape(lambda: from_config(config, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    shapes = {gj.leaf_path(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}
    chosen = {path: leaf for path, leaf in shapes.items() if stacked_matrix_dims(path, leaf) is not None}
    return chosen, sum(leaf.size for leaf in shapes.values())


def factor_bytes(chosen: dict[str, Any]) -> int:
    """Null-space factors in float32 at half of the directions: ``d^2 / 2`` for each distinct input."""
    total = 0
    for path, leaf in chosen.items():
        shared = any(part in path for part in SHARES) and "cross_attention" not in path
        layers = 1 if "cross_attention/k" in path else leaf.shape[0]  # all layers see the same encoded input
        if not shared and "cross_attention/v" not in path:
            total += 4 * layers * leaf.shape[-2] ** 2 // 2
    return total


def main() -> None:
    print("| model | parameters | AdamW | GEMS, rank 1/8 | GEMS, rank 1/4 | null space, at most |")
    print("|---|---|---|---|---|---|")
    for name, config in CONFIGS.items():
        chosen, parameters = kernels(config)
        sizes = []
        for rank in (0.125, 0.25):
            tx = gj.gems(1e-3, num_tasks=2, rank=rank, matrix_dims=stacked_matrix_dims, fallback=optax.set_to_zero())
            sizes.append(gj.state_bytes(tx, chosen).total)
        cells = [8 * parameters, *sizes, factor_bytes(chosen)]
        print(f"| {name} | {parameters / 1e6:,.0f} M | " + " | ".join(f"{c / 2**30:.2f} GiB" for c in cells) + " |")


if __name__ == "__main__":
    main()
