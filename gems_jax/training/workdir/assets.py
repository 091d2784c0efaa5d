"""The record of a run's assets beside its checkpoints: catalogue, identifiers, prompts, tokenizer, base model."""

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gems_jax.checksums import NAME as SUMS
from gems_jax.checksums import sums_of
from gems_jax.config.run import Config
from gems_jax.data.batching.prompts import parse_template
from gems_jax.data.batching.wording import spaces_matter
from gems_jax.data.dataset.remote import local_path
from gems_jax.data.dataset.tables import Dataset, Item, Table
from gems_jax.first_few import first_few
from gems_jax.null_space.space import NullSpace
from gems_jax.staging import is_remote
from gems_jax.training.stages import Assets
from gems_jax.training.workdir.sealed import read_sealed, write_sealed

NAME = "assets.json"
FORMAT_VERSION = 2
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
_MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
_TEXTS = 65_536


@dataclasses.dataclass(frozen=True)
class AssetRecord:
    """Digests of all that a checkpoint means nothing without.

    Attributes:
      items: item id to a digest of its title and text, in the order of the run's item numbers.
      identifiers: item id to its tokens, where items share tokens; else empty.
      prompts: task to its template.
      vocabulary: of the tokenizer, the items' tokens among it.
      files: of the base model's folder, tokenizer included: name to SHA-256.
      rows: task to a digest of its training rows.
      null_space: of what updates were kept in; ``None`` without one.
      spaces: whether prompts have tokens for spaces behind items and at their ends; in format version 1 none had.
    """

    items: dict[str, str]
    identifiers: dict[str, str]
    prompts: dict[str, str]
    vocabulary: str
    files: dict[str, str]
    rows: dict[str, str]
    null_space: str | None
    spaces: bool

    def shared(self) -> dict[str, Any]:
        """The values that all processes of a run must agree on; the first alone reads the base model's files."""
        whole = dataclasses.asdict(self) | {"files": None}
        lists = {name: _digest([json.dumps(list(whole[name].items()))]) for name in ("items", "identifiers")}
        names = {"items": "the catalogue", "identifiers": "the items' identifiers", "vocabulary": "the tokenizer"}
        names |= {"rows": "the training rows", "null_space": "the null space", "prompts": "the prompts"}
        return {names[name]: value for name, value in (whole | lists).items() if name in names}


def record_of(
    config: Config, assets: Assets, null_space: NullSpace | None = None, training: bool = True
) -> AssetRecord:
    """The record of the assets that a run would be tuned on now.

    The files of the base model are read by the first process, about a second a gigabyte.

    Args:
      config: of the run.
      assets: of the run.
      null_space: that updates are kept in, or ``None``.
      training: whether the run is to go on; a tuned one needs no digest of its training rows.
    """
    dataset, tokens, templates = assets.dataset, assets.items.token_ids, assets.templates(config)
    identifiers = {}
    if config.items.identifiers is not None:
        identifiers = {
            item.item_id: "".join(assets.tokenizer.convert_ids_to_tokens(row[row >= 0].tolist()))
            for item, row in zip(dataset.items, tokens, strict=True)
        }
    return AssetRecord(
        items=_catalogue(dataset),
        identifiers=identifiers,
        prompts=templates,
        vocabulary=_digest([json.dumps(sorted(assets.tokenizer.get_vocab().items()))]),
        files=_base_files(Path(config.model.path)) if jax.process_index() == 0 else {},
        rows={task: _rows(dataset.table("train", task)) for task in dataset.tasks} if training else {},
        null_space=None if null_space is None else _null_space(null_space),
        spaces=any(
            spaces_matter(parse_template(template), assets.tokenizer, int(tokens[0, 0]))
            for template in templates.values()
        ),
    )


def read_record(workdir: Path) -> AssetRecord | None:
    """The record of a run's assets; ``None`` where an older version tuned it, or nothing did.

    Raises:
      ValueError: the file is damaged.
    """
    path = workdir / NAME
    if not path.is_file():
        return None
    try:
        assets = read_sealed(path, "assets")
        version = assets.pop("format_version")
        if version == 1:
            assets["spaces"] = False
        elif version != FORMAT_VERSION:
            raise ValueError(f"it is of format version {version}, this version reads {FORMAT_VERSION}")
        return AssetRecord(**assets)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it; without it, by removing it, the run is not compared any more "
            "with what it was tuned on"
        ) from None


def write_record(record: AssetRecord, workdir: Path) -> None:
    """Keeps what a run is tuned on in its work directory."""
    write_sealed(workdir / NAME, "assets", {"format_version": FORMAT_VERSION, **dataclasses.asdict(record)})


def check_record(record: AssetRecord, workdir: Path, training: bool = False) -> None:
    """Checks that a run in a work directory was tuned on these; warns where an older version kept no record.

    Args:
      record: of what there is now.
      workdir: of the run; one without checkpoints or record is fine.
      training: whether the run is to go on: then its rows and null space must be the same, too.

    Raises:
      ValueError: something differs (named).
    """
    kept = read_record(workdir)
    if kept is None:
        if any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
            warnings.warn(
                f"{workdir} has no {NAME}, since an older version tuned it: whether catalogue, tokenizer and base "
                f"model are those of then is not checked{'; those of now are noted' if training else ''}",
                stacklevel=3,
            )
        return
    _refuse(_differences(kept, record, training), workdir)


