"""Notes of what happens to kernels in a run of a program."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Notes:
    """Which kernels are used as plain arrays, and what their products keep for the backward pass.

    Attributes:
      refused: why, by path.
      kept: bytes, by path.
      repeat: how often the present part of the program runs.
    """

    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: dict[str, int] = dataclasses.field(default_factory=dict)
    repeat: int = 1

    def refuse(self, path: str, why: str) -> None:
        self.refused.setdefault(path, why)

    def keep(self, path: str, size: int) -> None:
        self.kept[path] = self.kept.get(path, 0) + self.repeat * size

    def repeated(self, times: int) -> "Notes":
        """The same notes, in a part that runs so many times."""
        return dataclasses.replace(self, repeat=self.repeat * times)
