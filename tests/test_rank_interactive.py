"""The best items for one user: histories, what is left out, and that it is the ranking of the catalogue."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from tiny import cheap_compilation
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gems_jax.data.tables import Dataset, Item, Row, Table
from gems_jax.items import ItemIndex, add_item_tokens
from gems_jax.models import T5, Decoder, DecoderConfig, T5Config
from gems_jax.ranking.interactive import history_of, top_items
from gems_jax.ranking.rank_items import rank_items

WORDS = ["<pad>", "</s>", "<unk>", "history", "red", "shoe", "find"]
TEMPLATES = {None: "history {history}", "red shoe": "find {query} history {history}"}


@pytest.fixture(scope="module", autouse=True)
def _compile_cheaply() -> Iterator[None]:
    with cheap_compilation():
        yield


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


def test_fewer_items_than_asked_for_are_all_there_are(dataset: Dataset, tokenizer: Any) -> None:
    found = top_items(t5(), tokenizer, dataset, ITEMS, TEMPLATES[None], 20, user="ann", k=50)
    assert sorted(one.item_id for one in found) == ["B0", "B2", "B3", "B5", "B7", "B8"]


def test_an_empty_query_and_a_k_of_nothing_are_named(dataset: Dataset, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="query is empty"):
        top_items(None, tokenizer, dataset, ITEMS, TEMPLATES["red shoe"], 20, user="ann", query=" ")
    with pytest.raises(ValueError, match="at least 1"):
        top_items(None, tokenizer, dataset, ITEMS, TEMPLATES[None], 20, user="ann", k=0)
