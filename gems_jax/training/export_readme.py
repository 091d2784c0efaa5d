"""The README.md of an exported folder: how to ask the model, with a program that ranks as the run does."""

import json
from collections.abc import Mapping

from gems_jax.config.run import Config
from gems_jax.models.family import Layout

_TEXT = """\
# A model for recommendation and search

Tuned with `gems-jax`; a Hugging Face folder of {family} weights.{edited}

| file | content |
|---|---|
| `prompts.json` | a template a task, and what the numbers below are |
| `items.jsonl` | a line an item: its id, title, tokens and their ids; `removed` where it may stand in histories only |
| `identifiers.json` | where items share tokens: item id to its tokens, as `items.identifiers` reads them |
| `trie.npz` | the items' tokens as a trie in compressed rows, see below |
| `config.json`, `model.safetensors`, `tokenizer.json`, ... | as transformers reads them |

## Prompts
As JSON strings, in which `\\n` is a line break:
{templates}

`{{history}}` stands for the user's items, oldest first: the tokens of each item, items separated by a space.
`{{history_titles}}` stands for their titles, separated by a semicolon and a space.
`{{query}}` stands for the words of a search without the spaces at their ends; all other spaces count. A prompt has at
most {max_length} tokens{counted}: of longer histories the oldest items are left out. `tokenizer(prompt)` gives the
tokens of training{end}. {agreement} A query that spells the
name of a token, such as an item's, was letters in training and is that token here: leave such names out.

The answer is the item's tokens, then the end token. An item's score is the mean of the log-probabilities of these
tokens, over {vocabulary}.{rounded}

## Ranking with transformers
```python
import json
from pathlib import Path

import torch
from transformers import {model_class}, AutoTokenizer


def ask(folder):
    \"\"\"The model, its tokenizer, its prompts and its items.\"\"\"
    prompts = json.loads(Path(folder, "prompts.json").read_text("utf-8"))
    with open(Path(folder, "items.jsonl"), encoding="utf-8") as lines:
        items = [json.loads(line) for line in lines]
    return {model_class}.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), prompts, items


def prompt(prompts, items, task, history, query=""):
    \"\"\"The text of a task's prompt; history: item ids, oldest first.\"\"\"
    known = {{item["item_id"]: item for item in items}}
    tokens = " ".join("".join(known[item]["tokens"]) for item in history)
    titles = "; ".join(filter(None, (" ".join(known[item]["title"].split()) for item in history)))
    return prompts["templates"][task].format(history=tokens, history_titles=titles, query=query.strip())


def fitting(tokenizer, prompts, items, task, history, query=""):
    \"\"\"The same with the newest items of the history that fit.\"\"\"
    answer = 1 + max(len(item["token_ids"]) for item in items) if prompts["family"] == "decoder" else 0
    text = prompt(prompts, items, task, history, query)
    while history and len(tokenizer(text)["input_ids"]) + answer > prompts["max_length"]:
        history = history[1:]
        text = prompt(prompts, items, task, history, query)
    return text


@torch.no_grad()
def scores(model, tokenizer, prompts, items, text, batch=256):
    \"\"\"The score of each item, float [N].\"\"\"
    end, found = prompts["end_token_id"], []
    width = 1 + max(len(item["token_ids"]) for item in items)
    names = [tuple(item["token_ids"]) for item in items]
    places = {{name: place for place, name in enumerate(dict.fromkeys(names))}}
    answers = torch.tensor([[*name, end] + [-1] * (width - len(name) - 1) for name in places])
    asked = tokenizer(text, return_tensors="pt")["input_ids"]
    for answer in answers.split(batch):
        rows = asked.expand(len(answer), -1)
{logits}
        if prompts["vocabulary"] == "items":
            others = torch.arange(logits.shape[-1]) < prompts["first_item_token_id"]
            others[end] = False
            logits = logits.masked_fill(others, float("-inf"))
        chosen = logits.log_softmax(-1).gather(-1, answer.clamp(min=0)[..., None])[..., 0]
        real = answer >= 0
        found.append(chosen.masked_fill(~real, 0).sum(-1) / real.sum(-1))
    return torch.cat(found)[[places[name] for name in names]]


def rank(folder, task, history, query="", k=10):
    \"\"\"The ids of the k best items, best first.\"\"\"
    model, tokenizer, prompts, items = ask(folder)
    text = fitting(tokenizer, prompts, items, task, history, query)
    ranked = [item for item in items if not item.get("removed")]
    best = scores(model, tokenizer, prompts, ranked, text).argsort(descending=True, stable=True)[:k]
    return [ranked[place]["item_id"] for place in best.tolist()]
```

## Generating with transformers
For catalogues that are too large to score whole. Behind the program above, this one has `generate` search along the
trie, which `dict(np.load("trie.npz"))` reads; items and scores are those of the run at as many beams.
```python
import numpy as np
from transformers import GenerationConfig, LogitsProcessorList, PrefixConstrainedLogitsProcessor


def state_after(trie, tokens):
    \"\"\"The state that tokens lead to, -1 for none; see below.\"\"\"
    state = 0
    for written in tokens:
        first, last = trie["row_offsets"][state : state + 2]
        step = first + np.searchsorted(trie["token"][first:last], written)
        if step == last or trie["token"][step] != written:
            return -1
        state = trie["next_state"][step]
    return state


def allowed_tokens(trie, begin, end):
    \"\"\"A prefix_allowed_tokens_fn for answers that begin behind `begin` tokens.\"\"\"

    def allowed(_, tokens):
        state = state_after(trie, tokens[begin:].tolist())
        if state < 0:
            return [end]  # a beam that has nowhere to go
        first, last = trie["row_offsets"][state : state + 2]
        return trie["token"][first:last].tolist() + ([end] if trie["item"][state] >= 0 else [])

    return allowed


@torch.no_grad()
def generate(model, tokenizer, prompts, trie, text, k=10, beams=20):
    \"\"\"Scores and numbers of the k best items of a search with two beams or more, best first.\"\"\"
    asked, end, base = tokenizer(text, return_tensors="pt"), prompts["end_token_id"], model.generation_config
    begin = 1 if prompts["family"] == "encoder_decoder" else asked["input_ids"].shape[1]

    def normalised(_, values):
        \"\"\"Log-probabilities over the tokens that a score is over.\"\"\"
        if prompts["vocabulary"] == "items":
            others = torch.arange(values.shape[-1]) < prompts["first_item_token_id"]
            others[end] = False
            values = values.masked_fill(others, float("-inf"))
        return values.log_softmax(-1)

    constraint = PrefixConstrainedLogitsProcessor(allowed_tokens(trie, begin, end), beams)
    # Nothing else of the base model's defaults: a penalty for what is repeated, say, is no part of a score.
    model.generation_config = GenerationConfig(
        decoder_start_token_id=base.decoder_start_token_id, pad_token_id=base.pad_token_id, eos_token_id=end
    )
    try:
        found = model.generate(
            input_ids=asked["input_ids"],
            attention_mask=asked["attention_mask"],
            max_new_tokens=base.max_new_tokens,
            num_beams=beams,
            num_return_sequences=k,
            length_penalty=1.0,  # the mean over the item's tokens and the end token
            early_stopping="never",  # an item of another length may be better
            do_sample=False,
            logits_processor=LogitsProcessorList([normalised, constraint]),
            return_dict_in_generate=True,
            output_scores=True,
        )
    finally:
        model.generation_config = base
    pairs = zip(found.sequences_scores.tolist(), found.sequences[:, begin:].tolist())
    # Where there are fewer items than beams, the rest is filled with what has no score.
    answers = [(score, tokens[: tokens.index(end)]) for score, tokens in pairs if score > -1e8]
    return [(score, int(trie["item"][state_after(trie, tokens)])) for score, tokens in answers]
```

## Decoding along the trie
A decoder that may only write items follows `trie.npz`, which `numpy.load` reads. State 0 is the beginning. In state `s`
the steps from `row_offsets[s]` up to `row_offsets[s + 1]` are allowed: `token` says which token a step writes,
`next_state` where it leads. Where `item[s]` is not -1, the end token is allowed, too: it ends the item of that number,
which counts the lines of `items.jsonl` from 0.{shared}
This program needs numpy alone. `log_probs` gives the log-probabilities of the next token, float `[n, tokens]`, after
the prompt and each of `n` beginnings of an answer, int `[n, t]`; they are over the tokens that a score is over, see
above.

```python
import numpy as np


def decode(trie, log_probs, end, k, beams):
    \"\"\"Scores and numbers of the k best items of a beam search, best first.\"\"\"
    offsets, token, target, item = (trie[name] for name in ("row_offsets", "token", "next_state", "item"))
    states, sums, given, done = np.zeros(1, int), np.zeros(1), np.zeros((1, 0), int), []
    while len(states):
        values = sums[:, None] + np.asarray(log_probs(given))
        steps = [
            (values[beam, token[step]], beam, step)
            for beam, state in enumerate(states)
            for step in range(offsets[state], offsets[state + 1])
        ]
        ends = [(values[beam, end], item[state]) for beam, state in enumerate(states) if item[state] >= 0]
        # The best continuations of all beams: those that end are done, the others go on.
        steps = sorted(steps, key=lambda step: -step[0])[:beams]
        for value, number in ends:
            if sum(other > value for other, *_ in [*steps, *ends]) < beams:
                done.append((value / (given.shape[1] + 1), number))
        rows, taken = (np.array([step[place] for step in steps], int) for place in (1, 2))
        sums = np.array([value for value, *_ in steps])
        states, given = target[taken], np.concatenate([given[rows], token[taken][:, None]], axis=1)
    return sorted(done, reverse=True)[:k]
```
"""
_SHARED = """
Items share identifiers here: `item` is the first of those with the same tokens that is not `removed`. The others have
the same score, and the run lists them behind it in the order of their lines."""
# What the text says of a layout.
_BY_LAYOUT: dict[Layout, dict[str, str]] = {
    "encoder_decoder": {
        "family": "encoder-decoder",
        "counted": ", the end token included",
        "end": ", the end token included",
        "model_class": "AutoModelForSeq2SeqLM",
        "logits": """\
        begun = torch.full((len(answer), 1), model.config.decoder_start_token_id)
        given = torch.cat([begun, answer[:, :-1].clamp(min=0)], 1)
        logits = model(input_ids=rows, decoder_input_ids=given).logits.float()""",
    },
    "decoder": {
        "family": "decoder",
        "counted": ", the answer included",
        "end": "; no end token follows it, since the answer goes on there",
        "model_class": "AutoModelForCausalLM",
        "logits": """\
        given = torch.cat([rows, answer[:, :-1].clamp(min=0)], 1)
        logits = model(input_ids=given).logits.float()[:, rows.shape[1] - 1 :]""",
    },
}
_ROUNDED = """

The weights are written as {dtype}, which the run did not compute in: scores differ by the rounding from those of the
run, and items whose scores nearly agree may change places."""
_VOCABULARY = {"items": "the end token and the tokens of items", "full": "all tokens"}


