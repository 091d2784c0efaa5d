"""The steps before tuning: data, base model, null space; each made once and found again."""

import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from gems_jax.checksums import NAME, damage
from gems_jax.config.methods import METHODS
from gems_jax.config.run import Config
from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.data.prepare import prepare
from gems_jax.data.text.general_text import read_lines, token_stream
from gems_jax.data.text.plain_text import plain_ids
from gems_jax.items import (
    ItemIndex,
    add_identifier_tokens,
    add_item_tokens,
    grow,
    lower_item_logits,
)
from gems_jax.models import load
from gems_jax.null_space.estimate import estimate_null_space
from gems_jax.null_space.space import NullSpace
from gems_jax.training.distributed.mesh import shard_mesh
from gems_jax.training.identify import item_tokens_of
from gems_jax.training.optimiser.chain import null_space_side
from gems_jax.training.pretrain import pretrain
from gems_jax.training.tokens import encode, prompt_templates

# Label tokens of general text that tell how far items are to be lowered: enough for a fit in as many dimensions.
_TOKENS_A_DIMENSION, _LEAST_TOKENS = 8, 4096


def ensure_data(config: Config) -> Dataset:
    """The prepared dataset, prepared now where it is missing."""
    data = config.data
    return prepare(
        data.name,
        data.dir,
        path=data.path,
        seed=data.seed,
        num_negatives=data.num_negatives,
        num_users=data.num_users,
        max_bad_fraction=data.max_bad_fraction,
        preprocessing=data.preprocessing,
        files=data.files,
        category=data.category,
    )


def ensure_base(config: Config) -> Path:
    """The base model's folder, pretrained now where it is missing.

    Raises:
      FileNotFoundError: no folder, and the configuration does not say to pretrain one.
      ValueError: its files are not what `pretrain` wrote.
    """
    folder = Path(config.model.path)
    if not (folder / "config.json").is_file():
        if not config.model.from_text:
            raise FileNotFoundError(
                f"model.path {folder} holds no model (config.json): name a Hugging Face folder, or set "
                "model.from_text to pretrain a small one from text.train"
            )
        pretrain(config, folder)
    elif (folder / NAME).is_file():  # of a downloaded model, there is none
        wrong = damage(folder, others=True)
        if wrong is not None:
            raise ValueError(
                f"the base model in {folder} is damaged ({wrong}): restore it or, where model.from_text made it, "
                f"remove the folder to pretrain it again; if you changed it on purpose, remove {folder / NAME}"
            )
    return folder


def ensure_null_space(config: Config, model: Any = None, tokenizer: Any = None) -> NullSpace:
    """The base model's null space, made now where it is missing.

    Raises:
      ValueError: the one on file is for other weights or other settings.
    """
    folder = Path(config.null_space.path)
    if model is None:
        model, tokenizer = load(ensure_base(config), config.model.dtype, shard_mesh(config.mesh, jax.devices()))
    params = nnx.state(model, nnx.Param)
    if not (folder / "null_space.json").is_file():
        return calibrate(config, model, tokenizer)
    null_space = NullSpace.load(folder)
    null_space.check_weights(params)
    wanted = {key: float(value) for key, value in _rule(config).items() if value is not None}
    side = null_space_side(config)
    if null_space.rule != wanted or null_space.side != side:
        raise ValueError(
            f"the null space in {folder} was made with {null_space.rule} on side {null_space.side!r}, the "
            f"configuration asks for {wanted} on side {side!r}; calibrate again, or name another null_space.path"
        )
    print(f"calibrate: null space in {folder}")
    return null_space


def _rule(config: Config) -> dict[str, Any]:
    """The options that say how many directions are protected, named as in `gems_jax.null_space.directions.Rule`."""
    options = config.null_space
    least = options.min_share if options.energy is not None else None
    return {
        "energy": options.energy,
        "rank": options.rank,
        "threshold": options.threshold,
        "min_share": least,
        "max_directions": options.max_directions,
        "unit_norm": options.unit_norm or None,
    }


def calibrate(config: Config, model: Any = None, tokenizer: Any = None) -> NullSpace:
    """Makes the null space of the base model, from general text or, for some methods, its weights, and saves it."""
    if model is None:
        model, tokenizer = load(ensure_base(config), config.model.dtype, shard_mesh(config.mesh, jax.devices()))
    if METHODS[config.train.method].null_space == "weights":
        rule = {name: value for name, value in _rule(config).items() if name in ("energy", "rank", "min_share")}
        null_space = NullSpace.from_weights(nnx.state(model, nnx.Param), **rule)
    else:
        null_space = _from_text(config, model, tokenizer)
    null_space.save(config.null_space.path)
    print(null_space.summary())
    print(f"calibrate: null space in {config.null_space.path}")
    return null_space


def _from_text(config: Config, model: Any, tokenizer: Any) -> NullSpace:
    options = config.null_space
    tokens = token_stream(read_lines(config.text.train, "train", config.text.field), tokenizer)
    # Spread over the text; no example twice.
    batches = LAYOUTS[model.layout].text_batches(
        tokens, tokenizer, options.batch_size, config.text.input_length, options.batches
    )
    rule = _rule(config) | {"unit_norm": options.unit_norm}
    return estimate_null_space(
        model, list(batches), side=options.side, memory_limit=options.memory_limit, mesh=_mesh_of(model), **rule
    )


