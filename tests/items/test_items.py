"""Item tokens: ids one after the other, no stray tokens between them, and rows that fit the pretrained ones."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from kinds_of_tokenizers import MADE, tokenizer_of
from shared import SHARED, needs_shared

from gems_jax.data.batching.prompts import item_rows
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.items import grow, lower_item_logits
from gems_jax.items.lower_logits import smallest_offset
from gems_jax.items.tokens import (
    ItemIndex,
    add_identifier_tokens,
    add_item_tokens,
    index_identifiers,
    item_token,
    load_item_identifiers,
)
from gems_jax.models import T5, T5Config, from_config, load, save
from gems_jax.models.hf.tokenizer import load_tokenizer
from gems_jax.models.params import params_of
from gems_jax.ranking.trie import build_trie

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


def test_columns_that_no_item_uses_change_nothing() -> None:
    padded = ItemIndex(np.array([[5, 6, -1, -1], [7, -1, -1, -1]]))
    assert padded.token_ids.tolist() == [[5, 6], [7, -1]]
    trie, wanted = build_trie(padded), build_trie(ItemIndex(np.array([[5, 6], [7, -1]])))
    assert (trie.depth, trie.ends) == (wanted.depth, wanted.ends) == (2, (False, True, True))
    np.testing.assert_array_equal(trie.item, wanted.item)
    assert item_rows(np.array([[5, -1], [7, -1]])).tolist() == [[5], [7]]


def encoded_between(tokenizer: Any, ids: list[int]) -> None:
    one, two, three = (item_token(name) for name in ("B01", "B02", "b01"))
    for separator in ("", " ", "  "):
        text = separator.join((one, two, one, three))
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == [ids[0], ids[1], ids[0], ids[2]]
    texts = ["red chairs", "red chairs red chairs", f"red chairs {one} {two} red chairs"]
    words, twice, mixed = tokenizer(texts, add_special_tokens=False)["input_ids"]
    # The words behind an item are spelled as behind any other word.
    assert mixed == [*words, ids[0], ids[1], *twice[len(words) :]]


def test_no_stray_token_stands_between_item_tokens(tokenizer: Any) -> None:
    encoded_between(tokenizer, add_item_tokens(tokenizer, ["B01", "B02", "b01"]))


@pytest.mark.parametrize("kind", MADE)
def test_words_behind_an_item_are_spelled_as_behind_any_other_word(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    encoded_between(tokenizer, add_item_tokens(tokenizer, ["B01", "B02", "b01"]))


def test_items_that_cannot_be_added_are_named(tokenizer: Any) -> None:
    size = len(tokenizer)
    with pytest.raises(ValueError, match="item_ids is empty"):
        add_item_tokens(tokenizer, [])
    with pytest.raises(ValueError, match="<item_a> twice"):
        add_item_tokens(tokenizer, ["a", "b", "a"])
    for vocab_size in (size - 1, 64 * (size // 64 + 9)):
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


def expected(table: np.ndarray, means: np.ndarray, is_output: bool) -> np.ndarray:
    """Titles' means as rows: spread in the output layer, of the norm of the old rows where they are inputs alone."""
    if is_output:
        return 3 * means - 2 * means.mean(0)
    return means / np.linalg.norm(means, axis=1, keepdims=True) * np.linalg.norm(table, axis=1).mean()


def test_new_rows_are_the_means_of_their_titles_spread_in_the_output_layer_and_long_as_inputs(model: T5) -> None:
    tables = tables_of(model, grow(model, TITLES))
    for number, (table, rows) in enumerate(tables):
        means = np.stack([table.astype(np.float64)[title].mean(0) for title in TITLES])
        wanted = expected(table, means, number == len(tables) - 1)
        np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-6)


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


IDENTIFIERS = [("<a_1>", "<b_10>", "<c_3>"), ("<a_1>", "<b_2>"), ("<a_4>", "<b_2>", "<c_3>"), ("<a_1>", "<b_10>")]


