"""Answers that go to an object store part by part, each an object of its own, and are one object when all are there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gems_jax.object_store import LARGEST, StorePath
from gems_jax.serving.prediction_files import Done, PredictionFiles

_NAMES = ("answers", "left_out")


class StoredPredictions(PredictionFiles):
    """`PredictionFiles` whose files are on a store: an object cannot be appended to, so each part is one.

    Beside ``out`` there are ``.<out>.parts/`` and ``.<out>.state.json``, which says how many parts belong together.
    What an earlier run has left there is brought to a folder on this machine, and joined there at the end. Both go
    when ``out`` is there.

    Args:
      out: the object of answers.
      origin: what they are answers to, and whose; JSON values.
      folder: an empty one on this machine, with room for all answers.

    Raises:
      ValueError: as `PredictionFiles`.
      OSError: the store fails.
    """

    def __init__(self, out: StorePath, origin: Mapping[str, Any], folder: Path):
        quarantine = out.with_name(f"{out.name}.quarantine.jsonl")
        self._addresses = (out, quarantine)
        self._state_address = out.with_name(f".{out.name}.state.json")
        self._parts_address = out.with_name(f".{out.name}.parts")
        self._number = 0
        super().__init__(folder / out.name, origin, (out, self._state_address))
        self.quarantine = quarantine

    def add(self, rows: int, answered: Sequence[str], left_out: Sequence[Mapping[str, Any]]) -> None:
        """As of `PredictionFiles`; the part is on the store then.

        Raises:
          ValueError: there are more answers than one object may hold.
        """
        before = self.done.sizes
        super().add(rows, answered, left_out)
        if max(self.done.sizes) > LARGEST:
            raise ValueError(
                f"--out {self._addresses[0]} would have more than {LARGEST:,} bytes, which a store takes at once: "
                "divide the requests into several files"
            )
        for name, path, start, end in zip(_NAMES, self._parts, before, self.done.sizes, strict=True):
            if end > start:
                with path.open("rb") as file:
                    file.seek(start)
                    self._part(self._number, name).write_bytes(file.read(end - start))
        self._number += 1
        state = json.loads(self._state.read_text(encoding="utf-8"))
        self._state_address.write_text(json.dumps(state | {"parts": self._number}))

    def end(self) -> Done:
        """Makes the answers one object, and what was left out another; then the parts go."""
        done = super().end()
        for here, address in reversed(list(zip(self._targets, self._addresses, strict=True))):
            if here.is_file():
                address.write_bytes(here.read_bytes())
        self._state_address.unlink(missing_ok=True)
        self._parts_address.rmtree()
        return done

    def _read(self) -> Done:
        """What an earlier run has left on the store, as files on this machine, and how far it has come."""
        if not self._state_address.is_file():
            return Done()
        self._state_address.download(self._state)
        done = super()._read()
        self._number = int(json.loads(self._state.read_text(encoding="utf-8")).get("parts", 0))
        there = self._parts_address.names()
        for name, path in zip(_NAMES, self._parts, strict=True):
            with path.open("wb") as file:
                for number in range(self._number):
                    part = self._part(number, name)
                    if part.name in there:
                        file.write(part.read_bytes())
        return done

    def _part(self, number: int, name: str) -> StorePath:
        return self._parts_address / f"{number:08d}.{name}"