def _mesh_of(model: Any) -> jax.sharding.Mesh | None:
    """The mesh that a model's parameters are spread over: its moments are, too, and the text's rows."""
    places = [leaf.sharding for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    meshes = [place.mesh for place in places if isinstance(place, jax.sharding.NamedSharding)]
    return next((mesh for mesh in meshes if isinstance(mesh, jax.sharding.Mesh) and mesh.size > 1), None)


@dataclass(frozen=True)
class Assets:
    """All that tuning and evaluation stand on.

    Attributes:
      model: base model grown by the items.
      tokenizer: with the item tokens.
      dataset: prepared interactions.
      items: item number -> tokens.
    """

    model: Any
    tokenizer: Any
    dataset: Dataset
    items: ItemIndex

    @property
    def item_tokens(self) -> list[int]:
        """The first token of each item."""
        return [int(token) for token in self.items.token_ids[:, 0]]

    def templates(self, config: Config) -> dict[str, str]:
        """Each task's template as prompts are made of it."""
        return prompt_templates(config, self.tokenizer, self.model.layout)

    def encode(self, config: Config, table: Table) -> EncodedTable:
        """A table's inputs under the configured prompt."""
        return encode(config, table, self.tokenizer, self.items, self.model.layout, self.dataset.titles())


def assemble(config: Config, dataset: Dataset, base: tuple[Any, Any], tuned: bool = False) -> Assets:
    """The base model with tokens and rows for every item: one of its own, or those of its identifier.

    Args:
      config: of the run.
      dataset: whose items they are.
      base: model and tokenizer, which gets the items' tokens.
      tuned: whether the rows are about to be replaced by tuned ones: then no general text is read for them.
    """
    model, tokenizer = base
    prompt_templates(config, tokenizer, model.layout)  # an error before the model grows
    titles = plain_ids(dataset.titles(), tokenizer)
    if config.items.init == "title":
        _check_titles(dataset, titles)
    items = index_items(config, dataset, tokenizer, model.config.vocab_size, model)
    model = grow(model, titles, config.items.init, key=jax.random.key(config.train.seed), identifiers=items)
    assets = Assets(model, tokenizer, dataset, items)
    return assets if tuned else replace(assets, model=untuned_model(config, assets))


def untuned_model(config: Config, assets: Assets) -> Any:
    """The model as the first step finds it.

    Args:
      config: of the run.
      assets: of a ``tuned`` run, whose rows are not lowered yet, see `assemble`.

    Raises:
      FileNotFoundError, ValueError: the general text that items are lowered on is gone, or cannot be read.
    """
    if config.items.added_loss is None:
        return assets.model
    return _lowered(config, assets.model, assets.tokenizer, config.items.added_loss)


def index_items(
    config: Config, dataset: Dataset, tokenizer: Any, vocab_size: int, model: Any | None = None
) -> ItemIndex:
    """The tokens of each item, one of its own or those of its identifier; the tokenizer gets those that it has not.

    Args:
      config: section ``items``.
      dataset: whose items they are.
      tokenizer: of the base model.
      vocab_size: rows of the base model's embedding.
      model: the base model, which makes identifiers that are missing; ``None``: they must be there.
    """
    if config.items.identifiers is None:
        tokens = add_item_tokens(tokenizer, dataset.item_ids(), vocab_size)
        return ItemIndex(np.asarray(tokens, np.int32)[:, None])
    identifiers = item_tokens_of(config, dataset, model, tokenizer)
    return add_identifier_tokens(tokenizer, identifiers, vocab_size, config.items.collisions == "group")


def _lowered(config: Config, model: Any, tokenizer: Any, most: float) -> Any:
    """A grown model whose items take next to nothing on general text; says so."""
    tokens = token_stream(read_lines(config.text.train, "train", config.text.field), tokenizer)
    batches = functools.partial(
        LAYOUTS[model.layout].text_batches, tokens, tokenizer, config.null_space.batch_size, config.text.input_length
    )
    labels = int(next(batches(1))["label_mask"].sum())
    wanted = max(_LEAST_TOKENS, _TOKENS_A_DIMENSION * model.config.d_model)
    lowered = lower_item_logits(model, list(batches(-(-wanted // labels))), most)
    print(
        f"items: by being there they raise the loss on general text by {lowered.after:.2g}, without the offset of "
        f"{lowered.nats:.1f} nats by {lowered.before:.2g}"
        + (f"; no offset reaches the {most:g} of items.added_loss" if lowered.after > most else "")
    )
    return lowered.model


def _check_titles(dataset: Dataset, titles: list[list[int]]) -> None:
    """Raises where the tokenizer finds nothing in a title, so that no row can be made of it."""
    empty = [item for item, title in zip(dataset.items, titles, strict=True) if not title]
    if empty:
        raise ValueError(
            f"the tokenizer finds no token in the title {ascii(empty[0].title)} of item {empty[0].item_id!r}"
            + (f" nor in those of {len(empty) - 1:,} more items" if len(empty) > 1 else "")
            + ": give it a readable title in the catalogue and prepare the data again, or set items.init to random"
        )


def as_plain(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries."""
    return asdict(config)
