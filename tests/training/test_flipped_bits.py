"""Single bits flipped in all that a run reads: each is found, or changes nothing that is read."""

import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import options
from transformers import AutoTokenizer

from gems_jax import cli
from gems_jax.arguments import config_of
from gems_jax.data.batching.token_cache import encode_once
from gems_jax.data.dataset import storage
from gems_jax.training.workdir.assets import AssetRecord, write_record
from gems_jax.training.workdir.checkpoints import Checkpoints
from gems_jax.training.workdir.files import keep_config

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks")]

from flip_bits import artefacts_of, flip, flips, read  # noqa: E402


@pytest.fixture(scope="module")
def artefacts(prepared, tmp_path_factory):
    """All that the commands made, and a work directory with two checkpoints of a few numbers."""
    root = tmp_path_factory.mktemp("flipped")
    for name in ("data", "base", "null_space"):
        shutil.copytree(prepared.root / name, root / name)
    table = storage.load(root / "data").table("valid", "src")
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    encode_once(table, tokenizer, np.full(10_000, 5), "{query} {history}", 32, root / "tokens")
    config = config_of(cli.parse(["train", "--workdir", "-", *map(str, options(root))])[1])
    keep_config(config, root / "run")
    write_record(
        AssetRecord({"i0": "00", "i1": "11"}, {}, {"rec": "{history}"}, "ab", {}, {"rec": "cd"}, None, False),
        root / "run",
    )
    like = {"kernel": jnp.arange(6.0)}, {"moment": jnp.ones(6)}
    with Checkpoints(root / "run" / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, *like, {"batches": step, "best": {"step": None}})
    return artefacts_of(root, like)


def test_no_flipped_bit_is_silent_and_harmful(artefacts):
    done = flips(artefacts, 56, seed=1)
    assert [one for one in done if one.outcome not in ("found", "harmless")] == []
    assert {one.artefact for one in done if one.outcome == "found"} == {artefact.name for artefact in artefacts}


def test_a_flip_that_no_checksum_guards_is_called_silent(artefacts):
    catalogue = next(artefact for artefact in artefacts if artefact.name == "dataset")
    items = next(path for path in catalogue.files if path.name == "items.jsonl")
    whole, said = read(catalogue)
    assert said == ""
    place = 8 * items.read_bytes().index(b'"title": "') + 80
    assert flip(catalogue, items, place, whole).outcome == "found"
    unguarded = catalogue._replace(read=lambda: items.read_text())
    assert flip(unguarded, items, place, read(unguarded)[0]).outcome == "silent"
    assert flip(unguarded, items.parent / "card.json", 8, read(unguarded)[0]).outcome == "harmless"
    broken = catalogue._replace(read=lambda: {}["no such key"])
    assert flip(broken, items, place, whole).outcome == "traceback"
    assert read(catalogue) == (whole, "")