def test_identifiers_get_a_token_for_each_code_and_an_index_of_the_items(tokenizer: Any) -> None:
    size = len(tokenizer)
    index = add_identifier_tokens(tokenizer, IDENTIFIERS)
    assert len(tokenizer) == size + 5
    codes = ["<a_1>", "<a_4>", "<b_10>", "<b_2>", "<c_3>"]
    assert tokenizer.convert_ids_to_tokens(range(size, size + 5)) == codes
    expected = [[0, 2, 4], [0, 3, -1], [1, 3, 4], [0, 2, -1]]
    np.testing.assert_array_equal(index.token_ids, np.where(np.array(expected) < 0, -1, np.array(expected) + size))
    for separator in ("", " "):
        text = separator.join(code for identifier in IDENTIFIERS for code in identifier)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == [token for row in index.token_ids.tolist() for token in row if token >= 0]
    with pytest.raises(ValueError, match=r"already has <a_1> \(id"):
        add_identifier_tokens(tokenizer, IDENTIFIERS)
    with pytest.raises(ValueError, match="identifiers is empty"):
        add_identifier_tokens(tokenizer, [])
    with pytest.raises(ValueError, match="lacks <x_1>, a token of item 0"):
        index_identifiers(tokenizer, [("<x_1>",)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"identifiers\.json is no valid JSON"),
        ('["<a_1>"]', "must hold one JSON object"),
        ('{"x": ["<a_1>"]}', "item 'x' is not one of the 2 items of the catalogue"),
        ('{"i": ["<a_1>"], "i": ["<a_2>"]}', "item 'i' stands there twice"),
        ('{"i": ["<a_1>"], "j": "<a_1>"}', r"items 'i' and 'j' have the same identifier \('<a_1>',\)"),
        ('{"i": []}', "item 'i': the identifier or one of its tokens is empty"),
        ('{"i": ""}', "item 'i': the identifier or one of its tokens is empty"),
        ('{"i": ["<a_1>", ""]}', "one of its tokens is empty"),
        ('{"i": [3]}', "must be a list of tokens"),
        ('{"i": {"a": 1}}', "must be a list of tokens"),
        ('{"i": null}', "must be a list of tokens"),
        ('{"i": "a_1 b_2"}', "is no row of tokens like"),
        ('{"i": ["<a_1>"]}', "no identifier for 1 items, such as 'j'"),
    ],
)
def test_a_wrong_file_of_identifiers_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "identifiers.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_item_identifiers(path, ["i", "j"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_item_identifiers(tmp_path / "nowhere", ["i"])


def test_an_identifier_may_be_the_beginning_of_another_and_be_written_either_way(tmp_path: Path) -> None:
    path = tmp_path / "identifiers.json"
    path.write_text('{"i": "<a_1><b_2>", "j": ["<a_1>"]}')
    assert load_item_identifiers(path, ["j", "i"]) == [("<a_1>",), ("<a_1>", "<b_2>")]


def carried_index(vocab_size: int) -> ItemIndex:
    # Item 1 carries a pretrained token, too; item 2 one code twice.
    return ItemIndex(np.array([[vocab_size, vocab_size + 2], [vocab_size + 1, 7], [vocab_size, vocab_size]]))


def test_a_code_starts_from_the_mean_of_the_titles_of_the_items_that_carry_it(model: T5) -> None:
    grown = grow(model, TITLES, identifiers=carried_index(30))
    assert grown.config.num_added_tokens == 3
    tables = tables_of(model, grown)
    for number, (table, rows) in enumerate(tables):
        means = np.stack([table.astype(np.float64)[title].mean(0) for title in TITLES])
        carried = np.stack([means[carriers].mean(0) for carriers in ([0, 2], [1], [0])])
        wanted = expected(table, carried, number == len(tables) - 1)
        np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-6)
    random = grow(model, None, "random", jax.random.key(0), carried_index(30))
    assert random.item_embedding.embedding.shape == (3, 16)


def test_identifiers_that_do_not_belong_to_the_model_or_the_titles_are_named(model: T5) -> None:
    for vocab_size in (31, 4):
        with pytest.raises(ValueError, match="must be all from 30"):
            grow(model, TITLES, identifiers=carried_index(vocab_size))
    with pytest.raises(ValueError, match="has 2 titles, identifiers 3 items"):
        grow(model, TITLES[:2], identifiers=carried_index(30))
    with pytest.raises(ValueError, match="only init='random' with identifiers can do without"):
        grow(model, None, identifiers=carried_index(30))
    with pytest.raises(ValueError, match="only init='random' with identifiers can do without"):
        grow(model, None, "random", jax.random.key(0))


