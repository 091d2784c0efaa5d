"""What was found out of texts, kept of those that came lately: many requests have the same words."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """A function of texts, one result each, that is asked for those only that it was not asked for before.

    Args:
      function: the results of some texts, of each what it would be alone; never ``None``.
      most: letters of the texts that are kept; when there are more, all are forgotten.

    Example:
      >>> lengths = Remembered(lambda texts: [print("measured", *texts)] and list(map(len, texts)))
      >>> lengths(["tea", "kettle", "tea"]), lengths(["kettle"])
      measured tea kettle
      ([3, 6, 3], [6])
    """

    def __init__(self, function: Callable[[Sequence[str]], Iterable[Result]], most: int = 1 << 20):
        self._function, self._most = function, most
        self._kept: dict[str, Result] = {}
        self._letters = 0

    def __call__(self, texts: Iterable[str]) -> list[Result]:
        """The results, in the order of the texts."""
        texts = list(texts)
        # Looked up once: another thread may make all forgotten.
        found = {text: self._kept.get(text) for text in texts}
        new = [text for text, result in found.items() if result is None]
        if new:
            made = dict(zip(new, self._function(new), strict=True))
            found |= made
            self._keep(made)
        return [found[text] for text in texts]  # type: ignore[misc]

    def _keep(self, made: dict[str, Result]) -> None:
        letters = sum(map(len, made))
        if self._letters + letters > self._most:
            self._kept, self._letters = {}, 0
        if letters <= self._most:
            self._kept |= made
            self._letters += letters