def in_run_order(dataset: Dataset, workdir: Path, folder: str | None = None) -> Dataset:
    """A dataset with the item numbers that a run was tuned with, whatever order its catalogue is in now.

    Args:
      dataset: as it is now.
      workdir: of the run, which may not have begun.
      folder: of the dataset.

    Raises:
      ValueError: the catalogue has other items, or others of their titles or texts; it is in another order, and nothing
        says that the rows belong to it.
    """
    kept = read_record(workdir)
    if kept is None:
        return dataset
    now = _catalogue(dataset)
    _refuse(_catalogue_differences(kept.items, now), workdir)
    if list(kept.items) == list(now):
        return dataset
    if folder is not None and not ((local_path(folder) if is_remote(folder) else Path(folder)) / SUMS).is_file():
        # Rows hold item numbers: those of a catalogue that was sorted by hand are another's.
        raise ValueError(
            f"the catalogue in {folder} is in another order than when {workdir} was tuned, and without {SUMS} "
            "nothing says whether its rows still belong to it: remove the folder to have it prepared again"
        )
    print(f"data: the catalogue is in another order than when {workdir} was tuned; items keep the run's numbers")
    return dataset.in_order(list(kept.items))


def _refuse(differences: Sequence[str], workdir: Path) -> None:
    if differences:
        raise ValueError(
            f"{workdir} was tuned on something else: {'; '.join(differences)}; bring back what it was tuned on, or "
            "choose another --workdir"
        )


def _differences(kept: AssetRecord, now: AssetRecord, training: bool) -> list[str]:
    """All that differs, in words."""
    differences = _catalogue_differences(kept.items, now.items)
    if not differences and list(kept.items) != list(now.items):
        differences.append("the catalogue is in another order")
    other = [item for item in kept.identifiers if now.identifiers.get(item, "") != kept.identifiers[item]]
    if bool(kept.identifiers) != bool(now.identifiers):
        differences.append("items have tokens of their own, or shared ones, unlike then")
    elif other:
        differences.append(_have(other, "another identifier"))
    prompts = [task for task in kept.prompts | now.prompts if kept.prompts.get(task) != now.prompts.get(task)]
    differences += [f"the prompt of task {task!r} was {kept.prompts.get(task)!r}" for task in prompts]
    if kept.spaces != now.spaces and not prompts:
        differences.append(
            "an older version tuned it on prompts without the spaces behind items and at a prompt's ends"
        )
    if kept.files and now.files:
        changed = [name for name in sorted(kept.files | now.files) if kept.files.get(name) != now.files.get(name)]
        for what, is_of in (("base model", False), ("tokenizer", True)):
            names = [name for name in changed if (name in _TOKENIZER_FILES) == is_of]
            if names:
                differences.append(f"the {what} is another ({first_few(names, 3)})")
    if not differences and kept.vocabulary != now.vocabulary:
        differences.append("the tokenizer has another vocabulary")
    if training:
        tasks = [task for task in kept.rows | now.rows if kept.rows.get(task) != now.rows.get(task)]
        differences += [f"the training rows of task {task!r} are others" for task in tasks]
        if kept.null_space != now.null_space:
            differences.append("the null space is another")
    return differences


def _catalogue_differences(kept: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    more = [item for item in now if item not in kept]
    fewer = [item for item in kept if item not in now]
    other = [item for item in kept if item in now and kept[item] != now[item]]
    differences = [
        f"the catalogue has {len(items):,} {'items' if len(items) > 1 else 'item'} {word} {_such_as(items)}"
        for items, word in ((more, "more"), (fewer, "fewer"))
        if items
    ]
    return differences + ([_have(other, "another title or text")] if other else [])


def _have(items: Sequence[str], what: str) -> str:
    """``3 items have another title (such as 'B01')``."""
    subject = f"{len(items):,} items have" if len(items) > 1 else "1 item has"
    return f"{subject} {what} {_such_as(items)}"


def _such_as(items: Sequence[str]) -> str:
    return f"({'such as ' if len(items) > 1 else ''}{items[0]!r})"


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return digest.hexdigest()


def item_digest(item: Item) -> str:
    """What `AssetRecord.items` keeps of an item's title and text."""
    return _digest([json.dumps([item.title, item.text])])[:16]


def _catalogue(dataset: Dataset) -> dict[str, str]:
    return {item.item_id: item_digest(item) for item in dataset.items}


def _rows(table: Table) -> str:
    arrays = (np.ascontiguousarray(array).tobytes() for array in (table.history, table.offsets, table.target))
    texts = (
        json.dumps(column[first : first + _TEXTS])
        for column in (table.user_ids, table.queries)
        for first in range(0, len(table), _TEXTS)
    )
    return f"{len(table)} rows, {_digest([*arrays, *texts])}"


def _null_space(null_space: NullSpace) -> str:
    arrays = (
        part
        for name, factor in null_space.factors.items()
        for part in (f"{name} {factor.complement}", np.ascontiguousarray(factor.basis).tobytes())
    )
    return _digest([null_space.side, json.dumps(sorted(null_space.inputs.items())), *arrays])


def _base_files(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    names = {name for name in _TOKENIZER_FILES if (folder / name).is_file()}
    names |= {path.name for pattern in _MODEL_FILES for path in folder.glob(pattern)}
    stats = {name: (folder / name).stat() for name in sorted(names)}
    return dict(_sums(folder, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items())))


@functools.lru_cache(maxsize=8)
def _sums(folder: Path, files: tuple[tuple[str, int, int], ...]) -> Mapping[str, str]:
    """Sums of files of these sizes and times of change, kept: a study asks again for every row."""
    return sums_of(folder, [name for name, *_ in files])
