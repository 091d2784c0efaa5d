"""A work directory's own files: the configuration it belongs to, and its lines of metrics."""

import hashlib
import json
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gems_jax.config.own_rates import with_rates
from gems_jax.config.paths import absolute, is_path, same_files
from gems_jax.config.renamed import current_values
from gems_jax.config.run import Config
from gems_jax.first_few import first_few
from gems_jax.staging import is_remote, write_text
from gems_jax.training.distributed.cluster import check_agreement
from gems_jax.training.stages import as_plain

# Between writings of a file that can only be written whole.
FLUSH_SECONDS = 60.0


# The last line of ``config.yaml``: SHA-256 of what is above it.
_SUM = "# sha256 of the lines above: "
# Of a machine, not of the run: where things lie, and how many threads read them.
_LOCAL = {"data.dir", "data.path", "data.tokens", "data.prefetch", "data.threads", "model.path", "null_space.path"}
_LOCAL |= {"text.train", "text.heldout", "items.identifiers", "items.path"}


def check_processes(config: Config, workdir: Path) -> None:
    """Checks that all processes of a run were started with one configuration and work directory; all must call it.

    Raises:
      ValueError: in every process, if they were not (fields named).
    """
    fields = {name: value for name, value in flatten(as_json(config)).items() if name not in _LOCAL}
    check_agreement(fields | {"--workdir": str(workdir if is_remote(workdir) else workdir.resolve())})


def check_config(config: Config, workdir: Path) -> None:
    """Checks that a work directory's configuration, if it has one, agrees in every field that decides the result.

    Raises:
      ValueError: fields differ (named).
    """
    # These decide where things lie, how often they are looked at and how results are shown, not what they are.
    free = {"name", "evaluate", "mesh", "data.dir", "model.path", "null_space.path", "model.from_text", "pretrain"}
    free |= {"items.path"}
    free |= {f"train.{x}" for x in ("log_every", "checkpoint_every", "keep_checkpoints", "max_non_finite")}
    free |= {f"train.{x}" for x in ("hang_after", "profile", "writers", "loss_chunk")}
    free |= {f"data.{x}" for x in ("tokens", "prefetch", "threads")}
    if config.train.metric is None:  # otherwise evaluations decide when the run ends, and which step is the best
        free |= {"train.eval_every", "train.eval_rows"}
    path = workdir / "config.yaml"
    if not path.is_file():
        return
    new = flatten(absolute(as_json(config)))
    # A field that did not exist yet had no effect, as its default has none. Paths were relative once.
    old = flatten(absolute(with_defaults(read_kept_config(path))))
    differ = [
        name
        for name in sorted(set(old) | set(new))
        if not (same_files if is_path(name) else operator.eq)(old.get(name), new.get(name))
        and not any(name == f or name.startswith(f + ".") for f in free)
    ]
    if differ:
        shown = shown_differences(old, new, differ)
        raise ValueError(f"{workdir} belongs to another configuration ({shown}); choose another --workdir")


def shown_differences(there: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> str:
    """Both values of the first few of these fields, for a message."""
    return first_few((f"{n}: {there.get(n)!r} there, {now.get(n)!r} now" for n in names), between="; ")


def keep_config(config: Config, workdir: Path) -> None:
    """Writes ``config.yaml``, its paths absolute, unless a run of another configuration is there (`check_config`)."""
    check_config(config, workdir)
    text = yaml.safe_dump(absolute(as_json(config)), sort_keys=False)
    write_text(workdir / "config.yaml", f"{text}{_SUM}{_sum(text)}\n")


def read_kept_config(path: Path) -> dict[str, Any]:
    """A kept ``config.yaml``; those of older versions have no checksum.

    Raises:
      ValueError: it is damaged, or somebody changed it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        if _SUM[:8] in text and lines[-1:] != [f"{_SUM}{_sum(''.join(lines[:-1]))}\n"]:
            raise ValueError("it was changed: its last line has the checksum of something else")
        values = current_values(yaml.safe_load(text))
        with_defaults(values)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        why = f" ({error})" if type(error) is ValueError else ""
        raise ValueError(
            f"{path} is damaged{why}: restore it, or remove it and train with the run's own --config again, or choose "
            "another --workdir"
        ) from None
    return values


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(config: Config) -> dict[str, Any]:
    """The configuration as JSON values, with numbers where it leaves learning rates to the method."""
    return json.loads(json.dumps(as_plain(with_rates(config))))


def with_defaults(kept: Mapping[str, Any]) -> dict[str, Any]:
    """A kept configuration with the defaults of fields that it is older than."""
    default = as_json(Config())
    filled = {n: v | kept.get(n, {}) if isinstance(v, dict) else kept.get(n, v) for n, v in default.items()}
    return dict(kept) | filled


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


class Log:
    """``metrics.jsonl``: a line a logged step, written by the first process alone.

    Objects on a store cannot be appended to: there the file is written anew with every checkpoint (`flush`), at the
    end, and in between every minute.

    Args:
      workdir: of the run.
      active: whether this process writes.
    """

    def __init__(self, workdir: Path, active: bool):
        self._path = workdir / "metrics.jsonl"
        self._active = active
        self._remote = is_remote(workdir)
        self._text, self._written, self._changed = "", time.monotonic(), False

    def __enter__(self) -> "Log":
        if self._active:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._remote and self._path.is_file():
                self._text = self._path.read_text()
        return self

    def __exit__(self, *exc: object) -> None:
        self.flush()

    def write(self, line: Mapping[str, Any]) -> None:
        if not self._active:
            return
        text = json.dumps(line) + "\n"
        if not self._remote:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
            return
        self._text, self._changed = self._text + text, True
        if time.monotonic() - self._written > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Nothing that was written before is lost after it."""
        if self._changed:
            write_text(self._path, self._text)
            self._written, self._changed = time.monotonic(), False

    def lines(self) -> Iterator[dict[str, Any]]:
        text = self._text if self._remote and self._active else None
        if text is None:
            text = self._path.read_text(encoding="utf-8") if self._path.is_file() else ""
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # cut short by a killed process
                continue

    def truncate(self, step: int) -> None:
        """Drops lines after a step: they will be written again."""
        if self._active:
            self._text = "".join(json.dumps(line) + "\n" for line in self.lines() if line["step"] <= step)
            write_text(self._path, self._text)
