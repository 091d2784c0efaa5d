"""A tuned model as a folder that transformers asks as the run does: its tokenizer, prompts and items."""

import copy
import io
import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gems_jax.config.run import Config
from gems_jax.data.batching.layouts import LAYOUTS, beginning_of
from gems_jax.data.batching.prompts import encode_table, parse_template
from gems_jax.data.batching.wording import joined_titles, prompt_text
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.items.tokens import ItemIndex
from gems_jax.models import save
from gems_jax.models.family import Layout
from gems_jax.models.hf.generation import NAME, generation_for_items, read_generation
from gems_jax.models.params import with_dtype
from gems_jax.object_store import StorePath
from gems_jax.ranking.trie import as_csr, build_trie
from gems_jax.training.export_folder import MARK, check_folder, exported, mark_of
from gems_jax.training.export_readme import readme
from gems_jax.training.stages import Assets
from gems_jax.training.tokens import prompt_templates

# Prompts of each task that are tokenised twice, to tell whether both ways agree.
_TRIED = 500


class Agreement(NamedTuple):
    """How many prompts transformers tokenises as the run did.

    Args:
      alike, tried: prompts.
      other: one that differs, if there is any.
    """

    alike: int
    tried: int
    other: str


def export(
    config: Config,
    assets: Assets,
    model: Any,
    folder: str | os.PathLike[str] | StorePath,
    workdir: str | os.PathLike[str] | StorePath | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    edited: str = "",
) -> Agreement:
    """Writes a tuned model, its tokenizer and how to ask it.

    ``tokenizer(prompt)`` in transformers gives what the model was trained on, the end token included. ``README.md``
    has a program that ranks as the run does, ``prompts.json`` the templates, ``items.jsonl`` the items' tokens;
    ``identifiers.json`` has them once more, as identifiers are published, where items share tokens, and ``trie.npz``
    for decoders that follow a trie.
    Special tokens and ``generation_config.json`` are the base model's.

    Args:
      config: of the run.
      assets: of the run.
      model: tuned.
      folder: where to write, here or on an object store, see `gems_jax.models.save`.
      workdir: of the run, here or on an object store; the folder is marked as its export, and only such a one is
        replaced.
      dtype: of the weights that are written; ``None``: as they are.
      edited: how the catalogue was edited since training, in a few words.

    Returns:
      How many of the dataset's prompts are tokenised by the folder as in training.

    Raises:
      ValueError: as `gems_jax.models.save`; the folder holds something else than an export of this run.
    """
    if workdir is not None:
        check_folder(folder, workdir, config.model.path)
    other = None if dtype == model.config.param_dtype else dtype
    if other is not None:
        model = with_dtype(model, other)
    tokenizer = asking_tokenizer(assets.tokenizer, model.config, model.layout)
    agreement = compare_prompts(config, assets.dataset, assets.items, tokenizer, model.layout)
    templates, tried = assets.templates(config), agreement.tried
    answer_length = assets.items.token_ids.shape[1] + 1
    generation = generation_for_items(read_generation(Path(config.model.path)), model.config, answer_length)
    files: dict[str, str | bytes] = {
        "README.md": readme(config, templates, model.layout, tried - agreement.alike, tried, other, edited),
        "prompts.json": json.dumps(
            _prompts(config, templates, model.config, model.layout), indent=2, ensure_ascii=False
        )
        + "\n",
        "items.jsonl": "".join(_item_lines(assets.dataset, assets.items, tokenizer)),
        "trie.npz": _trie(assets.items),
        NAME: json.dumps(generation, indent=2, ensure_ascii=False) + "\n",
    }
    if config.items.identifiers is not None:
        files["identifiers.json"] = _identifiers(assets.dataset, assets.items, tokenizer)
    if workdir is not None:
        files[MARK] = mark_of(workdir)
    with exported(folder) as target:
        save(model, tokenizer, target, files=files)
    return agreement


