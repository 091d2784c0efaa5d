"""Puts a configuration together and says why each value is what it is."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from gems_jax.config.checks import check
from gems_jax.config.run import Config
from gems_jax.data.preparation.few_candidates import CUTOFFS
from gems_jax.data.text.unknown_tokens import unknown_lines, unknown_share, unknown_words
from gems_jax.models.hf.tokenizer import load_tokenizer
from gems_jax.models.t5.hf import FAMILY as T5
from gems_jax.training.doctor import USUAL_ITEMS
from gems_jax.training.estimate.memory import GIB
from gems_jax.training.estimate.shape import abstract_model
from gems_jax.training.proposal.data import FoundData
from gems_jax.training.proposal.fit import fitting
from gems_jax.training.proposal.keep import PROTECTIONS, Keep, reason

_PLAIN = {"rec": "history: {history} next:", "src": "search: {query} history: {history} found:"}
_CHAT = {
    "rec": "The user chose: {history_titles}\n{history}\nWhich item will the user choose next?",
    "src": "The user chose: {history_titles}\n{history}\nWhich item does the user find with: {query}",
}
# Items of a history that an input should have room for, tokens of a query and of the words around.
_HISTORY, _QUERY, _AROUND, _TITLE, _MOST_LENGTH = 10, 16, 48, 12, 512


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A configuration, with the reason of each value that was chosen, by dotted field; ``notes`` are for the user."""

    config: Config
    reasons: Mapping[str, str]
    notes: tuple[str, ...]


