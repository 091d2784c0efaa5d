"""Time of ranking items with a T5: ours beside transformers' ``generate`` on torch, in one run on this machine.

    OPENBLAS_NUM_THREADS=1 python benchmarks/ranking.py --out benchmarks/results/ranking.json

The model has T5-small's dimensions (512 wide, 2,048 within, ReLU, 6 + 6 layers of 8 heads, 32,128 tokens), an output
layer of its own and added tokens for the items (10,000 of one token each, or four levels of 256 codes), with random
weights, the same in both, in float32, products too; ours has layers with arrays of their own (`models.unstacked`), and
is timed with stacked ones beside it. Both compute on the GPU if JAX has one (``--rows 1 8 32`` asks more
of it), else on the CPU; the result names the devices. Runs take turns, first the one, then the other, after one round
that does not count; medians of ``--rounds`` rounds, beside the fastest and the slowest, and the same of the ratios
within each round.

``one token``: every item is a token of its own; each row ranks 100 candidates and wants 20. The peer is ``generate``
with 20 beams and a ``prefix_allowed_tokens_fn``, whose items and scores ours must equal. The floor is one encoder pass
and two decoder steps, the second of 20 beams that share the encoded input's keys and values, with the logits of the
whole vocabulary and without any choice of what comes next; ours also makes the candidates' tries and copies them to the
device.

``four tokens``: the same with identifiers of four tokens, 256 codes a level. The floor is as many passes of the decoder
as our search takes: one a token until the beams lead to hardly more candidates than there are beams, then one over what
is left of these.

``constraint``: three levels of 1,024 codes, 5 million items, 256 beams, whole catalogue; beside the same search in
which any code of a level may follow any other, which has no trie to look into and as many continuations to choose from
at the first two levels, more at the last. Checking the identifiers and building the trie from them are timed once, and
building is done once more for the memory that it takes on the host.

``decoder``: one prompt of 1,000 tokens to a decoder of 0.1 billion parameters, a million items of three codes of 256,
256 beams, whole catalogue; beside the pass over the prompt alone, which the beams share. NVIDIA gives 17.6 ms for its
SID-GR example, a Qwen3-1.7B with as many beams, codes and tokens, on an H100.
"""

import argparse
import dataclasses
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from ranking_decoder import decoder_search
from ranking_device import devices, same_precision
from ranking_peer import draw_inputs, models, peer
from ranking_turns import ratio, spread, turns
from result_file import circumstances, write

import gems_jax as gj
from gems_jax.ranking.beam_search import beam_search
from gems_jax.ranking.candidate_tries import build_candidate_tries
from gems_jax.ranking.token_logits import TokenLogits
from gems_jax.ranking.trie import Completions, Pick, Trie, build_trie, catalogue_of

FOUR_LEVEL_CODES = 256
# What the medians are held to.
LIMITS = {"one token, times_floor": 1.25, "four tokens, times_generate": 5.0, "constraint, cost": 1.15,
          "constraint, check_and_build_seconds": 60.0}  # fmt: skip
# Two scores that differ by less are a tie, whose order rounding decides.
TIE = 1e-5
# Rounds beside the floor for each one beside generate: they are short, and their ratio is near 1.
FLOOR_ROUNDS = 3


def floor(model: gj.models.T5, inputs: dict[str, np.ndarray], passes: tuple[tuple[int, int], ...]) -> Callable[[], Any]:
    """One encoder pass, one decoder step, and passes of several beams an input, with all logits.

    ``passes``: the number of beams, and of tokens that each of them reads.
    """
    graph, state = nnx.split(model)

    @jax.jit
    def bare(state: Any, inputs: dict[str, jax.Array], tokens: list[jax.Array]) -> Any:
        model = nnx.merge(graph, state)
        first, memory = model.start_beams(inputs)
        logits = [first]
        for ids in tokens:
            memory = memory.take(jnp.zeros(ids.shape[:2], jnp.int32))
            hidden, memory = memory.step(model, ids)
            logits.append(model.logits(hidden))
        return logits

    rng, rows = np.random.default_rng(2), len(inputs["input_ids"])
    tokens = [rng.integers(2, 1000, (rows, *one), dtype=np.int32) for one in passes]
    return lambda: jax.block_until_ready(bare(state, inputs, tokens))


