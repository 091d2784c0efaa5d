"""The tokenizer beside a model in a Hugging Face folder."""

from pathlib import Path
from typing import Any

# What a tokenizer of its own class is built from, where there is no tokenizer.json.
_SOURCES = (("spiece.model",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
# More rows without a token than the largest models have mean that tokenizer and model do not belong together.
_MAX_UNUSED_ROWS = 511
# What tables are usually padded to a multiple of, if at all.
_USUAL_PADDING = 64
# Of all of a tokenizer's files; published ones have up to 140 bytes a token in one file.
_MAX_BYTES, _MAX_BYTES_A_TOKEN = 1 << 26, 1 << 11
_FILES = ("*.json", "*.model", "*.txt", "*.jinja")


def max_unused_rows(rows: int) -> int:
    """How many rows of a table of ``rows`` may be without a token, as tables are padded to round sizes.

    A multiple of 64 may have 511 (Qwen 2.5: 399 of 152,064), others fewer than the power of two that divides them.

    Example:
      >>> max_unused_rows(32128), max_unused_rows(40), max_unused_rows(41)
      (511, 7, 0)
    """
    padding = rows & -rows
    return _MAX_UNUSED_ROWS if padding >= _USUAL_PADDING else padding - 1


def load_tokenizer(folder: Path, vocab_size: int = 1 << 20) -> Any:
    """Loads the tokenizer of a folder.

    Args:
      folder: with its files.
      vocab_size: tokens that it may have; what its files may hold grows with them.

    Raises:
      FileNotFoundError: if its files are missing.
      ValueError: if they are damaged, or far too large for the vocabulary.
    """
    from transformers import PreTrainedTokenizerFast

    most = _MAX_BYTES + _MAX_BYTES_A_TOKEN * vocab_size
    for path in (path for pattern in _FILES for path in folder.glob(pattern)):
        if path.stat().st_size > most:
            raise ValueError(
                f"{path} has {path.stat().st_size:,} bytes: a tokenizer of {vocab_size:,} tokens is read up to {most:,}"
            )
    try:
        # The file is the whole tokenizer; the class that model_type stands for would rebuild it as a unigram one.
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if any(all((folder / name).is_file() for name in names) for names in _SOURCES):
            from transformers import AutoTokenizer  # imports torch where it is installed, which takes seconds

            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ValueError(f"{folder}: the tokenizer's files cannot be read: {error}") from error
    raise FileNotFoundError(f"{folder / 'tokenizer.json'} does not exist: the folder needs the model's tokenizer")


def check_tokenizer(tokenizer: Any, config: Any, folder: Path) -> None:
    """Raises ValueError if a tokenizer cannot be that of a model."""
    rows = config.vocab_size + config.num_added_tokens
    spare = 0 if config.num_added_tokens else max_unused_rows(rows)
    if not 0 <= rows - len(tokenizer) <= spare:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows"
            + (f" ({config.num_added_tokens} of them items)" if config.num_added_tokens else "")
            + ": they do not belong together"
        )