def propose(
    model: str,
    data: FoundData,
    text: tuple[str, str] | None,
    runs: str,
    devices: Sequence[Any] | None = None,
    keep: Keep = "medium",
) -> Proposal:
    """A configuration for a model, the user's data and the devices there are.

    Args:
      model: Hugging Face folder.
      data: of `find_data`.
      text: files of general text to protect and to measure forgetting on; ``None``: Python's documentation.
      runs: folder of what the run makes, relative to the configuration.
      devices: to train on; ``None``: all.
      keep: how much of what the model knew is to be kept, see `gems_jax.training.proposal.keep`.

    Raises:
      FileNotFoundError: no model, or no tokenizer, in the folder.
      ValueError: it does not fit.
    """
    devices = jax.devices() if devices is None else devices
    config, reasons, notes = Config(), {}, list(data.notes)

    def put(section: str, why: str = "", **fields: Any) -> None:
        nonlocal config
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
        reasons.update({f"{section}.{name}": why for name in fields})

    folder = Path(model).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"--model {model} holds no model (config.json): name a Hugging Face folder")
    put("model", path=str(folder), from_text=False)
    shape = abstract_model(config, 0).config
    tokenizer = load_tokenizer(folder, shape.vocab_size)
    put("data", **_data_fields(data, runs))
    if data.items is not None and data.items <= 120:
        few = max(1, min(data.items // 2, data.items - 1))
        put("data", f"the catalogue has {data.items} items", num_negatives=few)
        if few < max(CUTOFFS):
            notes.append(f"a row has {few} negatives: metrics at {max(CUTOFFS)} and below say little")
    if text is None:
        notes.append("general text: Python's documentation; better is text like what the model should keep (--text)")
    else:
        train, heldout = (str(Path(name).expanduser().absolute()) for name in text)
        put("text", "general text, whose directions are protected", train=train)
        put("text", "general text that forgetting is measured on", heldout=heldout)
    protection = PROTECTIONS[keep]
    put("null_space", path=f"{runs}/null_space")
    put("null_space", f"of --keep {keep}", energy=protection.energy, min_share=protection.min_share)
    put("train", f"{reason(keep)}; null: the method's own", learning_rate=protection.learning_rate)
    if shape.model_type not in T5.model_types:
        put("null_space", "decoders have tokens of enormous norm", unit_norm=True)

    notes += unknown_lines(
        {"titles": unknown_share(data.titles, tokenizer)}, {"titles": unknown_words(data.titles, tokenizer)}
    )
    chat = bool(getattr(tokenizer, "chat_template", None))
    tasks = ["rec", "src"] if data.has_queries or data.has_queries is None else ["rec"]
    if data.has_queries is False:
        notes.append('no column of queries (--columns \'{"query": "..."}\' names one): the run has the task rec alone')
    prompts = {task: (_CHAT if chat else _PLAIN)[task] for task in tasks}
    put("items", "the tokenizer has a chat template" if chat else "", template="chat" if chat else "plain")
    put("items", "titles let the model use what it knows of the words" if chat else "", prompts=prompts)
    length, why = _length(tokenizer, data, chat)
    put("items", why, max_length=length)
    rank = max(8, round(shape.d_model / 64) * 8)
    put("gems", f"an eighth of the model's width {shape.d_model}", rank=rank, task_rank=rank // 2)
    put("train", "a first look; more rows need more steps", steps=1000)
    put("train", log_every=10, checkpoint_every=100)
    put("evaluate", "of each task, for a first look; null: all", rows=1000)

    items = data.items or USUAL_ITEMS
    if data.items is None:
        notes.append(f"the number of items is not known before the preparation: memory is estimated for {items:,}")
    found = fitting(config, items, devices)
    config = found.config
    memory = f"{found.memory / GIB:.1f} GiB a device of {len(devices)} x {devices[0].device_kind}"
    reasons["train.batch_size"] = f"fits in {memory}"
    for name in ("model.dtype", "mesh.fsdp", "train.compute_dtype", "train.stochastic_rounding"):
        reasons[name] = reasons["train.batch_size"]
    put("evaluate", "as in training", batch_size=config.train.batch_size)
    notes.append(f"estimated from shapes, GiB a device: {found.needs}")
    check(config)
    return Proposal(config, reasons, tuple(notes))


def _data_fields(data: FoundData, runs: str) -> dict[str, Any]:
    from gems_jax.data.raw.options import TableFiles

    fields = dict(data.fields) | {"dir": f"{runs}/data"}
    if "files" in fields:
        fields["files"] = TableFiles(**fields["files"])
    return fields


def _length(tokenizer: Any, data: FoundData, titles: bool) -> tuple[int, str]:
    """Tokens of an input, in steps of 32."""
    each, why = 1.0, f"room for {_HISTORY} items' tokens and a query"
    if titles:
        lengths = [len(tokenizer(title, add_special_tokens=False)["input_ids"]) for title in data.titles]
        each = float(np.mean(lengths or [_TITLE])) + 2
        why = f"room for {_HISTORY} items with titles of {each - 2:.0f} tokens, and a query"
        why += "" if lengths else "; titles were not looked at"
    wanted = _AROUND * titles + _QUERY * 2 + _HISTORY * (each + 1)
    length = min(_MOST_LENGTH, -(-int(wanted) // 32) * 32)
    return length, why if length >= wanted else f"at most {_MOST_LENGTH}; older items of a history are left out"


def as_yaml(proposal: Proposal, name: str) -> str:
    """The configuration's text: what differs from the defaults or was chosen, each with its reason.

    Args:
      proposal: of `propose`.
      name: of its file, for the commands above.
    """
    lines = [f"# gems-jax train    --config {name} --workdir runs/first"]
    lines += [f"# gems-jax evaluate --config {name} --workdir runs/first", "#"]
    lines += [f"# {note}" for note in proposal.notes]
    default = Config()
    for section in (field.name for field in dataclasses.fields(Config)):
        mine, usual = getattr(proposal.config, section), getattr(default, section)
        if not dataclasses.is_dataclass(mine):
            continue
        fields = []
        for field in dataclasses.fields(mine):
            value, why = getattr(mine, field.name), proposal.reasons.get(f"{section}.{field.name}")
            if value != getattr(usual, field.name) or (why and f"{section}.{field.name}" in _ALWAYS):
                fields += _entry(field.name, value, why or "")
        lines += [f"{section}:", *fields] if fields else []
    return "\n".join(lines) + "\n"


# Written out also where they are the default.
_ALWAYS = (
    "train.batch_size",
    "train.learning_rate",
    "items.max_length",
    "gems.rank",
    "null_space.energy",
    "null_space.min_share",
)


def _entry(name: str, value: Any, why: str) -> list[str]:
    """A field's lines; the reason stands behind a value of one line."""
    plain = _without_defaults(value) if dataclasses.is_dataclass(value) else value
    text = yaml.dump({name: plain}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6).splitlines()
    if why:
        text = [f"{text[0]}  # {why}"] if len(text) == 1 else [f"# {why}", *text]
    return [f"  {line}" for line in text]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as such."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _without_defaults(value: Any) -> dict[str, Any]:
    usual = type(value)()
    fields = [field.name for field in dataclasses.fields(value)]
    return {name: getattr(value, name) for name in fields if getattr(value, name) != getattr(usual, name)}
