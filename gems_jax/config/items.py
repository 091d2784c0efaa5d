"""The fields of ``items``: identifiers, and prompts that name items."""

from dataclasses import dataclass, field
from typing import Literal

# Ways to make identifiers of several tokens.
QUANTISERS = ("rkmeans", "rqvae")


@dataclass(frozen=True)
class ItemsConfig:
    """Item tokens and prompts.

    Attributes:
      init: how item rows start: as the mean of the ``title`` tokens' rows, or ``random``.
      added_loss: nats a token by which the items may raise the loss on general text by being there, before tuning:
        their rows in the output layer get the smallest common offset for it, see
        `gems_jax.items.lower_item_logits`; ``null``: no offset.
      identifiers: ``tokens`` or ``null``: each item has a token of its own; ``rkmeans`` or ``rqvae``: several that
        items share, made of their texts by the base model, see `gems_jax.identifiers`; or a JSON file of such, see
        `gems_jax.items.load_item_identifiers`.
      collisions: ``reassign``: items of a file that share all tokens get others; ``group``: they are ranked alike;
        ``null``: such a file is refused. No two items share identifiers that are made here.
      levels: tokens of an identifier that is made here.
      codebook_size: tokens of each level.
      capacity_factor: with ``rkmeans``: no token is that of more items than this multiple of an even share, before
        items are told apart; ``null``: of as many as are nearest.
      path: folder of the identifiers that are made, with embeddings, codebooks and a card; it is made where it is
        missing.
      prompts: each task's template, with ``{history}`` (items' tokens), ``{history_titles}`` or both and,
        for searches, ``{query}``.
      template: ``plain``, or ``chat``: a prompt is what the user says in a chat, as the model's tokenizer words it.
      max_length: most tokens of an input; the oldest items are dropped from longer ones.
      length_buckets: shorter lengths that batches may be padded to; each costs one compilation.
      length_window: number of training steps whose rows are sorted by length together, so that short rows share a
        batch; with ``length_buckets`` this saves padding. 1: rows stay as they are shuffled.
    """

    init: Literal["title", "random"] = "title"
    added_loss: float | None = 1e-4
    identifiers: str | None = None
    collisions: Literal["reassign", "group"] | None = None
    levels: int = 3
    codebook_size: int = 256
    capacity_factor: float | None = None
    path: str = "runs/demo/identifiers"
    prompts: dict[str, str] = field(
        default_factory=lambda: {
            "rec": "history: {history} next:",
            "src": "search: {query} history: {history} found:",
        }
    )
    template: Literal["plain", "chat"] = "plain"
    max_length: int = 40
    length_buckets: tuple[int, ...] = ()
    length_window: int = 1

    def __post_init__(self) -> None:
        if self.identifiers == "tokens":  # the word for no file
            object.__setattr__(self, "identifiers", None)
