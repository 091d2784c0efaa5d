"""Time of ranking items with a T5: ours beside transformers' ``generate`` on torch, in one run on this machine.

    OPENBLAS_NUM_THREADS=1 python benchmarks/ranking.py --out benchmarks/results/ranking.json

The model is a gated T5 (by default 512 wide, 6 + 6 layers, 32,128 tokens and 10,000 added ones) with random weights,
the same in both, in float32. Rounds take turns; medians of ``--rounds`` rounds.

``one token``: every item is a token of its own; each row ranks 100 candidates and wants 20. The peer is ``generate``
with 20 beams and a ``prefix_allowed_tokens_fn``, whose items and scores ours must equal. The floor is one encoder pass
and two decoder steps, the second of 20 beams that share the encoded input's keys and values, with the logits of the
whole vocabulary and without any choice of what comes next.

``four tokens``: the same with identifiers of four tokens, 256 codes a level.

``constraint``: three levels of 1,024 codes, 5 million items, 256 beams, whole catalogue; beside the same search in
which any code of a level may follow any other. Building the trie is timed once, from the array of identifiers.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx
from result_file import circumstances, write

import gems_jax as gj
from gems_jax.models.hugging_face import FAMILIES
from gems_jax.ranking.beam_search import beam_search
from gems_jax.ranking.t5_beams import T5Beams
from gems_jax.ranking.trie import Pick, Trie, catalogue_of

FOUR_LEVEL_CODES = 256


def models(args: argparse.Namespace, added: int) -> tuple[Any, gj.models.T5]:
    """A T5 of transformers with random weights, and ours with the same, ``added`` of its tokens as items."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=args.vocab_size + added,
        d_model=args.width,
        d_kv=args.width // args.heads,
        d_ff=args.hidden,
        num_layers=args.layers,
        num_heads=args.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    other = transformers.T5ForConditionalGeneration(config).eval()
    # Built without a checkpoint, it shares head and embedding whatever its config says.
    other.lm_head.weight = torch.nn.Parameter(3 * torch.randn(args.vocab_size + added, args.width) / args.width**0.5)
    family = FAMILIES["t5"]
    ours_config = family.read_config(json.loads(config.to_json_string()), "the benchmark's model")
    ours_config = dataclasses.replace(ours_config, tie_word_embeddings=False)
    tensors = {name: tensor.detach().numpy() for name, tensor in other.state_dict().items()}
    params = {}
    for leaf, weight in family.weights(ours_config).items():
        parts = [tensors[name].T if weight.transposed else tensors[name] for name in weight.names()]
        params[leaf] = parts[0] if weight.layers is None else np.stack(parts)
    for table, items in (("token_embedding", "item_embedding"), ("lm_head", "item_head")):
        whole = params[f"{table}/embedding"]
        params[f"{table}/embedding"], params[f"{items}/embedding"] = np.split(whole, [args.vocab_size])
    ours_config = dataclasses.replace(ours_config, vocab_size=args.vocab_size, num_added_tokens=added)
    return other, gj.models.T5.from_params(ours_config, params)


