"""TIGER beside the model: what it reads, what it minimises, what it learns, and what its search ranks.

Most of its seconds go into a fixed rule that it has to learn and into compiling its search: nothing else shows that
identifiers, training and search belong together.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixed_round import N, shop
from flax import nnx

from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.rankers import TigerConfig
from gems_jax.evaluation.baselines import baselines
from gems_jax.evaluation.simple_rankers import simple_rankers
from gems_jax.neural_rankers.tiger import TrainedTiger, identifiers_of, tiger_scorer, train_tiger

SMALL = TigerConfig(
    width=32,
    layers=1,
    heads=2,
    dropout=0.05,
    levels=2,
    codebook_size=6,
    max_length=2,
    batch_size=64,
    learning_rate=1e-2,
    epochs=12,
    patience=12,
)
OPTIONS = EvaluateConfig(baselines=("popularity", "tiger"), tiger=SMALL)
VECTORS = np.random.default_rng(3).standard_normal((N, 5)).astype(np.float32)


def read(texts: list[str]) -> np.ndarray:
    """Vectors of texts that name their item at the end."""
    return VECTORS[[int(text.split()[-1]) for text in texts]]


@pytest.fixture(scope="module")
def trained() -> TrainedTiger:
    dataset = shop(40, negatives=9)
    return train_tiger(VECTORS, dataset.table("train", "rec"), dataset.table("valid", "rec"), SMALL)


def test_a_fixed_rule_is_learnt_where_popularity_finds_nothing() -> None:
    dataset = shop(negatives=9)
    sampled = dataset.table("test", "rec")
    rankers = baselines(OPTIONS, dataset, read)
    among = {"all": dataclasses.replace(sampled, negatives=None), "sampled": sampled}
    found = {kind: simple_rankers(dataset, {"rec": table}, 0, rankers) for kind, table in among.items()}
    for kind in among:
        assert found[kind]["TIGER"]["rec"]["mrr@5"] > 0.9, kind
    assert found["all"]["popularity"]["rec"]["hit@5"] < 0.5
    settings = found["all"]["TIGER"]["rec"]["settings"]
    assert settings == found["sampled"]["TIGER"]["rec"]["settings"]  # trained once for both
    assert (settings["width"], settings["levels"], settings["seed"]) == (32, 2, 0)
    assert 1 <= settings["best_epoch"] <= settings["epochs"] <= 12
    assert settings["transitions"] == 5 * 160
    assert settings["valid_ndcg@10"] > 0.8


def test_no_two_items_share_an_identifier_and_items_alike_begin_alike() -> None:
    pairs = np.repeat(VECTORS[:12] * 10, 2, axis=0)
    items, facts = identifiers_of(pairs, dataclasses.replace(SMALL, codebook_size=12))
    tokens = items.token_ids
    assert len(np.unique(tokens, axis=0)) == N
    assert (tokens[::2, 0] == tokens[1::2, 0]).all()
    assert facts["moved"] == 12
    # Each level has tokens of its own, behind the two with a role.
    assert tokens[:, 0].min() >= 2
    assert tokens[:, 0].max() < 14 <= tokens[:, 1].min()
    assert tokens[:, 1].max() < 26


def test_scores_are_the_mean_log_probabilities_of_identifier_and_end(trained: TrainedTiger) -> None:
    table = shop(4, negatives=9).table("test", "rec")
    scores = tiger_scorer(trained, table, dataclasses.replace(SMALL, beams=N))(np.array([2, 0]), None)
    tokens = trained.items.token_ids
    for place, row in enumerate((2, 0)):
        history = tokens[table.history_of(row)[-2:]].reshape(-1)
        inputs = jnp.asarray([[*history, 1]] * N)
        logits = trained.model(inputs, decoder_input_ids=np.pad(tokens, ((0, 0), (1, 0))))
        likely = np.asarray(jax.nn.log_softmax(logits), np.float64)
        answers = np.pad(tokens, ((0, 0), (0, 1)), constant_values=1)
        by_hand = np.take_along_axis(likely, answers[..., None], axis=2)[..., 0].mean(axis=1)
        np.testing.assert_allclose(scores[place], by_hand, atol=1e-4)


def test_what_the_search_does_not_find_comes_last_and_removed_items_never(trained: TrainedTiger) -> None:
    table = shop(4, negatives=9).table("test", "rec")
    scorer = tiger_scorer(trained, table, SMALL)
    whole, candidates = scorer(np.arange(4), None), table.candidates()
    assert (np.isfinite(whole).sum(axis=1) == SMALL.beams).all()
    # Of candidates that are no more than beams all are found, with the scores that they have in the catalogue.
    some = scorer(np.arange(4), candidates)
    in_catalogue = np.take_along_axis(whole, candidates, axis=1)
    both = np.isfinite(in_catalogue)
    assert np.isfinite(some).all()
    assert both.any()
    np.testing.assert_allclose(some[both], in_catalogue[both], atol=1e-4)
    gone = int(table.target[0])
    items, _ = identifiers_of(VECTORS, SMALL, removed=[gone])
    without = tiger_scorer(trained._replace(items=items), table, SMALL)(np.arange(4), None)
    assert np.isneginf(without[:, gone]).all()
    assert np.isfinite(whole[0, gone])


def test_training_is_of_the_seed_alone_and_sees_no_validation_target() -> None:
    dataset, options = shop(30, negatives=9), dataclasses.replace(SMALL, epochs=1)
    train, valid = dataset.table("train", "rec"), dataset.table("valid", "rec")
    weights = []
    for rows, seed in ((valid, 0), (dataclasses.replace(valid, target=(valid.target + 1) % N), 0), (valid, 1)):
        made = train_tiger(VECTORS, train, rows, dataclasses.replace(options, seed=seed))
        weights.append(np.asarray(nnx.state(made.model, nnx.Param).token_embedding.embedding[...]))
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.abs(weights[0] - weights[2]).max() > 1e-3


def test_what_it_cannot_be_trained_on_is_named() -> None:
    dataset = shop(10, negatives=9)
    train, valid = dataset.table("train", "rec"), dataset.table("valid", "rec")
    with pytest.raises(ValueError, match="needs validation rows"):
        train_tiger(VECTORS, train, valid.take([]), SMALL)
    with pytest.raises(ValueError, match="needs training rows with histories"):
        train_tiger(VECTORS, train.take([]), valid, SMALL)
    with pytest.raises(ValueError, match="width 32 must be divisible by its 3 heads"):
        train_tiger(VECTORS, train, valid, dataclasses.replace(SMALL, heads=3))
    with pytest.raises(ValueError, match=r"24 items need as many identifiers: .*codebook_size 4 make 16"):
        train_tiger(VECTORS, train, valid, dataclasses.replace(SMALL, codebook_size=4))
    # In an evaluation the other rankers stay.
    found = simple_rankers(dataset, {"rec": dataset.table("test", "rec")}, 0, baselines(OPTIONS, dataset))
    assert "reads texts with the base model" in found["TIGER"]["rec"]["missing"]
    assert "hit@10" in found["popularity"]["rec"]
