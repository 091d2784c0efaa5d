"""What a null space by energy leaves out of a language model's inputs, with tokens as they are and of unit norm each.

    python benchmarks/outliers.py --model FOLDER --train TEXT --heldout TEXT --out benchmarks/results/outliers.json

FOLDER is a Hugging Face folder, TEXT any plain text. A row is an input of kernels, with the least and most of its
layers: how many directions each rule protects, and the share of held-out tokens' energy (of unit norm each, so that all
count alike) that is outside of them.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from result_file import circumstances, write

from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.text.general_text import read_lines, token_stream
from gems_jax.models import load
from gems_jax.null_space.directions import Rule, principal_directions
from gems_jax.null_space.moment_groups import moment_groups
from gems_jax.null_space.moment_pass import as_function, masks_of, moment_pass
from gems_jax.null_space.observed_roles import observe_roles
from gems_jax.null_space.second_moment import symmetric
from gems_jax.null_space.tracing.kernel_inputs import kernel_inputs

RULES = {"energy": Rule(energy=0.85), "energy and min_share": Rule(energy=0.85, min_share=0.35)}


class Moments:
    """Second moments of all inputs of a model's kernels over some text."""

    def __init__(self, model: Any, batch: Any):
        self._function = as_function(model)
        self._specs = observe_roles(self._function, batch, None).specs
        called = self._function.called(batch)
        found = kernel_inputs(self._function.apply, self._function.params, called, self._specs, "in", masks_of(batch))
        self._inputs = found.inputs

    def of(self, batches: list[Any], unit_norm: bool) -> dict[str, np.ndarray]:
        """Name of the input to ``[layers, d, d]``, float64."""
        (group,) = moment_groups(self._inputs, None)
        start, add = moment_pass(self._function, self._specs, "in", self._inputs, group, unit_norm=unit_norm)
        sums = start()
        for batch in batches:
            sums = add(self._function.params, {name: jnp.asarray(value) for name, value in batch.items()}, sums)
        stacks = {name: np.asarray(one.total, np.float64) for name, one in sums.items()}
        return {
            name: np.stack([symmetric(one) for one in stack.reshape(-1, *stack.shape[-2:])])
            for name, stack in stacks.items()
        }


def outside(name: str, moment: np.ndarray, heldout: np.ndarray, rule: Rule) -> tuple[int, float]:
    """Directions protected of a moment, and the share of the held-out one that is outside of them."""
    found = principal_directions(name, moment, rule)
    basis = found.basis.astype(np.float64)
    inside = float(np.sum(basis * (heldout @ basis)) / np.trace(heldout))
    return found.kept, inside if found.complement else 1 - inside


def rows(of: dict[str, dict[str, np.ndarray]], heldout: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """A row for each input, rule and way to count tokens."""
    for name, tokens in heldout.items():
        for counted, moments in of.items():
            for rule, options in RULES.items():
                found = [outside(name, *pair, options) for pair in zip(moments[name], tokens, strict=True)]
                kept, left = zip(*found, strict=True)
                row = {"input": name, "dim": tokens.shape[-1], "tokens": counted, "rule": rule}
                yield row | {"kept": [min(kept), max(kept)], "outside": [min(left), max(left)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", required=True, help="text that null spaces are made from")
    parser.add_argument("--heldout", required=True, help="text that they are judged on")
    parser.add_argument("--batches", type=int, default=16, help="of 8 x 128 tokens; a quarter as many are held out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    model, tokenizer = load(args.model, "float32")

    def text(source: str, split: Any, number: int) -> list[Any]:
        tokens = token_stream(read_lines(source, split, "text"), tokenizer)
        return list(LAYOUTS[model.layout].text_batches(tokens, tokenizer, 8, 128, number))

    train, heldout = text(args.train, "train", args.batches), text(args.heldout, "heldout", max(1, args.batches // 4))
    moments = Moments(model, train[0])
    made = {"as they are": moments.of(train, False), "of unit norm": moments.of(train, True)}
    found = list(rows(made, moments.of(heldout, True)))
    for row in found:
        print(json.dumps(row))
    command = "python benchmarks/outliers.py --model FOLDER --train TEXT --heldout TEXT"
    where = circumstances("jax", "jaxlib", "flax", device=jax.devices()[0].device_kind)
    about = {"model": args.model.name, "batches": args.batches, "circumstances": where}
    write({"command": command, **about, "rows": found}, args.out)


if __name__ == "__main__":
    main()
