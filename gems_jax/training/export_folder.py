"""Where an export may be written: one that is new, empty, or an earlier export of the same run and nothing else."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from gems_jax.staging import check_writable

MARK = "export.json"
# What an export consists of.
_OWN = re.compile(
    r"README\.md|prompts\.json|items\.jsonl|trie\.npz|(export|config|generation_config|identifiers)\.json|"
    r"model(-\d+-of-\d+)?\.safetensors|"
    r"model\.safetensors\.index\.json|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|"
    r"(tokenizer|spiece)\.model|merges\.txt|vocab\.txt|chat_template\.jinja"
)


def mark_of(workdir: Path) -> str:
    """The text of the file that tells whose export a folder is."""
    return json.dumps({"run": os.path.realpath(workdir)}) + "\n"


def check_folder(
    folder: str | os.PathLike[str],
    workdir: Path,
    base: str | os.PathLike[str],
    others: Mapping[str, str | os.PathLike[str]] | None = None,
) -> None:
    """Checks that an export can be written, and that nothing else than an earlier one of this run would be replaced.

    Args:
      folder: to write.
      workdir: of the run.
      base: the base model's folder, made or not.
      others: name to folder of what else a run reads whole: nothing may be put into it.

    Raises:
      ValueError: it is or lies in the base model's folder, another of these or the run's checkpoints; it is a file, or
        holds anything else.
      OSError: nothing can be written there.

    Example:
      >>> import tempfile
      >>> parent = Path(tempfile.mkdtemp())
      >>> check_folder(parent / "new", parent / "run", parent / "base")
      >>> check_folder(parent / "base" / ".", parent / "run", parent / "base")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ...
      ValueError: --out ...base is the folder of the base model (model.path): give another folder
    """
    target = Path(folder)
    if os.path.realpath(target) == os.path.realpath(base):
        raise ValueError(f"--out {folder} is the folder of the base model (model.path): give another folder")
    inputs = {"the base model (model.path)": base, "the run's checkpoints": workdir / "checkpoints", **(others or {})}
    for what, each in inputs.items():
        if Path(os.path.realpath(each)) in Path(os.path.realpath(target)).parents:
            raise ValueError(f"--out {folder} lies in the folder of {what}, {each}: give another folder")
    if target.exists() and not target.is_dir():
        raise ValueError(f"--out {folder} is a file: give the path of a folder")
    check_writable(folder, "--out")
    if not target.is_dir() or not any(target.iterdir()):
        return
    mark = target / MARK
    if not mark.is_file() or mark.read_bytes() != mark_of(workdir).encode():
        raise ValueError(
            f"--out {folder} holds files and is no export of {workdir}: they would be replaced; give another folder, "
            "or remove it first"
        )
    foreign = sorted(path.name for path in target.iterdir() if path.is_dir() or not _OWN.fullmatch(path.name))
    if foreign:
        raise ValueError(
            f"--out {folder} holds what no export wrote, beside an export ({', '.join(foreign[:3])}): it would be "
            "lost; move it elsewhere, or give another folder"
        )
