"""Items as tokens: one new token an item, the model's tables grown by a row for each."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from gems_jax.models.t5 import T5

# Embedding tables are padded to a multiple of a power of two; more rows without a token than this mean that
# tokenizer and model do not belong together.
MAX_UNUSED_ROWS = 255


@dataclasses.dataclass(frozen=True, eq=False)
class ItemIndex:
    """Which tokens stand for which item.

    Args:
      token_ids: int ``[N, L]``, row ``i`` the tokens of item ``i``, shorter ones padded with -1 at the end.

    Raises:
      ValueError: if the shape or type is wrong, a token id is negative, an item is empty or occurs twice.

    Example:
      >>> import numpy as np
      >>> ItemIndex(np.array([[100], [101]])).num_items
      2
    """

    token_ids: np.ndarray

    def __post_init__(self) -> None:
        ids = np.asarray(self.token_ids)
        if ids.ndim != 2 or 0 in ids.shape or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"token_ids has shape {ids.shape} and dtype {ids.dtype}: expected integers [N, L], a row for each item"
            )
        if ids.max() > np.iinfo(np.int32).max:
            raise ValueError(f"token_ids has a token id {ids.max()}, above what int32 holds")
        ids = ids.astype(np.int32)
        wrong = (ids < -1).any(1) | (ids[:, 0] < 0) | ((ids[:, :-1] < 0) & (ids[:, 1:] >= 0)).any(1)
        if wrong.any():
            item = int(np.argmax(wrong))
            raise ValueError(f"token_ids, item {item}: {ids[item].tolist()} must be token ids, then only -1 as padding")
        order = np.lexsort(ids.T[::-1])
        twice = (ids[order][1:] == ids[order][:-1]).all(1)
        if twice.any():
            place = int(np.argmax(twice))
            first, second = sorted(order[place : place + 2].tolist())
            raise ValueError(f"token_ids: items {first} and {second} have the same tokens {ids[first].tolist()}")
        ids.flags.writeable = False
        object.__setattr__(self, "token_ids", ids)

    @property
    def num_items(self) -> int:
        """Number of items, N."""
        return len(self.token_ids)


def item_token(item_id: str) -> str:
    """The token that stands for an item.

    Example:
      >>> item_token("B00004")
      '<item_B00004>'
    """
    return f"<item_{item_id}>"


def add_item_tokens(tokenizer: Any, item_ids: Sequence[str], vocab_size: int | None = None) -> list[int]:
    """Adds one token for each item to a tokenizer, in place.

    The tokens take the spaces around them along, so that between the tokens of a history of items no other
    token stands.

    Args:
      tokenizer: a Hugging Face tokenizer.
      item_ids: the N items' identifiers.
      vocab_size: rows of the model's embedding, where the items' ids shall begin; ``None``: the tokenizer's size.
        Rows that the model has beyond the tokenizer (tables are padded to round sizes) get tokens
        ``<unused_...>``, up to 255.

    Returns:
      The N token ids, one after the other from ``vocab_size`` on.

    Raises:
      ValueError: if there are no items, one occurs twice or is in the tokenizer already, or the tokenizer does not
        belong to a model of ``vocab_size``.
    """
    from transformers import AddedToken

    tokens = [item_token(item_id) for item_id in item_ids]
    if not tokens:
        raise ValueError("item_ids is empty: give the identifiers of the items to add")
    vocabulary = tokenizer.get_vocab()
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise ValueError(f"item_ids holds the item of {token} twice; each may be added once")
        if token in vocabulary:
            raise ValueError(
                f"the tokenizer already has {token} (id {vocabulary[token]}): start from the tokenizer without items"
            )
        seen.add(token)
    size = len(tokenizer)
    start = size if vocab_size is None else vocab_size
    if not 0 <= start - size <= MAX_UNUSED_ROWS:
        raise ValueError(
            f"the tokenizer has {size} tokens, the model's vocabulary {start}: they do not belong together; load both "
            "from one folder"
        )
    unused = [f"<unused_{number}>" for number in range(size, start)]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in unused])
    tokenizer.add_tokens([AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in tokens])
    ids = tokenizer.convert_tokens_to_ids(tokens)
    if list(ids) != list(range(start, start + len(tokens))):
        raise ValueError(
            f"the tokenizer gave the items ids from {min(ids)} to {max(ids)}, expected {start} to "
            f"{start + len(tokens) - 1}: its ids have gaps; renumber its added tokens"
        )
    return list(ids)


def grow(
    model: "T5",
    title_token_ids: Sequence[Sequence[int]],
    init: Literal["title", "random"] = "title",
    key: jax.Array | None = None,
) -> "T5":
    """A model with a row for each item behind the pretrained ones, which stay as they are.

    ``"title"``: the mean of the title's token rows, in the embedding and in the output layer each of its own
    table; ``"random"``: normal. Either is rescaled to the mean norm of the pretrained rows, since the mean of rows
    is much shorter than they are.

    Args:
      model: a `T5` without items.
      title_token_ids: for each of the N items its title's token ids, all of the pretrained vocabulary.
      init: where the new rows start from.
      key: PRNG key, for ``"random"`` only.

    Returns:
      A new model with ``item_embedding`` and, if the output layer is a table of its own, ``item_head``.

    Raises:
      ValueError: if the model has items already, there are none, a title is empty or holds an unknown token id, or
        the key is missing.

    Example:
      >>> import jax
      >>> from gems_jax.models import T5, T5Config
      >>> config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_decoder_layers=1,
      ...                   num_heads=2)
      >>> model = grow(T5.create(config, jax.random.key(0)), [[5, 6], [7]])
      >>> model.item_embedding.embedding.shape
      (2, 8)
    """
    from flax import nnx

    from gems_jax.leaf_path import leaf_path
    from gems_jax.models.t5 import T5

    config = model.config
    if config.num_added_tokens:
        raise ValueError(f"the model already has {config.num_added_tokens} items: grow the model without items")
    if not title_token_ids:
        raise ValueError("title_token_ids is empty: give the title's tokens of each item")
    if init not in ("title", "random"):
        raise ValueError(f"init must be 'title' or 'random', got {init!r}")
    if init == "random" and key is None:
        raise ValueError("init='random' needs a key, such as jax.random.key(0)")
    params = {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))}
    tables = {"token_embedding/embedding": "item_embedding/embedding"}
    if not config.tie_word_embeddings:
        tables["lm_head/embedding"] = "item_head/embedding"
    for number, (pretrained, added) in enumerate(tables.items()):
        table = np.asarray(params[pretrained].astype(jnp.float32))
        if init == "title":
            rows = _title_means(table, title_token_ids)
        else:
            assert key is not None
            shape = (len(title_token_ids), config.d_model)
            rows = np.asarray(jax.random.normal(jax.random.fold_in(key, number), shape))
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        target = np.linalg.norm(table, axis=1).mean()
        params[added] = jnp.asarray(rows * (target / np.maximum(norms, 1e-12)), config.param_dtype)
    return T5.from_params(dataclasses.replace(config, num_added_tokens=len(title_token_ids)), params)


def _title_means(table: np.ndarray, titles: Sequence[Sequence[int]]) -> np.ndarray:
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
    sums = np.add.reduceat(table[flat], np.concatenate([[0], np.cumsum(lengths)[:-1]]), axis=0)
    return sums / lengths[:, None]
