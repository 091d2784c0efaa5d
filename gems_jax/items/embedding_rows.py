"""Rows for added tokens: a model's tables grown, the pretrained rows as they are."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from gems_jax.items.tokens import ItemIndex

# Title tokens whose rows are gathered at once.
_TITLE_TOKENS = 16384
# How far titles' means are spread around their mean in the output layer: without it ranking learns slowly (search
# hit@10 .52 after 300 steps of the demo, with it .71).
_SPREAD = 3.0


def grow(
    model: Any,
    title_token_ids: Sequence[Sequence[int]] | None,
    init: Literal["title", "random"] = "title",
    key: jax.Array | None = None,
    identifiers: "ItemIndex | None" = None,
) -> Any:
    """A model with a row for each added token behind the pretrained ones, which stay as they are.

    ``"title"``: the mean of the title's token rows, in the embedding and in the output layer each of its own
    table; a token that is part of the identifiers of several items gets the mean over their titles' means.
    ``"random"``: normal. Means of rows are much shorter than rows. Where the rows are inputs alone, the means are
    rescaled to the mean norm of the pretrained rows. In the output layer they are spread around their own mean, ``3
    (m_i - m) + m``: that tells items apart, and with the norm of the pretrained rows items would win the softmax on
    general text (see `gems_jax.items.lower_item_logits` for the rest). Random rows have the pretrained ones' mean norm
    in both. On a mesh the new tables are split by row like the pretrained ones, where that divides them.

    Args:
      model: a `T5` or `Decoder` without items.
      title_token_ids: for each of the N items its title's token ids, all of the pretrained vocabulary; may be
        ``None`` where ``init`` is ``"random"`` and there are ``identifiers``.
      init: where the new rows start from.
      key: PRNG key, for ``"random"`` only.
      identifiers: the tokens of each of the N items, those added one after the other from ``vocab_size`` on (see
        `gems_jax.items.tokens.add_identifier_tokens`); ``None``: one token an item, in order.

    Returns:
      A new model with ``item_embedding`` and, if the output layer is a table of its own, ``item_head``.

    Raises:
      ValueError: if the model has items already, there are none, a title is empty or holds an unknown token id, the
        key is missing, or the identifiers do not belong to the model or the titles.

    Example:
      >>> import jax
      >>> from gems_jax.models import T5, T5Config
      >>> config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> model = grow(T5.create(config, jax.random.key(0)), [[5, 6], [7]])
      >>> model.item_embedding.embedding.shape
      (2, 8)
    """
    from gems_jax.models.family import ITEM_TABLES, output_table
    from gems_jax.models.params import params_of

    config = model.config
    if config.num_added_tokens:
        raise ValueError(f"the model already has {config.num_added_tokens} items: grow the model without items")
    if init not in ("title", "random"):
        raise ValueError(f"init must be 'title' or 'random', got {init!r}")
    if init == "random" and key is None:
        raise ValueError("init='random' needs a key, such as jax.random.key(0)")
    if title_token_ids is None and (init == "title" or identifiers is None):
        raise ValueError("title_token_ids is None: only init='random' with identifiers can do without titles")
    if title_token_ids is not None and not title_token_ids:
        raise ValueError("title_token_ids is empty: give the title's tokens of each item")
    if identifiers is None:
        assert title_token_ids is not None
        carriers = np.arange(len(title_token_ids))[:, None]
    else:
        carriers = _added_tokens(identifiers, config.vocab_size, title_token_ids)
    params = params_of(model)
    added = int(carriers.max()) + 1
    for number, (pretrained, new) in enumerate(ITEM_TABLES.items()):
        if pretrained not in params:
            continue
        table = params[pretrained]
        if init == "title":
            assert title_token_ids is not None
            rows = _carried_means(_title_means(table, title_token_ids), carriers, added)
        else:
            assert key is not None
            rows = np.asarray(jax.random.normal(jax.random.fold_in(key, number), (added, table.shape[1])))
        is_output = new == output_table(config)
        if init == "title" and is_output:
            rows = rows.mean(0) + _SPREAD * (rows - rows.mean(0))
        else:
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows * (_mean_norm(table) / np.maximum(norms, 1e-12))
        params[new] = _placed_like(rows.astype(table.dtype), table)
    return type(model).from_params(dataclasses.replace(config, num_added_tokens=added), params)


def _added_tokens(
    identifiers: "ItemIndex", vocab_size: int, title_token_ids: Sequence[Sequence[int]] | None
) -> np.ndarray:
    """Each item's added tokens as row numbers of the new table int ``[N, L]``; -1 for all else."""
    carriers = np.where(identifiers.token_ids >= vocab_size, identifiers.token_ids - vocab_size, -1)
    if title_token_ids is not None and len(title_token_ids) != len(carriers):
        raise ValueError(f"title_token_ids has {len(title_token_ids)} titles, identifiers {len(carriers)} items")
    used = np.unique(carriers[carriers >= 0])
    if not np.array_equal(used, np.arange(len(used))) or not used.size:
        raise ValueError(
            f"the identifiers' added tokens must be all from {vocab_size} (the model's vocab_size) on, they are "
            f"{(used[:5] + vocab_size).tolist()}...: add them to the tokenizer with vocab_size={vocab_size}"
        )
    return carriers


