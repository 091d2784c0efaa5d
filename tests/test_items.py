"""Item tokens: ids one after the other, no stray tokens between them, and rows that fit the pretrained ones."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from shared import SHARED, needs_shared

from gems_jax.data.tokenizer import train_tokenizer
from gems_jax.items import ItemIndex, add_item_tokens, grow, item_token
from gems_jax.models import T5, T5Config

TEXT = "cheap garden lamps and red garden chairs for a small balcony"


@pytest.fixture
def tokenizer() -> Any:
    return train_tokenizer([TEXT] * 50, vocab_size=420, num_sentinels=10)


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied"])
def model(request: Any) -> T5:
    config = T5Config(
        vocab_size=30, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=4,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    return T5.create(config, jax.random.key(0))


def test_items_get_the_ids_behind_the_vocabulary_in_order(tokenizer: Any) -> None:
    size = len(tokenizer)
    before = tokenizer(TEXT)["input_ids"]
    ids = add_item_tokens(tokenizer, ["B01", "x y", "<z>"], size)
    assert ids == [size, size + 1, size + 2]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<item_B01>", "<item_x y>", "<item_<z>>"]
    assert tokenizer(TEXT)["input_ids"] == before


def encoded_between(tokenizer: Any, ids: list[int]) -> None:
    one, two, three = (item_token(name) for name in ("B01", "B02", "b01"))
    for separator in ("", " ", "  "):
        text = separator.join((one, two, one, three))
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == [ids[0], ids[1], ids[0], ids[2]]
    words = tokenizer("red chairs", add_special_tokens=False)["input_ids"]
    mixed = tokenizer(f"red chairs {one} {two} red chairs", add_special_tokens=False)["input_ids"]
    assert mixed == [*words, ids[0], ids[1], *words]


def test_no_stray_token_stands_between_item_tokens(tokenizer: Any) -> None:
    encoded_between(tokenizer, add_item_tokens(tokenizer, ["B01", "B02", "b01"]))


@needs_shared
def test_no_stray_token_stands_between_items_of_the_t5_tokenizer_whose_table_is_padded() -> None:
    from transformers import PreTrainedTokenizerFast

    folder = SHARED / "data" / "tokenizers" / "t5_small"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    assert len(tokenizer) == 32100
    ids = add_item_tokens(tokenizer, ["B01", "B02", "b01"], 32128)
    assert ids == [32128, 32129, 32130]
    assert len(tokenizer) == 32131
    encoded_between(tokenizer, ids)


def test_items_that_cannot_be_added_are_named(tokenizer: Any) -> None:
    size = len(tokenizer)
    with pytest.raises(ValueError, match="item_ids is empty"):
        add_item_tokens(tokenizer, [])
    with pytest.raises(ValueError, match="<item_a> twice"):
        add_item_tokens(tokenizer, ["a", "b", "a"])
    for vocab_size in (size - 1, size + 300):
        with pytest.raises(ValueError, match=f"{size} tokens, the model's vocabulary {vocab_size}"):
            add_item_tokens(tokenizer, ["a"], vocab_size)
    assert len(tokenizer) == size
    add_item_tokens(tokenizer, ["a"])
    with pytest.raises(ValueError, match="already has <item_a>"):
        add_item_tokens(tokenizer, ["b", "a"])


TITLES = [[5, 6, 7], [8], [9, 9]]


def test_a_grown_model_gives_the_same_logits_on_text_without_items(model: T5) -> None:
    grown = grow(model, TITLES)
    inputs = {"input_ids": np.array([[3, 4, 5, 1]]), "decoder_input_ids": np.array([[0, 7, 8]])}
    np.testing.assert_array_equal(grown(**inputs)[..., :30], model(**inputs))
    assert grown(**inputs).shape[-1] == 33
    assert model.config.num_added_tokens == 0


def tables_of(model: T5, grown: T5) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(model.token_embedding, grown.item_embedding)]
    if not model.config.tie_word_embeddings:
        pairs.append((model.lm_head, grown.item_head))
    return [(np.asarray(old.embedding[...]), np.asarray(new.embedding[...])) for old, new in pairs]


def test_new_rows_point_to_the_mean_of_their_titles_with_the_norm_of_the_old_rows(model: T5) -> None:
    for table, rows in tables_of(model, grow(model, TITLES)):
        wide = table.astype(np.float64)
        norm = np.linalg.norm(wide, axis=1).mean()
        for row, title in zip(rows, TITLES, strict=True):
            mean = wide[title].mean(0)
            np.testing.assert_allclose(row, mean / np.linalg.norm(mean) * norm, rtol=1e-5, atol=1e-6)


def test_random_rows_have_the_norm_of_the_old_rows_and_follow_the_key(model: T5) -> None:
    first, second, other = (grow(model, TITLES, "random", jax.random.key(seed)) for seed in (1, 1, 2))
    for table, rows in tables_of(model, first):
        norm = np.linalg.norm(table, axis=1).mean()
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), norm, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(first), nnx.state(second))
    assert not np.allclose(first.item_embedding.embedding, other.item_embedding.embedding)
    if not model.config.tie_word_embeddings:
        assert not np.allclose(first.item_embedding.embedding, first.item_head.embedding)


def test_models_that_cannot_grow_and_wrong_titles_are_named(model: T5) -> None:
    with pytest.raises(ValueError, match="title_token_ids is empty"):
        grow(model, [])
    with pytest.raises(ValueError, match="item 1: the title is empty"):
        grow(model, [[3], [], [4]])
    with pytest.raises(ValueError, match="reaches from 3 to 30: the pretrained vocabulary is 0 to 29"):
        grow(model, [[3, 30]])
    with pytest.raises(ValueError, match="needs a key"):
        grow(model, TITLES, "random")
    with pytest.raises(ValueError, match="'title' or 'random', got 'mean'"):
        grow(model, TITLES, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="already has 3 items"):
        grow(grow(model, TITLES), TITLES)


def test_an_item_index_holds_padded_token_ids() -> None:
    index = ItemIndex([[7, 8], [7, -1], [8, 7]])  # type: ignore[arg-type]
    assert index.num_items == 3
    assert index.token_ids.dtype == np.int32
    assert not index.token_ids.flags.writeable


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([1, 2], r"shape \(2,\)"),
        (np.zeros((0, 1), int), r"shape \(0, 1\)"),
        ([[1.0]], "dtype float64"),
        ([[1], [-2]], r"item 1: \[-2\]"),
        ([[-1, -1]], "item 0"),
        ([[3, -1], [-1, 3]], r"item 1: \[-1, 3\]"),
        ([[3, 4], [5, 6], [3, 4]], r"items 0 and 2 have the same tokens \[3, 4\]"),
        ([[2**31]], "above what int32 holds"),
    ],
)
def test_a_wrong_item_index_is_named(token_ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemIndex(token_ids)