def readme(
    config: Config,
    templates: Mapping[str, str],
    layout: Layout,
    unlike: int,
    tried: int,
    dtype: str | None = None,
    edited: str = "",
) -> str:
    """The text of a folder's README.md.

    Args:
      config: of the run.
      templates: of each task's prompts.
      layout: of the model.
      unlike, tried: prompts that are tokenised otherwise than in training, and all that were compared.
      dtype: that the weights were rounded to, if they were.
      edited: how the catalogue was edited since training, in a few words.

    Example:
      >>> "search: {query} history: {history} found:" in readme(Config(), Config().items.prompts, "decoder", 0, 10)
      True
    """
    lines = (f"- `{task}`: `{json.dumps(text, ensure_ascii=False)}`" for task, text in templates.items())
    agreement = f"In {tried - unlike} of {tried} prompts of the dataset this was compared and is so"
    agreement += f"; in {unlike} it is not." if unlike else "."
    return _TEXT.format(
        edited=f" Its {edited}." if edited else "",
        templates="\n".join(lines),
        max_length=config.items.max_length,
        agreement=agreement,
        vocabulary=_VOCABULARY[config.train.loss_vocabulary],
        rounded="" if dtype is None else _ROUNDED.format(dtype=dtype),
        shared=_SHARED if config.items.collisions == "group" else "",
        **_BY_LAYOUT[layout],
    )
