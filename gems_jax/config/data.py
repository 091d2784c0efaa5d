"""The fields of ``data`` and ``text``: interactions, and general text."""

from dataclasses import dataclass

from gems_jax.data.preparation.options import Preprocessing
from gems_jax.data.raw.options import TableFiles


@dataclass(frozen=True)
class DataConfig:
    """The interactions.

    Attributes:
      name: the source: ``marketplace`` (generated), ``table`` (your own logs), ``amazon``, ``amazon_scientific``,
        ``qilin``, ``released`` (the authors' six tables), ``kuaisar``, ``minionerec``, ``collisiongenrec``,
        ``amazon_splits``, or one that was registered; see docs/data.md.
      path: folder of the raw files, for sources that read files.
      dir: folder of the prepared dataset; it is made where it is missing.
      seed: seed of the negatives and of the generated marketplace.
      num_negatives: candidates beside the target in each row of valid and test.
      num_users: users of the generated marketplace.
      max_bad_fraction: preparation stops if a larger share of the rows is bad.
      preprocessing: which users and items stay, how histories and splits are made.
      files: names and columns of a ``table``'s files.
      category: category of an ``amazon``, ``amazon_splits``, ``minionerec`` or ``collisiongenrec`` dataset.
      tokens: folder for encoded training tables: the first run encodes them, later runs map the files into memory; see
        `gems_jax.data.batching.token_cache.encode_once`. ``null``: every run encodes its tables in memory.
      prefetch: training batches that are made ahead; 0: each is made when it is needed.
      threads: threads that make training batches.
    """

    name: str = "marketplace"
    path: str | None = None
    dir: str = "runs/demo/data"
    seed: int = 0
    num_negatives: int = 99
    num_users: int = 800
    max_bad_fraction: float = 0.01
    preprocessing: Preprocessing = Preprocessing()
    files: TableFiles | None = None
    category: str | None = None
    tokens: str | None = None
    prefetch: int = 4
    threads: int = 1


@dataclass(frozen=True)
class TextConfig:
    """General text, which stands for the knowledge to be kept.

    Attributes:
      train: text that the null space, and a pretrained base, are made from: ``pydoc`` (Python's own documentation), or
        a file, a folder of files or a pattern of plain text in UTF-8 (``.txt``), JSON lines or arrays, parquet or CSV;
        text may be compressed.
      heldout: text that forgetting is measured on, named in the same ways.
      field: field of JSON, parquet and CSV rows that holds the text.
      input_length: tokens of an input.
      eval_batches: number of batches that forgetting is measured on, spread over the text.
      eval_batch_size: inputs in each of these batches.
    """

    train: str = "pydoc"
    heldout: str = "pydoc"
    field: str = "text"
    input_length: int = 96
    eval_batches: int = 16
    eval_batch_size: int = 32
