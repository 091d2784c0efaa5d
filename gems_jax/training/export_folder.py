"""Where an export may be written: one that is new, empty, or an earlier export of the same run and nothing else."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from gems_jax.first_few import first_few
from gems_jax.object_store import StorePath
from gems_jax.staging import as_path, check_writable, is_remote

MARK = "export.json"
# What an export consists of.
_OWN = re.compile(
    r"README\.md|prompts\.json|items\.jsonl|trie\.npz|(export|config|generation_config|identifiers)\.json|"
    r"model(-\d+-of-\d+)?\.safetensors|"
    r"model\.safetensors\.index\.json|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|"
    r"(tokenizer|spiece)\.model|merges\.txt|vocab\.txt|chat_template\.jinja"
)


def mark_of(workdir: str | os.PathLike[str] | StorePath) -> str:
    """The text of the file that tells whose export a folder is."""
    return json.dumps({"run": _place(workdir)}) + "\n"


@contextlib.contextmanager
def exported(folder: str | os.PathLike[str] | StorePath) -> Iterator[Path]:
    """The folder to write an export into; of one on an object store a temporary one, which is then copied there.

    There the mark goes first and comes last: an export without it is not whole.
    """
    if not is_remote(folder):
        yield Path(str(folder))
        return
    store = StorePath(str(folder))
    with tempfile.TemporaryDirectory(prefix="export-") as temporary:
        local = Path(temporary) / "model"
        yield local
        there, names = store.names(), sorted(path.name for path in local.iterdir())
        (store / MARK).unlink(missing_ok=True)
        store.remove([name for name in there if name not in names])
        store.upload_all(local, [name for name in names if name != MARK])
        store.upload_all(local, [name for name in names if name == MARK])


def check_folder(
    folder: str | os.PathLike[str] | StorePath,
    workdir: str | os.PathLike[str] | StorePath,
    base: str | os.PathLike[str],
    others: Mapping[str, str | os.PathLike[str]] | None = None,
) -> None:
    """Checks that an export can be written, and that nothing else than an earlier one of this run would be replaced.

    Args:
      folder: to write, here or on an object store.
      workdir: of the run, here or on an object store.
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
    target = as_path(str(folder))
    if _place(target) == _place(base):
        raise ValueError(f"--out {folder} is the folder of the base model (model.path): give another folder")
    inputs = {"the base model (model.path)": base, "the run's checkpoints": f"{workdir}/checkpoints", **(others or {})}
    for what, each in inputs.items():
        if _place(target).startswith(_place(each) + "/"):
            raise ValueError(f"--out {folder} lies in the folder of {what}, {each}: give another folder")
    if target.is_file() or (target.exists() and not target.is_dir()):
        raise ValueError(f"--out {folder} is a file: give the path of a folder")
    check_writable(target, "--out", stores=True)
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
            f"--out {folder} holds what no export wrote, beside an export ({first_few(foreign, 3)}): it would be "
            "lost; move it elsewhere, or give another folder"
        )


def _place(folder: str | os.PathLike[str] | StorePath) -> str:
    """What names a folder alone, whatever links lead to it."""
    return str(StorePath(str(folder))) if is_remote(folder) else os.path.realpath(str(folder))
