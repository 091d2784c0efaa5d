"""Flips single bits in everything that a run reads, and tells whether each is found, harmless, or silent and harmful.

    python benchmarks/flip_bits.py --flips 400 --seed 0 --out benchmarks/results/flip_bits.json

A tiny run is made by the commands. Then, one at a time, a random bit of a random file is flipped, what the file
belongs to is read as a run reads it, and the bit is put back. *Found*: reading ends with an error of the kind that
commands show as a message, or a damaged checkpoint is passed over with a warning. *Harmless*: what is read is the same
to the bit. *Silent*: it is not. *Traceback*: an error of another kind. Artefacts take turns, and so do the files of
each. Exits with 1 if a flip was silent or ended in a traceback.

Not among them: ``metrics.jsonl``, ``eval.json``, rankings and reports, which are results and decide no other run.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from result_file import circumstances, write

from gems_jax import NullSpace
from gems_jax.config.base_model import ModelConfig
from gems_jax.config.run import Config
from gems_jax.data.batching.token_cache import open_encoded
from gems_jax.data.dataset import storage
from gems_jax.models import load
from gems_jax.models.params import params_of
from gems_jax.staging import files_in
from gems_jax.training.stages import ensure_base
from gems_jax.training.workdir.assets import read_record
from gems_jax.training.workdir.checkpoints import Checkpoints
from gems_jax.training.workdir.files import read_kept_config


class Artefact(NamedTuple):
    """Something on disk: its name, its files, and how a run reads them."""

    name: str
    files: list[Path]
    read: Callable[[], Any]


class Flip(NamedTuple):
    """A bit that was flipped, and how it ended."""

    artefact: str
    file: str
    bit: int
    outcome: str
    said: str


def folder(name: str, path: Path, read: Callable[[Path], Any]) -> Artefact:
    return Artefact(name, [path for _, path in files_in(path)], lambda: read(path))


def read_base(path: Path) -> Any:
    model, tokenizer = load(ensure_base(Config(model=ModelConfig(path=str(path), from_text=False))))
    leaves = jax.tree_util.tree_leaves_with_path(params_of(model))
    words = [sorted(tokenizer.get_vocab().items()), tokenizer("Red lamp, 12 W")["input_ids"], tokenizer.eos_token_id]
    return [model.config, [(str(path), np.asarray(leaf)) for path, leaf in leaves], words]


def read_checkpoint(path: Path, like: tuple[Any, Any]) -> Any:
    with Checkpoints(path, writes=False) as checkpoints:
        saved = checkpoints.restore_latest(*like)
    return None if saved is None else [saved.step, saved.params, saved.opt_state, saved.position]


def artefacts_of(root: Path, like: tuple[Any, Any]) -> list[Artefact]:
    """The files that a run in ``root / "run"`` reads.

    Args:
      root: holds ``data``, ``tokens``, ``base``, ``null_space`` and ``run``.
      like: parameters and optimiser state of the shapes of the run's, by path.
    """
    run, checkpoints = root / "run", root / "run" / "checkpoints"
    return [
        folder("dataset", root / "data", storage.load),
        *(folder(f"encoded {path.name[:3]}", path, open_encoded) for path in sorted((root / "tokens").iterdir())),
        folder("base model", root / "base", read_base),
        folder("null space", root / "null_space", NullSpace.load),
        Artefact("configuration", [run / "config.yaml"], lambda: read_kept_config(run / "config.yaml")),
        Artefact("record", [run / "assets.json"], lambda: read_record(run)),
        folder("checkpoints", checkpoints, lambda path: read_checkpoint(path, like)),
    ]


def parts(value: Any) -> Iterator[bytes]:
    """All of a value, whatever it is made of."""
    if isinstance(value, np.ndarray | jax.Array):
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif dataclasses.is_dataclass(value):
        yield from parts({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from chain([f"{key!r}: ".encode()], parts(entry))
    elif isinstance(value, list | tuple):
        yield f"{len(value)} entries".encode()
        for entry in value:
            yield from parts(entry)
    elif value is None or isinstance(value, str | int | float | Path | np.generic):
        yield f"{type(value).__name__} {value!r}".encode()
    else:
        raise NotImplementedError(f"what is in a {type(value)}?")


def read(artefact: Artefact) -> tuple[str, str]:
    """A digest of what is read, and what is said of damage."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        digest = hashlib.sha256(b"\0".join(parts(artefact.read()))).hexdigest()
    notes = [str(warning.message) for warning in caught]
    return digest, next((note for note in notes if "damaged" in note or "has no checksums.json" in note), "")


