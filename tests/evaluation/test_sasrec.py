"""SASRec beside the model: what it looks at, what it minimises, what it learns, and from which rows.

Half of its seconds go into a fixed rule that it has to learn: nothing else shows that all parts work together.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixed_round import N, shop
from flax import nnx

from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.rankers import SasrecConfig
from gems_jax.data.dataset.tables import Dataset, Row, Table
from gems_jax.evaluation.baselines import baselines
from gems_jax.evaluation.simple_rankers import simple_rankers
from gems_jax.neural_rankers.sasrec import SasRec, cross_entropy
from gems_jax.neural_rankers.sasrec_training import sasrec_scorer, train_sasrec
from gems_jax.neural_rankers.sequences import training_sequences

SMALL = SasrecConfig(
    width=16, layers=1, heads=2, dropout=0.1, max_length=6, batch_size=32, learning_rate=1e-2, epochs=25
)

OPTIONS = EvaluateConfig(baselines=("popularity", "sasrec"), sasrec=SMALL)


@pytest.fixture(scope="module")
def model() -> SasRec:
    return SasRec(N, width=8, layers=2, heads=2, max_length=6, rngs=nnx.Rngs(0))


def test_a_place_knows_nothing_of_later_items_and_all_of_earlier_ones(model: SasRec) -> None:
    sequences = np.array([[-1, 3, 7, 1, 9, 2]])
    changed = np.array([[-1, 3, 7, 1, 4, 20]])
    one, other = np.asarray(model.scores(sequences)), np.asarray(model.scores(changed))
    np.testing.assert_array_equal(one[0, 1:4], other[0, 1:4])
    assert np.abs(one[0, 4:] - other[0, 4:]).max(axis=1).min() > 1e-3
    earlier = np.asarray(model.scores(np.array([[-1, 8, 7, 1, 9, 2]])))
    assert np.abs(one[0, 1:] - earlier[0, 1:]).max(axis=1).min() > 1e-6


def test_what_stands_before_the_first_item_has_no_effect(model: SasRec) -> None:
    long, short = (np.asarray(model.scores(np.array([items])))[0, -1] for items in ([-1, -1, -1, -1, 5, 2], [5, 2]))
    np.testing.assert_allclose(long, short, atol=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_whole_catalogue(model: SasRec) -> None:
    sequences = np.array([[-1, 3, 7], [2, 5, 1], [-1, -1, 4]])
    targets = np.array([[-1, 7, 11], [5, -1, 0], [-1, -1, 23]])
    logits = np.asarray(model.scores(sequences), np.float64)
    by_hand = [
        np.log(np.exp(logits[row, place]).sum()) - logits[row, place, targets[row, place]]
        for row in range(3)
        for place in range(3)
        if targets[row, place] >= 0
    ]
    assert float(cross_entropy(model, sequences, targets)) == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert float(cross_entropy(model, sequences, np.full((3, 3), -1))) == 0.0


def test_dropout_is_of_the_key_alone(model: SasRec) -> None:
    sequences = jnp.array([[2, 5, 1]])
    states = [model.states(sequences, 0.5, None if seed is None else jax.random.key(seed)) for seed in (None, 0, 0, 1)]
    plain, one, again, other = map(np.asarray, states)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - plain).max() > 1e-3
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(plain, np.asarray(model.states(sequences)))


def test_a_transition_of_a_user_is_learnt_from_once_with_all_that_stands_before_it() -> None:
    items = [4, 9, 2, 7, 1, 3]
    rows = [Row("ann", items[max(0, place - 3) : place], items[place]) for place in range(1, 6)]
    # Another user's same pair is a transition of its own; a row without a history says nothing.
    rows += [Row("bob", [4], 9), Row("cy", [], 8)]
    inputs, targets = training_sequences(Table.from_rows("rec", rows), 3, 10)
    found = sorted(
        (tuple(x for x in row[: place + 1].tolist() if x >= 0), int(goal[place]))
        for row, goal in zip(inputs, targets, strict=True)
        for place in np.flatnonzero(goal >= 0)
    )
    windows = [(tuple(items[max(0, place - 3) : place]), items[place]) for place in range(1, 6)]
    assert found == sorted([*windows, ((4,), 9)])
    # The first three places of a row hold three rows.
    assert len(inputs) == 4


def test_a_fixed_rule_is_learnt_where_popularity_finds_nothing() -> None:
    dataset = shop()
    tables = {"rec": dataset.table("test", "rec")}
    found = simple_rankers(dataset, tables, 0, baselines(OPTIONS, dataset))
    assert found["SASRec"]["rec"]["mrr@5"] > 0.97
    assert found["popularity"]["rec"]["hit@5"] < 0.5
    settings = found["SASRec"]["rec"]["settings"]
    assert (settings["width"], settings["layers"], settings["seed"]) == (16, 1, 0)
    assert 1 <= settings["best_epoch"] <= settings["epochs"] <= 25
    assert settings["steps"] == 5 * settings["epochs"]
    assert settings["valid_ndcg@10"] > 0.97


def test_training_is_of_the_seed_alone_and_sees_no_validation_or_test_target() -> None:
    dataset, options = shop(40), dataclasses.replace(SMALL, epochs=2)
    train, valid = dataset.table("train", "rec"), dataset.table("valid", "rec")
    weights = []
    for rows, seed in ((valid, 0), (dataclasses.replace(valid, target=(valid.target + 1) % N), 0), (valid, 1)):
        # One epoch: nothing to choose between.
        trained = train_sasrec(train, rows, N, dataclasses.replace(options, seed=seed, epochs=1))
        weights.append(np.asarray(trained.model.items[...]))
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.abs(weights[0] - weights[2]).max() > 1e-3


def test_it_ends_when_validation_rows_get_no_better_and_keeps_its_best_epoch() -> None:
    dataset = shop(40)
    valid = dataset.table("valid", "rec")
    # Targets that no rule gives: chance decides the best epoch.
    wrong = dataclasses.replace(valid, target=np.random.default_rng(1).integers(0, N, len(valid)).astype(np.int32))
    options = dataclasses.replace(SMALL, epochs=25, patience=2)
    trained = train_sasrec(dataset.table("train", "rec"), wrong, N, options)
    facts = trained.facts
    assert facts["epochs"] == facts["best_epoch"] + 2 < 25
    again = train_sasrec(
        dataset.table("train", "rec"), wrong, N, dataclasses.replace(options, epochs=facts["best_epoch"])
    )
    np.testing.assert_array_equal(np.asarray(trained.model.items[...]), np.asarray(again.model.items[...]))


def test_candidates_have_the_scores_that_they_have_in_the_catalogue(model: SasRec) -> None:
    table = shop(20).table("test", "rec")
    scorer, rows = sasrec_scorer(model, table, 6), np.array([3, 0, 7])
    whole = scorer(rows, None)
    candidates = np.random.default_rng(0).integers(0, N, (3, 5))
    np.testing.assert_allclose(scorer(rows, candidates), np.take_along_axis(whole, candidates, 1), atol=1e-5)


def test_what_it_cannot_be_trained_on_is_named() -> None:
    dataset = shop(10)
    train, valid = dataset.table("train", "rec"), dataset.table("valid", "rec")
    with pytest.raises(ValueError, match="needs validation rows"):
        train_sasrec(train, valid.take([]), N, SMALL)
    with pytest.raises(ValueError, match="needs training rows with histories"):
        train_sasrec(train.take([]), valid, N, SMALL)
    with pytest.raises(ValueError, match="width 16 must be divisible by its 3 heads"):
        train_sasrec(train, valid, N, dataclasses.replace(SMALL, heads=3))
    # In an evaluation the other rankers stay.
    without = Dataset("shop", dataset.items, {key: table for key, table in dataset.tables.items() if key[0] != "valid"})
    tables = {"rec": dataset.table("test", "rec")}
    found = simple_rankers(without, tables, 0, baselines(OPTIONS, without))
    assert "has no table valid/rec" in found["SASRec"]["rec"]["missing"]
    assert "hit@10" in found["popularity"]["rec"]
