"""The best items for one user: histories, what is left out, and that it is the ranking of the catalogue."""

import dataclasses
import types
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.items.tokens import ItemIndex, add_item_tokens
from gems_jax.models import T5, Decoder, DecoderConfig, T5Config
from gems_jax.ranking import interactive
from gems_jax.ranking.interactive import check_task, history_of, top_items
from gems_jax.ranking.rank_items import rank_items

WORDS = ["<pad>", "</s>", "<unk>", "history", "red", "shoe", "find"]
# Where ranking itself is replaced.
NO_MODEL = types.SimpleNamespace(layout=T5.layout)
TEMPLATES = {None: "history {history}", "red shoe": "find {query} history {history}"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    items = [Item(f"B{n}", f"thing {n}") for n in range(9)]
    rows = {
        ("train", "rec"): [Row("ann", [4], 1), Row("bob", [0], 2)],
        ("test", "rec"): [Row("ann", [4, 1, 4], 6), Row("bob", [0, 2], 3)],
        ("test", "src"): [Row("ann", [4, 1], 4, query="shoe")],
    }
    return Dataset("shop", items, {key: Table.from_rows(key[1], table) for key, table in rows.items()})


@pytest.fixture(scope="module")
def tokenizer(dataset: Dataset) -> Any:
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    outer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", add_bos_token=False
    )
    add_item_tokens(outer, dataset.item_ids())
    return outer


def t5() -> T5:
    sizes = {"vocab_size": len(WORDS), "num_added_tokens": 9, "d_model": 8, "d_kv": 4, "d_ff": 8}
    return T5.create(T5Config(**sizes, num_layers=1, num_decoder_layers=1, num_heads=2), jax.random.key(0))


def decoder() -> Decoder:
    sizes = {"vocab_size": len(WORDS), "num_added_tokens": 9, "d_model": 8, "head_dim": 4, "d_ff": 8}
    config = DecoderConfig(**sizes, num_layers=1, num_heads=2, num_kv_heads=1, eos_token_id=1, initializer_range=0.5)
    return Decoder.create(config, jax.random.key(0))


ITEMS = ItemIndex(len(WORDS) + np.arange(9)[:, None])


def test_a_history_is_all_that_is_known_of_a_user(dataset: Dataset) -> None:
    assert history_of(dataset, "ann") == [4, 1, 4, 6]
    assert history_of(dataset, "bob") == [0, 2, 3]
    with pytest.raises(ValueError, match="no user 'anne'; it has 2, such as \\['ann'\\]"):
        history_of(dataset, "anne")


def shop_of(rows: dict[tuple[str, str], list[tuple[list[int], int, float]]], timed: bool) -> Dataset:
    """A user's rows, each a history, a target and a time."""
    tables = {}
    for key, of_table in rows.items():
        table = Table.from_rows(key[1], [Row("ann", history, target) for history, target, _ in of_table])
        time = np.array([time for *_, time in of_table]) if timed else None
        tables[key] = dataclasses.replace(table, time=time)
    return Dataset("shop", [Item(f"B{n}", f"thing {n}") for n in range(60)], tables)


def windows(count: int, longest: int) -> dict[tuple[str, str], list[tuple[list[int], int, float]]]:
    """``count`` events, odd ones searched, as tables have them: histories cut to their newest events."""
    rows: dict[tuple[str, str], list[tuple[list[int], int, float]]] = {
        (split, task): [] for split in ("train", "valid", "test") for task in ("rec", "src")
    }
    for target in range(1, count):
        split = "test" if target == count - 1 else "valid" if target == count - 2 else "train"
        history = list(range(target))[-longest:]
        rows[split, ("rec", "src")[target % 2]].append((history, target, 1e9 + target))
    return rows


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("count", [4, 5, 6, 7, 50, 51])
def test_the_newest_events_come_last_however_many_there_are(count: int, timed: bool) -> None:
    taken = history_of(shop_of(windows(count, 5), timed), "ann")
    assert sorted(taken) == list(range(count))
    assert taken[-6:] == list(range(count))[-6:]
    if timed:
        assert taken == list(range(count))


def test_events_of_one_time_are_all_known_and_one_event_of_two_tasks_is_one() -> None:
    both = [([0, 1], 2, 7.0), ([0, 1], 3, 7.0)]
    rows = {("train", "rec"): [([0], 1, 5.0)], ("test", "rec"): both, ("test", "src"): both[1:]}
    for timed in (True, False):
        assert history_of(shop_of(rows, timed), "ann") == [0, 1, 2, 3]