def flip(artefact: Artefact, path: Path, bit: int, whole: str) -> Flip:
    """Flips a bit, reads the artefact, puts the bit back.

    Args:
      artefact: that the file is of.
      path: of the file.
      bit: its number in the file.
      whole: digest of what is read without the flip.
    """
    content = path.read_bytes()
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(changed)
        digest, said = read(artefact)
        outcome = "found" if said else "harmless" if digest == whole else "silent"
    except (ValueError, TypeError, OSError) as error:  # what commands show as a message
        outcome, said = "found", str(error)
    except Exception as error:  # nothing else may come
        outcome, said = "traceback", repr(error)
    finally:
        path.write_bytes(content)
    within = os.path.relpath(path, os.path.commonpath([file.parent for file in artefact.files]))
    return Flip(artefact.name, within, bit, outcome, said)


def flips(artefacts: Sequence[Artefact], number: int, seed: int) -> list[Flip]:
    """That many flips, each of another random bit; artefacts take turns, and so do the files of each."""
    rng = random.Random(seed)
    whole = {}
    for artefact in artefacts:
        whole[artefact.name], said = read(artefact)
        if said:
            raise ValueError(f"{artefact.name} is not whole to begin with: {said}")
    turns = [
        cycle(rng.sample(files, len(files))) for files in ([f for f in a.files if f.stat().st_size] for a in artefacts)
    ]
    done = []
    for artefact, files in islice(cycle(list(zip(artefacts, turns, strict=True))), number):
        path = next(files)
        done.append(flip(artefact, path, rng.randrange(8 * path.stat().st_size), whole[artefact.name]))
    return done


def saved_like(checkpoints: Path) -> tuple[Any, Any]:
    """Parameters and optimiser state of the newest checkpoint, by path."""
    import orbax.checkpoint as ocp

    newest = max((path for path in checkpoints.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that arrays come as they were saved is what is wanted
        restored = [ocp.StandardCheckpointer().restore((newest / part).resolve()) for part in ("params", "optimiser")]
    return restored[0], restored[1]


def main() -> int:
    from stress_resume import SETTINGS, command, environment

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        SETTINGS.update({"train.steps": 8, "train.eval_every": 0, "data.tokens": str(root / "tokens")})
        del SETTINGS["train.metric"]
        made = command(root, "train", "--workdir", str(root / "run"))
        subprocess.run(made, env=environment(root), check=True, stdout=subprocess.DEVNULL)
        artefacts = artefacts_of(root, saved_like(root / "run" / "checkpoints"))
        done = flips(artefacts, options.flips, options.seed)
    counts = {a.name: dict(Counter(f.outcome for f in done if f.artefact == a.name)) for a in artefacts}
    bad = [one._asdict() for one in done if one.outcome in ("silent", "traceback")]
    harmless = dict(
        Counter(f"{one.artefact}: {one.file.partition('/')[0]}" for one in done if one.outcome == "harmless")
    )
    result = {
        "flips": len(done), "seed": options.seed, "outcomes": dict(Counter(one.outcome for one in done)),
        "by_artefact": counts, "harmless_in": harmless, "silent_or_traceback": bad,
        **circumstances("jax", "orbax-checkpoint", "safetensors", "array-record"),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    write(result, options.out)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