def draw_inputs(args: argparse.Namespace, rows: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(1).integers(2, args.vocab_size, (rows, args.length), dtype=np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def peer(other: Any, inputs: dict[str, np.ndarray], items: gj.ItemIndex, candidates: np.ndarray, beams: int) -> Any:
    """``generate`` with a trie of each row's candidates in dictionaries; returns item numbers and scores."""
    follow: list[dict[tuple[int, ...], set[int]]] = []
    names: list[dict[tuple[int, ...], int]] = []
    for row in candidates.tolist():
        names.append({tuple(items.token_ids[item].tolist()): item for item in row})
        follow.append({})
        for tokens in names[-1]:
            for place, token in enumerate((*tokens, 1)):
                follow[-1].setdefault(tokens[:place], set()).add(token)
    allowed = [{prefix: sorted(tokens) for prefix, tokens in of.items()} for of in follow]
    ids = torch.tensor(inputs["input_ids"]).long()
    length = items.token_ids.shape[1]

    def run() -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            found = other.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=length + 1,
                do_sample=False,
                prefix_allowed_tokens_fn=lambda row, prefix: allowed[row].get(tuple(prefix[1:].tolist()), [1]),
                output_scores=True,
                return_dict_in_generate=True,
            )
        sequences = found.sequences[:, 1 : length + 1].reshape(len(ids), beams, length).tolist()
        numbers = [[names[row][tuple(tokens)] for tokens in of] for row, of in enumerate(sequences)]
        return np.array(numbers), found.sequences_scores.reshape(len(ids), beams).numpy()

    return run


def floor(model: gj.models.T5, inputs: dict[str, np.ndarray], beams: int) -> Callable[[], Any]:
    """One encoder pass, one decoder step, and one of ``beams`` beams an input, with all logits."""
    graph, state = nnx.split(model)

    @jax.jit
    def bare(state: Any, inputs: dict[str, jax.Array], tokens: jax.Array) -> Any:
        model = nnx.merge(graph, state)
        first, memory = T5Beams.start(model, inputs, 1)
        hidden, _ = memory.take(jnp.zeros_like(tokens)).step(model, tokens)
        return first, model.logits(hidden)

    tokens = np.random.default_rng(2).integers(2, 1000, (len(inputs["input_ids"]), beams), dtype=np.int32)
    return lambda: jax.block_until_ready(bare(state, inputs, tokens))


def turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Median seconds of each, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {
        name: {"seconds": statistics.median(taken), "min": min(taken), "max": max(taken)}
        for name, taken in seconds.items()
    }


def compare(args: argparse.Namespace, rows: int, items: gj.ItemIndex, added: int, with_floor: bool) -> dict[str, Any]:
    """Ours beside ``generate``, the results checked to be the same."""
    other, model = models(args, added)
    inputs = draw_inputs(args, rows)
    rng = np.random.default_rng(3)
    candidates = np.stack([rng.permutation(items.num_items)[: args.candidates] for _ in range(rows)])
    runs = {
        "ours": lambda: jax.block_until_ready(
            gj.rank_items(model, inputs, items, candidates, k=args.results, beams=args.results)
        ),
        "generate": peer(other, inputs, items, candidates, args.results),
    }
    if with_floor:
        runs["floor"] = floor(model, inputs, args.results)
    (ids, scores), (expected, expected_scores) = runs["ours"](), runs["generate"]()
    difference = float(np.abs(np.asarray(scores) - expected_scores).max())
    same = bool((np.asarray(ids) == expected).all())
    if not same or difference > 1e-4:
        raise SystemExit(f"not the same as generate: same items {same}, scores differ by {difference:.1e}")
    found = turns(runs, args.rounds)
    result = {"rows": rows, **found, "largest_score_difference": difference}
    result["times_generate"] = found["generate"]["seconds"] / found["ours"]["seconds"]
    if with_floor:
        result["times_floor"] = found["ours"]["seconds"] / found["floor"]["seconds"]
    return result


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnyCode:
    """Three levels of codes, any of which may follow any other: a search without a constraint."""

    first: jax.Array  # of the items' tokens
    codes: int = dataclasses.field(metadata={"static": True})
    lowest: int = dataclasses.field(metadata={"static": True})
    depth: int = dataclasses.field(default=3, metadata={"static": True})
    ends: tuple[bool, ...] = dataclasses.field(default=(False, False, False, True), metadata={"static": True})
    rows: None = dataclasses.field(default=None, metadata={"static": True})

    def of_row(self, row: None) -> "AnyCode":
        return self

    def expand(
        self, depth: int, nodes: jax.Array, logits: jax.Array, offset: jax.Array, shift: int
    ) -> tuple[jax.Array, Pick]:
        start = self.lowest + depth * self.codes
        values = logits[:, start - shift : start - shift + self.codes] + offset[:, None]

        def pick(chosen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            beam, code = chosen // self.codes, chosen % self.codes
            return beam, nodes[beam] * self.codes + code, start + code

        return values.reshape(-1), pick

    def items_at(self, depth: int, nodes: jax.Array) -> jax.Array:
        return nodes


def constraint_cost(args: argparse.Namespace) -> dict[str, Any]:
    """The same search with and without the trie, and what building it takes."""
    codes, beams = args.codes, args.constraint_beams
    _, model = models(args, 3 * codes)
    drawn = np.random.default_rng(4).integers(0, codes**3, int(1.01 * args.catalogue) + 10)
    packed = np.unique(drawn)
    packed = np.random.default_rng(5).permutation(packed)[: args.catalogue]
    levels = np.stack([packed // codes**2, packed // codes % codes, packed % codes], axis=1)
    token_ids = (levels + args.vocab_size + codes * np.arange(3)).astype(np.int32)

    begin = time.perf_counter()
    items = gj.ItemIndex(token_ids)
    checked = time.perf_counter() - begin
    trie: Trie = jax.block_until_ready(catalogue_of(items)).trie
    built = time.perf_counter() - begin - checked

    inputs = draw_inputs(args, 1)
    graph, state = nnx.split(model)
    free = AnyCode(jnp.zeros(()), codes, args.vocab_size)

    def search(constraint: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(
            beam_search(graph, state, inputs, constraint, k=args.results, beams=beams, vocabulary="full")
        )

    found = turns({"with": search(trie), "without": search(free)}, args.rounds)
    ids = np.asarray(gj.rank_items(model, inputs, items, k=args.results, beams=beams)[0])
    if (ids < 0).any() or (ids >= len(token_ids)).any():
        raise SystemExit("an item that is none")
    return {
        "items": len(token_ids),
        "beams": beams,
        **found,
        "cost": found["with"]["seconds"] / found["without"]["seconds"],
        "check_seconds": checked,
        "build_seconds": built,
        "nodes": len(trie.token),
        "most_children": trie.degrees,
        "trie_bytes": trie.nbytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=32128)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--results", type=int, default=20, help="of each row, and beams")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--codes", type=int, default=1024, help="a level, of the constraint's catalogue")
    parser.add_argument("--catalogue", type=int, default=5_000_000)
    parser.add_argument("--constraint-beams", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", default=["one token", "four tokens", "constraint"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    begin = time.perf_counter()
    tokens = args.vocab_size + np.arange(args.items)[:, None]
    codes = np.random.default_rng(0).integers(0, FOUR_LEVEL_CODES, (2 * args.items, 4))
    codes = np.random.default_rng(0).permutation(np.unique(codes, axis=0))[: args.items]
    codes = codes + args.vocab_size + FOUR_LEVEL_CODES * np.arange(4)
    results: dict[str, Any] = {}
    if "one token" in args.parts:
        items = gj.ItemIndex(tokens)
        results["one token"] = [compare(args, rows, items, args.items, True) for rows in args.rows]
    if "four tokens" in args.parts:
        items = gj.ItemIndex(codes)
        results["four tokens"] = [compare(args, rows, items, 4 * FOUR_LEVEL_CODES, False) for rows in args.rows]
    for part, found in results.items():
        for one in found:
            line = f"{part}, {one['rows']} rows: {one['ours']['seconds'] * 1e3:.1f} ms, "
            line += f"generate {one['times_generate']:.1f} x that"
            print(line + (f", {one['times_floor']:.3f} x the floor" if "floor" in one else ""), flush=True)
    if "constraint" in args.parts:
        one = results["constraint"] = constraint_cost(args)
        print(
            f"constraint: {one['with']['seconds'] * 1e3:.1f} ms, {one['cost']:.3f} x without; trie of {one['items']:,} "
            f"items built in {one['build_seconds']:.1f} s, {one['trie_bytes'] / 1e6:.1f} MB"
        )
    result = {
        "results": results,
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "seconds": round(time.perf_counter() - begin, 1),
        "threads": {"torch": torch.get_num_threads()},
        **circumstances("jax", "jaxlib", "flax", "torch", "transformers", device=jax.devices()[0].device_kind),
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