def same_items(ids: np.ndarray, expected: np.ndarray, scores: np.ndarray) -> bool:
    """Whether two rankings ``[B, k]`` are equal but for ties, by the scores ``[B, k]`` of the second."""
    gaps = np.abs(np.diff(scores, axis=1))
    end = np.zeros((len(scores), 1))  # the last may tie with one that is not shown
    tied = (np.concatenate([gaps, end], axis=1) < TIE) | (np.concatenate([end + np.inf, gaps], axis=1) < TIE)
    return bool(((ids == expected) | tied).all())


def compare(args: argparse.Namespace, rows: int, items: gj.ItemIndex, added: int) -> dict[str, Any]:
    """Ours beside ``generate``, the results checked to be the same, and beside the floor."""
    other, model = models(args, added)
    apart = gj.models.unstacked(model)
    inputs = draw_inputs(args, rows)
    rng = np.random.default_rng(3)
    candidates = np.stack([rng.permutation(items.num_items)[: args.candidates] for _ in range(rows)])

    def ours(model: gj.models.T5 = apart) -> Any:
        ranked = gj.rank_items(model, inputs, items, candidates, k=args.results, beams=args.results)
        return jax.block_until_ready(ranked)

    def stacked() -> Any:
        return ours(model)

    generate = peer(other, inputs, items, candidates, args.results)
    (ids, scores), (expected, expected_scores) = ours(), generate()
    difference = float(np.abs(np.asarray(scores) - expected_scores).max())
    same = same_items(np.asarray(ids), expected, expected_scores)
    if not same or difference > 1e-4:
        raise SystemExit(f"not the same as generate: same items {same}, scores differ by {difference:.1e}")
    seconds_of = turns({"ours": ours, "stacked": stacked, "generate": generate}, args.rounds)
    result: dict[str, Any] = {"rows": rows, "largest_score_difference": difference}
    result |= {f"{name}_seconds": spread(seconds) for name, seconds in seconds_of.items()}
    result["times_generate"] = ratio(seconds_of["generate"], seconds_of["ours"])
    result["stacked_times_ours"] = ratio(seconds_of["stacked"], seconds_of["ours"])
    tries, length = build_candidate_tries(items, candidates, args.results), items.token_ids.shape[1]
    beams = args.results if tries.cut == length else tries.most
    passes = (*[(args.results, 1)] * (tries.cut - 1), (beams, length - tries.cut + 1))
    bare = floor(apart, inputs, passes)
    # On their own, without torch's threads between them.
    near = turns({"ours": ours, "floor": bare}, FLOOR_ROUNDS * args.rounds)
    result |= {"ours_beside_floor_seconds": spread(near["ours"]), "floor_seconds": spread(near["floor"])}
    return result | {"times_floor": ratio(near["ours"], near["floor"]), "passes": [list(one) for one in passes]}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnyCode:
    """Three levels of codes, any of which may follow any other: a search without a constraint."""

    codes: int = dataclasses.field(metadata={"static": True})
    lowest: int = dataclasses.field(metadata={"static": True})
    cut: int = dataclasses.field(default=3, metadata={"static": True})
    ends: tuple[bool, ...] = dataclasses.field(default=(False, False, False, True), metadata={"static": True})
    rows: None = dataclasses.field(default=None, metadata={"static": True})

    def of_row(self, row: None) -> "AnyCode":
        return self

    def expand(self, depth: int, nodes: jax.Array, logits: TokenLogits, offset: jax.Array) -> tuple[jax.Array, Pick]:
        # All of them are added tokens, the last part of the logits.
        start = self.lowest + depth * self.codes
        values = logits.parts[-1][:, depth * self.codes : (depth + 1) * self.codes] + offset[:, None]

        def pick(chosen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            beam, code = chosen // self.codes, chosen % self.codes
            return beam, nodes[beam] * self.codes + code, start + code

        return values.reshape(-1), pick

    def rest(self, nodes: jax.Array) -> Completions:
        return Completions.one_each(nodes)


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
    tracemalloc.start()
    build_trie(items)
    _, host_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    inputs = draw_inputs(args, 1)
    free = AnyCode(codes, args.vocab_size)

    def search(constraint: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(
            beam_search(model, inputs, constraint, k=args.results, beams=beams, vocabulary="full")
        )

    seconds_of = turns({"with": search(trie), "without": search(free)}, args.rounds)
    ids = np.asarray(gj.rank_items(model, inputs, items, k=args.results, beams=beams)[0])
    if (ids < 0).any() or (ids >= len(token_ids)).any():
        raise SystemExit("an item that is none")
    return {
        "items": len(token_ids),
        "beams": beams,
        **{f"{name}_seconds": spread(seconds) for name, seconds in seconds_of.items()},
        "cost": ratio(seconds_of["with"], seconds_of["without"]),
        "check_seconds": checked,
        "build_seconds": built,
        "nodes": len(trie.token),
        "most_children": trie.degrees,
        "trie_bytes": trie.nbytes,
        "build_host_bytes": host_bytes,
    }


def held(results: dict[str, Any]) -> dict[str, bool]:
    """Which limits the medians keep, of the parts that were run."""
    kept = {}
    if "one token" in results:
        worst = max(one["times_floor"]["of_medians"] for one in results["one token"])
        kept["one token, times_floor"] = worst <= LIMITS["one token, times_floor"]
    if "four tokens" in results:
        worst = min(one["times_generate"]["of_medians"] for one in results["four tokens"])
        kept["four tokens, times_generate"] = worst >= LIMITS["four tokens, times_generate"]
    if "constraint" in results:
        one = results["constraint"]
        kept["constraint, cost"] = one["cost"]["of_medians"] <= LIMITS["constraint, cost"]
        seconds = one["check_seconds"] + one["build_seconds"]
        kept["constraint, check_and_build_seconds"] = seconds <= LIMITS["constraint, check_and_build_seconds"]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=2048)
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=["one token", "four tokens", "constraint", "decoder"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    same_precision()
    begin = time.perf_counter()
    tokens = args.vocab_size + np.arange(args.items)[:, None]
    codes = np.random.default_rng(0).integers(0, FOUR_LEVEL_CODES, (2 * args.items, 4))
    codes = np.random.default_rng(0).permutation(np.unique(codes, axis=0))[: args.items]
    codes = codes + args.vocab_size + FOUR_LEVEL_CODES * np.arange(4)
    results: dict[str, Any] = {}
    if "one token" in args.parts:
        items = gj.ItemIndex(tokens)
        results["one token"] = [compare(args, rows, items, args.items) for rows in args.rows]
    if "four tokens" in args.parts:
        items = gj.ItemIndex(codes)
        results["four tokens"] = [compare(args, rows, items, 4 * FOUR_LEVEL_CODES) for rows in args.rows]
    for part, comparisons in results.items():
        for one in comparisons:
            line = f"{part}, {one['rows']} rows: {one['ours_seconds']['median'] * 1e3:.1f} ms, "
            line += f"generate {one['times_generate']['of_medians']:.1f} x that"
            line += f", {one['times_floor']['of_medians']:.3f} x the floor"
            print(f"{line}, {one['stacked_times_ours']['of_medians']:.2f} x that with stacked layers")
    if "constraint" in args.parts:
        one = results["constraint"] = constraint_cost(args)
        print(
            f"constraint: {one['with_seconds']['median'] * 1e3:.1f} ms, {one['cost']['of_medians']:.3f} x without; "
            f"{one['items']:,} items checked in {one['check_seconds']:.1f} s, their trie built in "
            f"{one['build_seconds']:.1f} s, {one['trie_bytes'] / 1e6:.1f} MB, "
            f"{one['build_host_bytes'] / 1e6:.0f} MB of the host while it is built"
        )
    if "decoder" in args.parts:
        one = results["decoder"] = decoder_search(args.rounds)
        print(
            f"decoder of {one['parameters'] / 1e9:.2f} B: {one['seconds']['median'] * 1e3:,.0f} ms for one prompt of "
            f"{one['length']:,} tokens and {one['items']:,} items, {one['times_prompt']['of_medians']:.2f} x the pass "
            f"over the prompt; {one['temporary_bytes'] / 2**20:,.0f} MiB beside parameters and trie"
        )
    verdicts = held(results)
    for name, kept in verdicts.items():
        print(f"{name}: limit {LIMITS[name]}, {'kept' if kept else 'NOT kept'}")
    result = {
        "results": results,
        "limits": {name: {"limit": LIMITS[name], "kept": kept} for name, kept in verdicts.items()},
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "seconds": round(time.perf_counter() - begin, 1),
        "threads": {"torch": torch.get_num_threads()},
        **devices(peer="one token" in results or "four tokens" in results),
        **circumstances("jax", "jaxlib", "flax", "torch", "transformers", device=jax.devices()[0].device_kind),
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