def _title_means(table: jax.Array, titles: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean of each title's rows of a table, float32 ``[N, d]``, the rows gathered where the table is."""
    lengths = np.array([len(title) for title in titles])
    if not lengths.all():
        raise ValueError(
            f"title_token_ids, item {int(np.argmin(lengths))}: the title is empty; give it a text, or use init='random'"
        )
    flat = np.concatenate([np.asarray(title, np.int64) for title in titles])
    if flat.min() < 0 or flat.max() >= len(table):
        raise ValueError(
            f"title_token_ids reaches from {flat.min()} to {flat.max()}: the pretrained vocabulary is 0 to "
            f"{len(table) - 1}"
        )
    width = int(lengths.max())
    padded = np.full((len(titles), width), -1, np.int32)
    padded[np.arange(width) < lengths[:, None]] = flat
    size = min(len(titles), max(1, _TITLE_TOKENS // width))
    parts = [padded[start : start + size] for start in range(0, len(padded), size)]
    # All parts of one shape, so that there is one program for all.
    parts[-1] = np.pad(parts[-1], ((0, size - len(parts[-1])), (0, 0)), constant_values=-1)
    sums = np.concatenate([np.asarray(_row_sums(table, part)) for part in parts])[: len(titles)]
    return sums / lengths[:, None]


@jax.jit
def _row_sums(table: jax.Array, ids: jax.Array) -> jax.Array:
    rows = jnp.take(table, jnp.maximum(ids, 0), axis=0).astype(jnp.float32)
    return jnp.where((ids >= 0)[..., None], rows, 0).sum(1)


def _carried_means(means: np.ndarray, carriers: np.ndarray, added: int) -> np.ndarray:
    """For each added token the mean over the items that carry it, however often they do."""
    items, tokens = np.nonzero(carriers >= 0)[0], carriers[carriers >= 0]
    items, tokens = np.unique(np.stack([items, tokens]), axis=1)
    sums = np.zeros((added, means.shape[1]), np.float32)
    np.add.at(sums, tokens, means[items])
    return sums / np.bincount(tokens, minlength=added)[:, None]


@jax.jit
def _mean_norm(table: jax.Array) -> jax.Array:
    return jnp.linalg.norm(table.astype(jnp.float32), axis=1).mean()


def _placed_like(rows: np.ndarray, table: jax.Array) -> jax.Array:
    """``rows`` on the table's devices, split like it where that divides them."""
    from jax.sharding import NamedSharding, PartitionSpec

    sharding = table.sharding
    if not isinstance(sharding, NamedSharding):
        return jnp.asarray(rows)
    spec = tuple(sharding.spec) + (None,) * (2 - len(sharding.spec))
    axes = spec[0] if isinstance(spec[0], tuple) else () if spec[0] is None else (spec[0],)
    parts = int(np.prod([sharding.mesh.shape[axis] for axis in axes]))
    spec = spec if len(rows) % parts == 0 else (None, spec[1])
    return jax.device_put(rows, NamedSharding(sharding.mesh, PartitionSpec(*spec)))