def test_bought_again_counts_again() -> None:
    rows = {("train", "rec"): [([4], 1, 5.0), ([4, 1], 4, 6.0)], ("test", "rec"): [([1, 4], 4, 7.0)]}
    assert history_of(shop_of(rows, True), "ann") == [4, 1, 4, 4]


def test_a_prompt_holds_the_newest_events_and_no_known_item_is_recommended(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shop_of(windows(50, 5), True)
    prompts = []

    def encode(table: Table, *arguments: Any, **options: Any) -> Any:
        prompts.append(table.history.tolist())
        return types.SimpleNamespace(tokens=np.zeros(3, np.int32), clipped_queries=0)

    def rank(*arguments: Any, k: int, **options: Any) -> Any:
        return np.arange(60)[None, :k], -np.arange(60.0)[None, :k]

    monkeypatch.setattr(interactive, "encode_table", encode)
    monkeypatch.setattr(interactive, "rank_items", rank)
    items = ItemIndex(np.arange(60)[:, None])
    found = top_items(NO_MODEL, None, dataset, items, "{history}", 20, user="ann", k=4)
    assert prompts == [[44, 45, 46, 47, 48, 49]]
    assert [one.item_id for one in found] == ["B50", "B51", "B52", "B53"]
    searched = top_items(NO_MODEL, tokenizer, dataset, items, "{query}", 20, user="ann", query="shoe", k=2)
    assert [(one.item_id, one.known) for one in searched] == [("B0", True), ("B1", True)]


def test_a_task_without_training_rows_is_named(dataset: Dataset) -> None:
    check_task(dataset, "rec")
    with pytest.raises(ValueError, match=r"never tuned for task 'src'.* training rows of 'rec' alone"):
        check_task(dataset, "src")


@pytest.mark.parametrize("query", [None, "red shoe"])
@pytest.mark.parametrize("make", [t5, decoder])
def test_items_are_those_of_a_ranking_of_the_catalogue(
    dataset: Dataset, tokenizer: Any, make: Any, query: str | None
) -> None:
    model = make()
    end = [1] if make is t5 else []
    history = [len(WORDS) + item for item in (4, 1, 4, 6)]
    prompt = [[3], [6, 4, 5, 3]][query is not None] + history + end
    ids, scores = rank_items(model, {"input_ids": np.array([prompt])}, ITEMS, k=9)
    expected = [item for item in ids[0].tolist() if query is not None or item not in (4, 1, 6)]
    found = top_items(model, tokenizer, dataset, ITEMS, TEMPLATES[query], 20, user="ann", query=query, k=5)
    assert [one.item_id for one in found] == [f"B{item}" for item in expected[:5]]
    assert [one.title for one in found] == [f"thing {item}" for item in expected[:5]]
    by_item = dict(zip(ids[0].tolist(), np.asarray(scores[0]).tolist(), strict=True))
    assert [one.score for one in found] == pytest.approx([by_item[item] for item in expected[:5]], abs=1e-5)
    assert [one.known for one in found] == [item in (4, 1, 6) for item in expected[:5]]


def test_a_query_whose_end_is_cut_off_is_told(
    dataset: Dataset, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interactive, "rank_items", lambda *_, k, **__: (np.arange(9)[None, :k], np.zeros((1, k))))
    said: list[str] = []
    for query in ("red shoe", "red shoe " * 20, "\U0001f389"):
        items = (tokenizer, dataset, ITEMS, TEMPLATES["red shoe"], 20)
        top_items(NO_MODEL, *items, user="ann", query=query, k=2, say=said.append)
    assert said == [
        "the query is too long for items.max_length 20: its end is cut off and not searched for",
        "the model's tokenizer knows none of the characters of '\U0001f389': all such queries are one to it",
    ]


def test_fewer_items_than_asked_for_are_all_there_are(dataset: Dataset, tokenizer: Any) -> None:
    found = top_items(t5(), tokenizer, dataset, ITEMS, TEMPLATES[None], 20, user="ann", k=50)
    assert sorted(one.item_id for one in found) == ["B0", "B2", "B3", "B5", "B7", "B8"]


def test_an_empty_query_and_a_k_of_nothing_are_named(dataset: Dataset, tokenizer: Any) -> None:
    for query in (" ", "\u00a0\u200b"):
        with pytest.raises(ValueError, match="query is empty"):
            top_items(None, tokenizer, dataset, ITEMS, TEMPLATES["red shoe"], 20, user="ann", query=query)
    with pytest.raises(ValueError, match="at least 1"):
        top_items(None, tokenizer, dataset, ITEMS, TEMPLATES[None], 20, user="ann", k=0)
