"""The items' identifiers of a run: made from their texts by the base model, kept in a folder, found again there."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from gems_jax.checksums import check_written, unique, write_checksums
from gems_jax.config.items import QUANTISERS
from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Dataset
from gems_jax.identifiers.card import card_lines, card_of
from gems_jax.identifiers.code_files import CODES, load, write_codes
from gems_jax.identifiers.codebooks import codebooks_of
from gems_jax.identifiers.codes import Identifiers
from gems_jax.identifiers.measures import level_errors
from gems_jax.identifiers.reassignment import check_enough
from gems_jax.identifiers.residual_kmeans import rkmeans
from gems_jax.identifiers.residual_vae import rqvae
from gems_jax.identifiers.text_embeddings import MOST_TOKENS, text_embeddings
from gems_jax.items.tokens import load_item_identifiers
from gems_jax.null_space.fingerprint import weights_fingerprint
from gems_jax.report.identifiers_page import identifiers_page
from gems_jax.staging import check_writable, whole_folder

CARD, PAGE, EMBEDDINGS = "card.json", "card.html", "embeddings.npy"
# What embeddings are made of, and what else identifiers are, each in words.
_READ = {
    "model": "the base model",
    "tokenizer": "the tokenizer",
    "texts": "the items' texts",
    "tokens": "tokens a text",
}
_SIZES = ("levels", "codebook_size", "capacity_factor")
_MADE = _READ | {name: f"items.{name}" for name in ("identifiers", *_SIZES)}
_AGAIN = "make the identifiers again by gems-jax identify"


def is_made(config: Config) -> bool:
    """Whether a run's identifiers are made, into the folder ``items.path``: neither a token each nor a file's own."""
    return config.items.identifiers in QUANTISERS or config.items.collisions == "reassign"


def check_made(config: Config) -> None:
    """Raises ``ValueError`` where a run's identifiers are not made."""
    if not is_made(config):
        raise ValueError(
            f"items.identifiers is {config.items.identifiers or 'tokens'}: nothing is to be made; set it to "
            f"{' or '.join(QUANTISERS)}"
        )


def is_missing(config: Config) -> bool:
    """Whether a run's identifiers are to be made and are not there."""
    return is_made(config) and not (Path(config.items.path) / CARD).is_file()


def item_tokens_of(config: Config, dataset: Dataset, model: Any | None, tokenizer: Any) -> list[tuple[str, ...]]:
    """The tokens of each item's identifier, in the order of the items; made now where they are missing.

    Args:
      config: of the run; its items have no token each.
      dataset: whose items they are.
      model: the base model, without items; ``None``: nothing is made, and whose states they are is not checked.
      tokenizer: of the model, without items.

    Raises:
      FileNotFoundError: they are missing, and there is no model.
      ValueError: those on file are of other texts, another model or other options; a file's items share identifiers.
    """
    options = config.items
    assert options.identifiers is not None
    if not is_made(config):
        return load_item_identifiers(options.identifiers, dataset.item_ids(), options.collisions == "group")
    folder = Path(options.path)
    if is_missing(config) and model is None:
        raise FileNotFoundError(f"items.path {folder} holds no identifiers yet: make them by gems-jax identify")
    if is_missing(config):
        identify(config, dataset, model, tokenizer)
    else:
        different = _different(_card(folder)["made_of"], _made_of(config, dataset, model, tokenizer))
        if different:
            raise ValueError(
                f"the identifiers in {folder} are of something else: {', '.join(different)} differ; {_AGAIN}, or name "
                "another items.path (a run that was tuned with these needs them)"
            )
        check_written(folder, CODES, _AGAIN)
        print(f"identify: identifiers in {folder}")
    return load_item_identifiers(folder / CODES, dataset.item_ids())


