"""Two towers beside the model: what they rank by, what they minimise, and what training queries teach them."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.rankers import TwoTowerConfig
from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.evaluation.baselines import baselines
from gems_jax.evaluation.simple_rankers import simple_rankers
from gems_jax.identifiers.text_embeddings import text_embeddings
from gems_jax.models import T5, T5Config
from gems_jax.neural_rankers.two_tower import in_batch_loss, train_two_tower, two_tower_scorer

N, D = 30, 12


def log(rows: list[tuple[str, int]]) -> Table:
    return Table.from_rows("src", [Row(f"u{n}", [], item, query) for n, (query, item) in enumerate(rows)])


def turned_towers(seed: int = 0) -> SimpleNamespace:
    """Queries named after items; a query's vector is its item's, turned around the origin."""
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((N, D)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((D, D)))[0].astype(np.float32)
    vectors = lambda table: np.stack([items[int(query.split()[1])] @ turn for query in table.queries])  # noqa: E731
    return SimpleNamespace(items=items, queries=vectors)


def test_the_base_model_ranks_by_the_cosine_of_its_mean_states() -> None:
    titles = [f"{colour} {thing}" for colour in ("red", "blue", "old") for thing in ("lamp", "chair", "shoe")]
    tokenizer = train_tokenizer([*titles] * 3, vocab_size=400)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2
    )
    model = T5.create(config, jax.random.key(0))
    items = [Item(f"i{n}", title) for n, title in enumerate(titles)]
    table = log([("lamp red", 0), ("shoe", 2), ("lamp red", 3)])
    dataset = Dataset("shop", items, {("train", "src"): table})
    options = EvaluateConfig(baselines=("two-tower",))
    (ranker,) = baselines(options, dataset, functools.partial(text_embeddings, model, tokenizer)).values()
    scores = ranker.make(None, table)(np.arange(3), None)
    asked, found = (text_embeddings(model, tokenizer, texts).astype(np.float64) for texts in (table.queries, titles))
    by_hand = (asked @ found.T) / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(scores, by_hand, atol=1e-5)
    assert "BM25" not in baselines(options, dataset)
    # Rows without queries are not for it.
    assert not ranker.suits(Table.from_rows("rec", [Row("ann", [0], 1)]))


def test_without_a_base_model_that_is_told() -> None:
    table = log([("lamp", 0)] * 3)
    dataset = Dataset("shop", [Item("a", "lamp"), Item("b", "chair")], {("train", "src"): table})
    options = EvaluateConfig(baselines=("two-tower", "bm25"))
    found = simple_rankers(dataset, {"src": table}, 0, baselines(options, dataset))
    assert "reads texts with the base model" in found["two-tower, base model"]["src"]["missing"]
    assert "hit@5" in found["BM25"]["src"]


def test_the_loss_is_the_softmax_over_the_batch_without_what_is_right_as_well() -> None:
    rng = np.random.default_rng(0)
    queries, items, *towers = (rng.standard_normal(shape) for shape in ((5, 4), (5, 4), (4, 3), (4, 3)))
    same = np.eye(5, dtype=bool)
    same[1, 3] = True
    asked, found = queries @ towers[0], items @ towers[1]
    cosines = asked @ found.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(found, axis=1)
    likely = np.where(same & ~np.eye(5, dtype=bool), 0, np.exp(cosines / 0.1))
    by_hand = -np.mean(np.log(np.diag(likely) / likely.sum(axis=1)))
    given = [jnp.asarray(x, jnp.float32) for x in (*towers, queries, items)]
    assert float(in_batch_loss(tuple(given[:2]), *given[2:], same, 0.1)) == pytest.approx(by_hand, abs=1e-5)


def test_what_training_queries_say_holds_for_queries_of_other_words() -> None:
    towers = turned_towers()
    training = log([(f"find {item} quickly", item) for item in range(20)] * 2)
    valid, test = log([(f"get {item}", item) for item in range(20, 25)]), log([(f"get {n}", n) for n in range(25, N)])
    options = TwoTowerConfig(batch_size=20, learning_rate=3e-2, epochs=150, patience=150)
    (of_queries, of_items), facts = train_two_tower(towers, training, valid, options)
    rows = np.arange(len(test))
    found = {
        "read": two_tower_scorer(towers.queries(test), towers.items)(rows, None),
        "trained": two_tower_scorer(towers.queries(test) @ of_queries, towers.items @ of_items)(rows, None),
    }
    hits = {name: float((scores.argmax(axis=1) == test.target).mean()) for name, scores in found.items()}
    assert hits["trained"] >= 0.8 > 0.4 >= hits["read"]
    assert (facts["pairs"], facts["width"]) == (20, D)
    assert facts["steps"] == facts["epochs"] >= facts["best_epoch"] >= 1
    again, _ = train_two_tower(towers, training, valid, options)
    np.testing.assert_array_equal(again[0], of_queries)


def test_no_rows_to_train_on_are_named() -> None:
    towers, some = turned_towers(), log([("get 1", 1)])
    for training, valid in ((some, some.take([])), (some.take([]), some)):
        with pytest.raises(ValueError, match="need training rows, and validation rows"):
            train_two_tower(towers, training, valid, TwoTowerConfig())
