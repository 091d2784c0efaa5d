"""A work directory's own files: the configuration it belongs to, and its lines of metrics."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gems_jax.staging import write_text
from gems_jax.training.config import Config
from gems_jax.training.stages import as_plain


def check_config(config: Config, workdir: Path) -> None:
    """Checks that a work directory's configuration, if it has one, agrees in every field that decides the result.

    Raises:
      ValueError: fields differ (named).
    """
    # These decide where things lie, how often they are looked at and how results are shown, not what they are.
    free = {"name", "evaluate", "mesh", "data.dir", "model.path", "null_space.path", "model.from_text", "pretrain"}
    free |= {f"train.{x}" for x in ("log_every", "checkpoint_every", "keep_checkpoints", "max_non_finite")}
    free |= {f"train.{x}" for x in ("hang_after", "profile", "writers", "loss_chunk")}
    if config.train.metric is None:  # otherwise evaluations decide when the run ends, and which step is the best
        free |= {"train.eval_every", "train.eval_rows"}
    path = workdir / "config.yaml"
    if not path.is_file():
        return
    new = flatten(plain(config))
    try:
        # A field that did not exist yet had no effect, as its default has none.
        old = flatten(with_defaults(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError):
        raise ValueError(f"{path} is damaged; choose another --workdir") from None
    differ = [
        name
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name) and not any(name == f or name.startswith(f + ".") for f in free)
    ]
    if differ:
        shown = "; ".join(f"{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in differ[:5])
        raise ValueError(f"{workdir} belongs to another configuration ({shown}); choose another --workdir")


def keep_config(config: Config, workdir: Path) -> None:
    """Writes ``config.yaml``, unless a run of another configuration is there (`check_config`)."""
    check_config(config, workdir)
    write_text(workdir / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))


def plain(config: Config) -> dict[str, Any]:
    """The configuration as JSON values."""
    return json.loads(json.dumps(as_plain(config)))


def with_defaults(kept: Mapping[str, Any]) -> dict[str, Any]:
    """A kept configuration with the defaults of fields that it is older than."""
    default = plain(Config())
    filled = {n: v | kept.get(n, {}) if isinstance(v, dict) else kept.get(n, v) for n, v in default.items()}
    return dict(kept) | filled


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


class Log:
    """``metrics.jsonl``: a line a logged step, written by the first process alone."""

    def __init__(self, workdir: Path, active: bool):
        self._path = workdir / "metrics.jsonl"
        self._active = active

    def __enter__(self) -> "Log":
        if self._active:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def write(self, line: Mapping[str, Any]) -> None:
        if self._active:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def lines(self) -> Iterator[dict[str, Any]]:
        if self._path.is_file():
            for text in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    yield json.loads(text)
                except ValueError:  # cut short by a killed process
                    continue

    def truncate(self, step: int) -> None:
        """Drops lines after a step: they will be written again."""
        if self._active:
            kept = "".join(json.dumps(line) + "\n" for line in self.lines() if line["step"] <= step)
            write_text(self._path, kept)