def identify(config: Config, dataset: Dataset, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Makes the items' identifiers and writes them with their card, in the place of those that are there.

    Embeddings are kept beside them: those of the same texts by the same model are not made again.

    Args:
      config: of the run.
      dataset: whose items they are.
      model: the base model, without items.
      tokenizer: of the model, without items.

    Returns:
      The card, see `gems_jax.identifiers.card.card_of`.

    Raises:
      ValueError: items have a token each; the folder holds something else; there are more items than identifiers; a
        file's items are others.
    """
    check_made(config)
    options = config.items
    folder = Path(options.path)
    check_writable(folder, "items.path")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CARD).is_file():
        raise ValueError(f"items.path {folder} holds files but no identifiers ({CARD}): name another folder")
    if options.identifiers in QUANTISERS:
        check_enough(len(dataset.items), options.levels, options.codebook_size, "items")
    made_of = _made_of(config, dataset, model, tokenizer)
    embeddings = _kept_embeddings(folder, made_of, dataset.item_ids())
    if embeddings is None:
        texts = [item.search_text for item in dataset.items]
        embeddings = text_embeddings(model, tokenizer, texts, progress=True)
    ids = _quantised(config, embeddings, dataset.item_ids())
    apart, moved = ids.without_collisions(embeddings)
    nearest = None if options.capacity_factor is None else rkmeans(embeddings, options.levels, options.codebook_size)
    card = card_of(ids, apart, moved, dataset.titles(), made_of, nearest)
    _write(folder, dataset.item_ids(), apart, embeddings, card)
    print("\n".join(card_lines(card)))
    print(f"identify: identifiers in {folder}, shown in {folder / PAGE}")
    return card


def _quantised(config: Config, embeddings: np.ndarray, item_ids: Sequence[str]) -> Identifiers:
    """Identifiers as ``items.identifiers`` says; of a file with the codebooks that fit its codes best."""
    options = config.items
    if options.identifiers == "rkmeans":
        return rkmeans(embeddings, options.levels, options.codebook_size, capacity_factor=options.capacity_factor)
    if options.identifiers == "rqvae":
        return rqvae(embeddings, options.levels, options.codebook_size)
    assert options.identifiers is not None
    ids = load(options.identifiers)
    place = {item_id: number for number, item_id in enumerate(ids.item_ids or ())}
    missing = [item_id for item_id in item_ids if item_id not in place]
    if missing or len(place) > len(item_ids):
        raise ValueError(
            f"{options.identifiers} has identifiers of {len(place):,} items, the catalogue {len(item_ids):,} items"
            + (f", such as {missing[0]!r}, which has none" if missing else "")
        )
    codes = ids.codes[[place[item_id] for item_id in item_ids]]
    books = codebooks_of(codes, embeddings)
    return Identifiers(codes, books, level_names=ids.level_names, errors=level_errors(codes, embeddings, books))


def _made_of(config: Config, dataset: Dataset, model: Any | None, tokenizer: Any) -> dict[str, Any]:
    """What decides the identifiers, whatever order the items are in."""
    options = config.items
    texts = sorted((item.item_id, item.search_text) for item in dataset.items)
    made_of: dict[str, Any] = {
        "tokenizer": _digest(json.dumps(entry) for entry in sorted(tokenizer.get_vocab().items())),
        "texts": _digest(json.dumps(entry) for entry in texts),
        "tokens": MOST_TOKENS,
        "identifiers": options.identifiers,
    }
    if model is not None:
        made_of["model"] = weights_fingerprint(nnx.state(model, nnx.Param))
    if options.identifiers in QUANTISERS:
        return made_of | {name: getattr(options, name) for name in _SIZES}
    assert options.identifiers is not None
    return made_of | {"identifiers": _digest([Path(options.identifiers).read_bytes()])}


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return digest.hexdigest()


def _different(kept: Mapping[str, Any], now: Mapping[str, Any], names: Mapping[str, str] = _MADE) -> list[str]:
    """In words, what is known now and was otherwise."""
    return [what for name, what in names.items() if name in now and kept.get(name) != now[name]]


def _card(folder: Path) -> dict[str, Any]:
    """The card on file."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"), object_pairs_hook=unique)
        if not isinstance(card, dict) or not isinstance(card.get("made_of"), dict):
            raise ValueError("it is no card of identifiers")
    except ValueError as error:
        raise ValueError(f"{folder / CARD} is damaged ({error}); {_AGAIN}") from None
    return card


def _kept_embeddings(folder: Path, made_of: Mapping[str, Any], item_ids: Sequence[str]) -> np.ndarray | None:
    """The embeddings on file, in the order of the items, where they are of these texts and this model."""
    try:
        if not (folder / CARD).is_file() or _different(_card(folder)["made_of"], made_of, _READ):
            return None
        check_written(folder, EMBEDDINGS, _AGAIN)
        item_ids_there = load(folder).item_ids or ()
    except ValueError:  # damaged: they are made again
        return None
    place = {item_id: number for number, item_id in enumerate(item_ids_there)}
    embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
    print(f"identify: embeddings in {folder}")
    order = [place[item_id] for item_id in item_ids]
    return embeddings if order == sorted(order) else embeddings[order]


def _write(
    folder: Path, item_ids: Sequence[str], ids: Identifiers, embeddings: np.ndarray, card: Mapping[str, Any]
) -> None:
    """Writes a folder of identifiers whole, in the place of an earlier one."""
    with whole_folder(folder) as fresh:
        write_codes(fresh, ids, item_ids)
        np.save(fresh / EMBEDDINGS, embeddings)
        (fresh / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (fresh / PAGE).write_text(identifiers_page(card), encoding="utf-8")
        write_checksums(fresh)
