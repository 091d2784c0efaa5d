"""A small subword tokenizer trained from plain text, in T5's shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def sentinel(number: int) -> str:
    """Spelling of a sentinel, the token that stands for a removed span."""
    return f"<extra_id_{number}>"


def train_tokenizer(lines: Iterable[str], vocab_size: int, num_sentinels: int = 100) -> PreTrainedTokenizerFast:
    """Byte-pair encoding in T5's conventions: pad 0, end 1, unknown 2, the sentinels last.

    ``<extra_id_0>`` has the highest id of all, ``<extra_id_1>`` the one before.
    The same lines give the same tokenizer. ``save_pretrained(folder)`` writes it as a Hugging Face folder.

    Args:
      lines: of plain text.
      vocab_size: of the whole vocabulary, sentinels included; smaller where the text has fewer pieces.
      num_sentinels: spans an input can have removed.

    Raises:
      ValueError: the vocabulary is too small for the sentinels and the characters, or there is no text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError("there is no text to train a tokenizer on")
    if vocab_size < num_sentinels + 300:
        raise ValueError(
            f"vocab_size {vocab_size} leaves fewer than 300 pieces beside {num_sentinels} sentinels; raise it"
        )
    backend = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - num_sentinels,
        special_tokens=[PAD, END, UNKNOWN],
        limit_alphabet=200,
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer, length=len(lines))
    backend.add_special_tokens([sentinel(number) for number in reversed(range(num_sentinels))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.model_max_length = int(1e9)
    return tokenizer


def sentinel_ids(tokenizer: Any) -> list[int]:
    """Ids of ``<extra_id_0>``, ``<extra_id_1>``, ... as far as the tokenizer has them; none is an error."""
    vocabulary = tokenizer.get_vocab()
    ids: list[int] = []
    while sentinel(len(ids)) in vocabulary:
        ids.append(int(vocabulary[sentinel(len(ids))]))
    if not ids:
        raise ValueError(f"the tokenizer has no sentinel tokens ({sentinel(0)}, ...), which span corruption needs")
    return ids
