"""From a raw source to a prepared dataset on disk, once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gems_jax.data.dataset import remote, storage
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.data.preparation import shards
from gems_jax.data.preparation.assemble import get_ready
from gems_jax.data.preparation.empty_tables import check_tables
from gems_jax.data.preparation.few_candidates import few_candidates
from gems_jax.data.preparation.leaks import check_leaks
from gems_jax.data.preparation.negatives import NUM_NEGATIVES
from gems_jax.data.preparation.options import PrepareOptions, Preprocessing, options_of
from gems_jax.data.preparation.other_dataset import OtherDataset, differences
from gems_jax.data.preparation.read_cache import ReadCache
from gems_jax.data.preparation.resume import unfinished_folder
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.quarantine import Quarantine, Unusable, write_rows
from gems_jax.data.raw.raw_files import local_name
from gems_jax.data.raw.raw_sums import summed, with_sums
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.sources.registry import entry_of, names
from gems_jax.data.sources.synthetic import marketplace
from gems_jax.staging import is_remote


def prepare(
    name: str,
    out_dir: str | Path,
    *,
    path: str | Path | None = None,
    seed: int = 0,
    num_negatives: int = NUM_NEGATIVES,
    num_users: int = marketplace.NUM_USERS,
    max_bad_fraction: float = 0.05,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    files: TableFiles | Mapping[str, Any] | None = None,
    category: str | None = None,
    progress: Callable[[str], None] | None = print,
    steps: Preprocessing | Mapping[str, Any] | None = None,
) -> Dataset:
    """The prepared dataset in ``out_dir``: read if it is finished and made with the same settings, else made.

    Args:
      name: of a source, see `gems_jax.data.sources.registry`: ``marketplace`` (made from the seed), or from files under
        ``path``: ``amazon_scientific``, ``amazon`` (any category's reviews and metadata), ``qilin``, ``released`` (the
        authors' six pickled tables), ``kuaisar``, ``minionerec``,
        ``collisiongenrec`` and ``amazon_splits`` (their published splits), ``table`` (anyone's rows).
      out_dir: folder of the prepared dataset; on an object store (``gs://...``) a copy on this machine is worked with,
        see `gems_jax.data.dataset.remote`.
      path: folder of the raw files, on this machine (``file://`` is).
      seed: of negatives and of the marketplace.
      num_negatives: per row of valid and test.
      num_users: of the marketplace.
      max_bad_fraction: largest share of raw rows of a kind that may be left out.
      preprocessing: what is done to rows, for sources that do not make their own splits.
      files: where a table's files are and what their columns are called, for ``table``; for ``released`` its catalogue.
      category: for ``amazon``, ``amazon_splits``, ``minionerec`` and ``collisiongenrec``, if the folder has several.
      progress: takes each line a person should see; None for silence.
      steps: the old name of ``preprocessing``.

    Raises:
      ValueError: the source is unknown, settings do not fit it, raw data cannot be used, or the tables leak.
      FileNotFoundError: a raw file is missing.
    """
    say = progress or (lambda line: None)
    if steps is not None:
        if preprocessing is not None:
            raise ValueError("steps is the old name of preprocessing; give one of them")
        say("data: prepare's steps are called preprocessing now; the old name is read, too")
        preprocessing = steps
    entry = entry_of(name)
    options = PrepareOptions(
        name=name,
        path=None if path is None else local_name(str(path)),
        seed=seed,
        num_negatives=num_negatives,
        num_users=num_users,
        max_bad_fraction=max_bad_fraction,
        preprocessing=options_of(Preprocessing, preprocessing, "preprocessing"),
        files=options_of(TableFiles, entry.files if files is None else files, "files"),
        category=category,
    )
    _check_effects(options, entry)
    if is_remote(out_dir):
        return _prepare_elsewhere(str(out_dir), options, entry, say)
    return _prepare_here(out_dir, options, entry, say)


def _prepare_here(
    out_dir: str | Path, options: PrepareOptions, entry: SourceEntry, say: Callable[[str], None]
) -> Dataset:
    """`prepare` of a folder on this machine."""
    path, settings = options.path, _settings(options, entry)
    if storage.is_complete(out_dir):
        if path is not None and not Path(path).exists():
            made_with = storage.settings_of(out_dir)
            # Raw files may go once they are prepared.
            settings["raw"] = made_with.get("raw") if isinstance(made_with, dict) else {}
        _check_same(out_dir, settings)
        if storage.is_current(out_dir):
            dataset = storage.load(out_dir)
            say(f"data: {out_dir} is prepared already ({_size(dataset)})")
            if not storage.is_made_alike(out_dir):
                say(
                    f"data: an earlier version prepared {out_dir}; this one may draw other negatives and read other "
                    "ids as one: it is used as it is; for results that compare with new ones name another data.dir"
                )
            return dataset
        say(f"data: {out_dir} is of an earlier format; making it again")
    begin = time.perf_counter()
    storage.check_target(out_dir)
    say(f"data: reading {options.name}" + (f" from {path}" if path is not None else ""))
    left_out = Path(out_dir).with_name(f"{Path(out_dir).name}.quarantine.jsonl")
    try:
        make = _prepare_in_shards if entry.takes_preprocessing else _prepare_at_once
        dataset = make(Path(out_dir), options, entry, settings, say)
    except Unusable as error:
        if not error.rows:
            raise
        write_rows(error.rows, left_out)
        raise ValueError(f"{error}\nAll {len(error.rows):,} rows left out, with reasons, are in {left_out}") from None
    left_out.unlink(missing_ok=True)  # of an attempt before
    say(f"data: done in {time.perf_counter() - begin:.1f} s")
    return dataset


def _check_same(out_dir: str | Path, settings: Mapping[str, Any]) -> None:
    """Raises where the dataset that is there is another one: runs may stand on it."""
    made = storage.settings_of(out_dir)
    raw = {"raw": with_sums(made, settings)} if "raw" in settings else {}
    differing = differences(made, {**settings, **raw})
    if differing:
        raise OtherDataset(out_dir, differing)


def _prepare_at_once(
    out_dir: Path, options: PrepareOptions, entry: SourceEntry, settings: dict[str, Any], say: Callable[[str], None]
) -> Dataset:
    """Small sources, which need no shards."""
    assert entry.load is not None
    dataset = entry.load(options)
    _say_quarantined(dataset.card, say)
    dataset.card["settings"] = summed(settings)
    _add_candidates(dataset.card, dataset.tasks, options.num_negatives, len(dataset.items), say)
    check_tables(dataset.name, dataset.row_counts())
    dataset.card["item_sets"] = check_leaks(dataset)
    say(f"data: writing {_size(dataset)} to {out_dir}")
    storage.save(dataset, out_dir)
    return dataset


def _prepare_elsewhere(url: str, options: PrepareOptions, entry: SourceEntry, say: Callable[[str], None]) -> Dataset:
    """`prepare` of a folder on an object store: a copy on this machine is read or made, and sent there if it is new."""
    local = remote.local_path(url)
    remote.bring(url, local, say)
    try:
        dataset = _prepare_here(local, options, entry, say)
    except OtherDataset as error:
        raise OtherDataset(url, error.differences) from None  # the copy would come back from there
    remote.send(local, url, say)
    return dataset


def _prepare_in_shards(
    out_dir: Path, options: PrepareOptions, entry: SourceEntry, settings: dict[str, Any], say: Callable[[str], None]
) -> Dataset:
    """Reads raw files one by one and finishes users in shards; what an interrupted preparation did stays done."""
    assert entry.read is not None
    # Shards of other sizes do not fit together.
    versions = {"format_version": storage.FORMAT_VERSION, "content_version": storage.CONTENT_VERSION}
    decisive = settings | versions | {"rows_a_part": shards.ROWS}
    quarantine = Quarantine(options.max_bad_fraction, with_files=entry.files is not None)
    with unfinished_folder(out_dir, decisive, say) as folder, _telling_first(quarantine, say):
        if storage.is_complete(out_dir) and storage.is_current(out_dir):
            _check_same(out_dir, settings)
            return storage.load(out_dir)  # another process was first
        preprocessing = options.preprocessing.with_defaults(**entry.defaults)
        source = entry.read(options, quarantine, ReadCache(folder / "read", say))
        if source.as_published:
            preprocessing = dataclasses.replace(preprocessing, repeats=True, cold_items=True)
        ready = get_ready(source, preprocessing, quarantine, options.seed, options.num_negatives)
        del source
        card = ready.card
        for step in card["steps"]:
            say("data: " + _step(step))
        cold_items = preprocessing.cold_items or card["splits"] != "as given"
        done = shards.finish_shards(ready, folder / "shards", preprocessing.repeats, cold_items, say)
        card["steps"].append(done.step())
        say("data: " + _step(card["steps"][-1]))
        counts = done.counts()
        check_tables(ready.name, counts, ready, quarantine)
        card["item_sets"] = done.sets.card(ready.name, ready.items)
        card |= {"users": done.users, "rows": counts, "settings": summed(settings)} | quarantine.card()
        _say_quarantined(card, say)
        _add_candidates(card, ready.tasks, ready.negatives.count, len(ready.items), say)
        empty = {key: Table.from_rows(key[1], []) for key in done.rows}
        dataset = Dataset(ready.name, ready.items, empty, card, quarantine.rows)
        say(f"data: writing {_size(dataset)} to {out_dir}")
        storage.save_shards(dataset, done.folders, out_dir)
    del ready, dataset
    return storage.load(out_dir)


@contextmanager
def _telling_first(quarantine: Quarantine, say: Callable[[str], None]) -> Iterator[None]:
    """Says before an error what was left out, guessed or odd: it may be the cause."""
    try:
        yield
    except ValueError:
        _say_quarantined(quarantine.card(), say)
        raise


def _add_candidates(
    card: dict[str, Any], tasks: Sequence[str], negatives: int, items: int, say: Callable[[str], None]
) -> None:
    """Says, here and in the card, where rows have so few candidates that metrics mean little."""
    candidates = 1 + negatives if negatives else items
    card["few_candidates"] = few_candidates({task: {"candidates": candidates} for task in tasks})
    for line in card["few_candidates"]:
        say(f"data: {line}")


def _say_quarantined(card: Mapping[str, Any], say: Callable[[str], None]) -> None:
    for reason, count in card["quarantined"].items():
        say(f"data: left out {count:,} ({reason})")
    for kind, count in card.get("copies", {}).items():
        say(f"data: left out {count:,} exact copies of {kind}s")
    for remark in card.get("remarks", []):
        say(f"data: {remark}")


def _check_effects(options: PrepareOptions, entry: SourceEntry) -> None:
    """Raises where an option is given that has no effect on the source."""
    for option, given, takes in (
        ("preprocessing", options.preprocessing != Preprocessing(), lambda entry: entry.takes_preprocessing),
        ("files", options.files != (entry.files or TableFiles()), lambda entry: entry.files is not None),
        ("category", options.category is not None, lambda entry: "category" in entry.takes),
    ):
        if given and not takes(entry):
            sources = ", ".join(name for name in names() if takes(entry_of(name)))
            raise ValueError(f"data.{option} has no effect on {options.name}, only on {sources}; leave it out")
    if entry.raw_files is None:
        if options.path is not None:
            raise ValueError(
                f"the {options.name} is made from a seed and reads no files, but data.path is {options.path!r}"
            )
    elif options.path is None:
        raise ValueError(f"{options.name} needs data.path, the folder of its raw files")
    elif is_remote(options.path):
        raise ValueError(
            f"data.path {options.path} is not on this machine; raw files are read here: copy them, name the copy"
        )


def _settings(options: PrepareOptions, entry: SourceEntry) -> dict[str, Any]:
    """The settings that decide the content, as the card keeps them; those of another source do not count."""
    settings: dict[str, Any] = {name: getattr(options, name) for name in ("name", "seed", "num_negatives")}
    if entry.raw_files is not None:
        settings |= {"path": str(options.folder.resolve()), "max_bad_fraction": options.max_bad_fraction}
    if entry.takes_preprocessing:
        settings["preprocessing"] = dataclasses.asdict(options.preprocessing)
    if entry.files is not None:
        settings["files"] = dataclasses.asdict(options.files)
    settings |= {name: getattr(options, name) for name in entry.takes}
    if entry.raw_files is not None:
        raw = sorted(entry.raw_files(options)) if options.folder.is_dir() else []
        settings["raw"] = {_name_under(options.folder, file): _size_and_change(file) for file in raw}
    return json.loads(json.dumps(settings))


def _name_under(folder: Path, file: Path) -> str:
    return str(file.relative_to(folder) if file.is_relative_to(folder) else file)


def _size_and_change(file: Path) -> list[int]:
    """Edited raw files are prepared again."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _step(step: dict[str, Any]) -> str:
    rows = ", ".join(f"{task} {count:,}" for task, count in step["rows"].items()) or "none"
    more = "".join(
        f", {name} {count:,}" for name, count in step.items() if name not in ("step", "rows", "users", "items")
    )
    return f"{step['step']}: rows {rows}; {step['users']:,} users, {step['items']:,} target items{more}"


def _size(dataset: Dataset) -> str:
    counts = dataset.card["rows"]
    rows = ", ".join(f"{split} " + " / ".join(f"{n:,}" for n in tasks.values()) for split, tasks in counts.items())
    return f"{len(dataset.items):,} items; rows {' / '.join(dataset.tasks)}: {rows}"
