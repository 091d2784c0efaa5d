"""Loading, growing and saving on a mesh of eight fake devices; run as a program of its own, prints JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from fake_devices import fake_devices
from flax import nnx

from gems_jax.items import add_item_tokens, grow
from gems_jax.models import load, save
from gems_jax.models.hf import load_save as hugging_face


def main(folder: Path) -> None:
    """Works on the model in ``folder / "model"``."""
    fake_devices(8)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    most_read = 0
    opened = hugging_face.open_tensors

    def watched(place: Path) -> dict[str, Any]:
        def watch(tensor: Any) -> Any:
            def read(part: Any) -> np.ndarray:
                nonlocal most_read
                found = tensor.read(part)
                most_read = max(most_read, found.size)
                return found

            return tensor._replace(read=read)

        return {name: watch(tensor) for name, tensor in opened(place).items()}

    plain, tokenizer = load(folder / "model")
    hugging_face.open_tensors = watched
    model, _ = load(folder / "model", mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(plain, nnx.Param), nnx.state(model, nnx.Param))
    titles = [[5, 6], [7], [8, 9], [3]]
    add_item_tokens(tokenizer, ["a", "b", "c", "d"], model.config.vocab_size)
    grown, odd = grow(model, titles), grow(model, titles[:3])
    whole = grow(plain, titles)
    np.testing.assert_allclose(grown.item_embedding.embedding, whole.item_embedding.embedding, rtol=1e-6)
    save(grown, tokenizer, folder / "grown", max_file_bytes=4000)
    again, _ = load(folder / "grown", mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(grown, nnx.Param), nnx.state(again, nnx.Param))
    ids = np.array([[3, 4, 41, 1]])
    np.testing.assert_allclose(
        again(ids, decoder_input_ids=ids), whole(ids, decoder_input_ids=ids), rtol=1e-4, atol=1e-5
    )
    leaves = {
        "kernel": model.encoder.block.mlp.wi_0.kernel,
        "table": model.token_embedding.embedding,
        "norm": model.encoder.final_norm.scale,
        "relative_bias": model.encoder.relative_bias.embedding,
        "items": again.item_embedding.embedding,
        "grown items": grown.item_embedding.embedding,
        "three items": odd.item_embedding.embedding,
    }
    specs = {name: list(leaf.sharding.spec) for name, leaf in leaves.items()}
    print(json.dumps({"most_read": most_read, "specs": specs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