@pytest.mark.parametrize("kind", ["t5", "decoder"])
@pytest.mark.parametrize("codes", [False, True], ids=["a token an item", "codes"])
def test_grown_models_and_tokenizers_survive_saving_and_loading(
    kind: str, codes: bool, tokenizer: Any, tmp_path: Path
) -> None:
    size = len(tokenizer)
    sizes: dict[str, Any] = {"vocab_size": size, "d_model": 16, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    if kind == "t5":
        base: Any = T5.create(T5Config(**sizes, d_kv=4, num_decoder_layers=1), jax.random.key(0))
    else:
        values = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
        base = from_config({"model_type": "llama", "vocab_size": size, **values}, jax.random.key(0))
    if codes:
        index = add_identifier_tokens(tokenizer, IDENTIFIERS, size)
        grown = grow(base, [[5, 6], [7], [8, 9], [3]], identifiers=index)
    else:
        add_item_tokens(tokenizer, ["B01", "B02", "b01"], size)
        grown = grow(base, TITLES)
    assert type(grown) is type(base)
    save(grown, tokenizer, tmp_path / "grown")
    values = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert (values["gems_base_vocab_size"], values["vocab_size"]) == (size, len(tokenizer))
    model, loaded = load(tmp_path / "grown")
    assert type(model) is type(base)
    assert model.config.num_added_tokens == len(tokenizer) - size
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Param), nnx.state(grown, nnx.Param))
    if codes:
        np.testing.assert_array_equal(index_identifiers(loaded, IDENTIFIERS).token_ids, index.token_ids)
    else:
        encoded_between(loaded, loaded.convert_tokens_to_ids([item_token(name) for name in ("B01", "B02", "b01")]))


@needs_shared
@pytest.mark.parametrize(("name", "rows"), [("t5_small", 32128), ("qwen3", 151936), ("llama2", 32000)])
def test_no_stray_token_stands_between_the_items_and_codes_of_real_tokenizers(
    name: str, rows: int, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(SHARED / "data" / "tokenizers" / name)
    ids = add_item_tokens(tokenizer, ["B01", "B02", "b01"], rows)
    assert ids == [rows, rows + 1, rows + 2]
    index = add_identifier_tokens(tokenizer, IDENTIFIERS)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, load_tokenizer(tmp_path)):
        encoded_between(each, ids)
        for separator in ("", " "):
            text = separator.join(code for identifier in IDENTIFIERS for code in identifier)
            found = each(text, add_special_tokens=False)["input_ids"]
            assert found == [token for row in index.token_ids.tolist() for token in row if token >= 0]


def text_batches(rows: int = 24) -> list[dict[str, np.ndarray]]:
    ids = np.random.default_rng(0).integers(3, 30, (rows, 9))
    mask = np.ones_like(ids)
    return [
        {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids, "labels": ids[:, ::-1], "label_mask": mask}
    ]


def with_constant_states(model: T5) -> T5:
    """A model whose final states have much in common, as those of trained ones do."""
    params = params_of(model)
    rows = params["token_embedding/embedding"]
    params["token_embedding/embedding"] = rows + 3 * jax.random.normal(jax.random.key(5), rows[:1].shape)
    return T5.from_params(model.config, params)


@pytest.mark.parametrize("count", [3, 3000])
def test_lowered_items_add_to_the_loss_on_general_text_what_they_may_however_many_they_are(
    model: T5, count: int
) -> None:
    grown = grow(with_constant_states(model), [TITLES[number % 3] for number in range(count)])
    batches = text_batches()
    found = lower_item_logits(grown, batches, most=1e-3)

    def added(model: T5) -> float:
        logits = np.asarray(model(**{name: batches[0][name] for name in list(batches[0])[:3]}), np.float64)
        whole, base = (np.log(np.exp(each).sum(-1)) for each in (logits, logits[..., :30]))
        return float((whole - base).mean())

    assert added(grown) == pytest.approx(found.before, rel=1e-3)
    assert found.before > 0.01
    assert added(found.model) == pytest.approx(1e-3, rel=0.01)
    # Items are told apart as before: what their rows do not have in common stays.
    before, after = (tables_of(model, each)[-1][1] for each in (grown, found.model))
    offset = before - after
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:1], offset.shape), atol=1e-5)
    assert np.linalg.norm(offset[0]) > 0.1
    again = lower_item_logits(found.model, batches, most=2e-3)
    assert again.nats == 0
    np.testing.assert_array_equal(tables_of(model, again.model)[-1][1], after)


def test_states_that_no_direction_lowers_are_lowered_as_far_as_it_goes() -> None:
    # At one token of three the offset raises the logit.
    nats = smallest_offset(np.ones(3), np.array([1.0, 1.0, -1.0]), most=1e-6)
    odds = np.log(np.expm1(1.0))
    mean = [np.logaddexp(0, odds - each * np.array([1, 1, -1])).mean() for each in (nats - 0.01, nats, nats + 0.01)]
    assert mean[1] <= min(mean)


def test_items_that_cannot_be_lowered_are_named(model: T5) -> None:
    with pytest.raises(ValueError, match="no items whose logits"):
        lower_item_logits(model, text_batches())
    grown = grow(model, TITLES)
    with pytest.raises(ValueError, match="above 0; got 0"):
        lower_item_logits(grown, text_batches(), most=0)
    batch = text_batches(1)[0]
    with pytest.raises(ValueError, match="no label token"):
        lower_item_logits(grown, [batch | {"label_mask": 0 * batch["label_mask"]}])