def asking_tokenizer(tokenizer: Any, config: Any, layout: Layout) -> Any:
    """A copy of a tokenizer that puts around a prompt what training did, and pads as the layout needs it.

    Args:
      tokenizer: a Hugging Face tokenizer, with the items.
      config: of the model; its padding token is used where the tokenizer has none.
      layout: of the model; an encoder's input ends with the end token; a decoder's prompt only begins with what the
        tokenizer puts before every text, and is padded on the left, since its answer goes on behind it.

    Raises:
      ValueError: the tokenizer cannot be changed so.
    """
    from tokenizers import processors

    asking = copy.deepcopy(tokenizer)
    if asking.pad_token is None:
        asking.pad_token = asking.convert_ids_to_tokens(config.pad_token_id)
    asking.padding_side = LAYOUTS[layout].padding_side
    asking.init_kwargs["padding_side"] = asking.padding_side  # only what is named there is saved
    first, last = LAYOUTS[layout].around(tokenizer)
    if _around(asking) == (first, last):
        return asking
    backend = getattr(asking, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"a {type(tokenizer).__name__} cannot be told what to put around a text: load the tokenizer from a "
            "tokenizer.json"
        )
    names = {token: str(asking.convert_ids_to_tokens(token)) for token in (*first, *last)}

    def around(text: str) -> str:
        return " ".join([*(names[token] for token in first), text, *(names[token] for token in last)])

    backend.post_processor = processors.TemplateProcessing(
        single=around("$A"), pair=around("$A $B"), special_tokens=[(name, token) for token, name in names.items()]
    )
    if _around(asking) != (first, last):
        raise ValueError(f"a {type(tokenizer).__name__} does not put around a text what it is told to")
    return asking


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens before and behind every text."""
    first = beginning_of(tokenizer)
    plain, whole = (list(tokenizer("a", add_special_tokens=each)["input_ids"]) for each in (False, True))
    return first, whole[len(first) + len(plain) :]


def compare_prompts(
    config: Config, dataset: Dataset, items: ItemIndex, tokenizer: Any, layout: Layout, rows: int = _TRIED
) -> Agreement:
    """Tokenises the first prompts of each task's last split as text, and compares with what the run made of them.

    Rows whose history or query was cut to ``items.max_length`` have no text, and are left out.

    Args:
      config: of the run.
      dataset: of the run.
      items: of the run.
      tokenizer: of the exported folder.
      layout: of the model.
      rows: of each task.
    """
    alike, tried, other = 0, 0, ""
    answer = items.token_ids.shape[1] + 1 if LAYOUTS[layout].answer_follows else 0
    for task, template in prompt_templates(config, tokenizer, layout).items():
        split = next((split for split in ("test", "valid", "train") if (split, task) in dataset.tables), None)
        if split is None:
            continue
        table = dataset.tables[split, task]
        table = table.take(range(min(rows, len(table))))
        encoded = encode_table(
            table, tokenizer, items, template, config.items.max_length, layout, titles=dataset.titles()
        )
        for row in range(len(table)):
            text = _text(table, row, template, items, tokenizer, dataset)
            ids = list(tokenizer(text)["input_ids"])
            if len(ids) + answer <= config.items.max_length:
                same = ids == encoded.tokens_of(row).tolist()
                alike, tried, other = alike + same, tried + 1, other or ("" if same else text)
    return Agreement(alike, tried, other)


def _text(table: Table, row: int, template: str, items: ItemIndex, tokenizer: Any, dataset: Dataset) -> str:
    history = table.history_of(row).tolist()
    tokens = ["".join(tokenizer.convert_ids_to_tokens(ids[ids >= 0].tolist())) for ids in items.token_ids[history]]
    titles = joined_titles(dataset.items[item].title for item in history)
    return prompt_text(parse_template(template), " ".join(tokens), table.queries[row], titles)


def _prompts(config: Config, templates: dict[str, str], model_config: Any, layout: Layout) -> dict[str, Any]:
    return {
        "family": layout,
        "templates": templates,
        "max_length": config.items.max_length,
        "vocabulary": config.train.loss_vocabulary,
        "first_item_token_id": model_config.vocab_size,
        "end_token_id": model_config.eos_token_id,
    }


def _identifiers(dataset: Dataset, items: ItemIndex, tokenizer: Any) -> str:
    """The file that `gems_jax.identifiers.load` and ``items.identifiers`` read."""
    tokens = {
        item.item_id: tokenizer.convert_ids_to_tokens(ids[ids >= 0].tolist())
        for item, ids in zip(dataset.items, items.token_ids, strict=True)
    }
    return json.dumps(tokens, ensure_ascii=False) + "\n"


def _trie(items: ItemIndex) -> bytes:
    """The items' trie as numpy reads it, without pickles."""
    file, arrays = io.BytesIO(), dict[str, Any](as_csr(build_trie(items)))
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _item_lines(dataset: Dataset, items: ItemIndex, tokenizer: Any) -> list[str]:
    lines = []
    for number, (item, ids) in enumerate(zip(dataset.items, items.token_ids, strict=True)):
        tokens = ids[ids >= 0].tolist()
        names = tokenizer.convert_ids_to_tokens(tokens)
        line = {"item_id": item.item_id, "title": item.title, "tokens": names, "token_ids": tokens}
        line |= {"removed": True} if number in items.removed else {}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return lines
