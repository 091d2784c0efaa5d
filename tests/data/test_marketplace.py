"""The made-up marketplace: the same from the same seed, learnable, and with users whose tasks disagree."""

import re

import numpy as np
import pytest

from gems_jax.data.sources.synthetic import marketplace
from gems_jax.data.sources.synthetic.marketplace_catalogue import DEPARTMENTS, make_products
from gems_jax.data.sources.synthetic.typed_queries import type_query
from gems_jax.evaluation.simple_rankers import simple_rankers


@pytest.fixture(scope="module")
def market():
    return marketplace.generate()


def departments(dataset):
    per_department = len(dataset.items) // len(DEPARTMENTS)
    return np.arange(len(dataset.items)) // per_department


def test_the_same_seed_gives_the_same_marketplace_and_another_another():
    first, second, other = (marketplace.load(seed, num_users=30) for seed in (3, 3, 4))
    for key, table in first.tables.items():
        np.testing.assert_array_equal(table.history, second.tables[key].history)
        np.testing.assert_array_equal(table.target, second.tables[key].target)
        assert table.queries == second.tables[key].queries
        if table.negatives is not None:
            np.testing.assert_array_equal(table.negatives, second.tables[key].negatives)
    assert first.tables["train", "src"].queries != other.tables["train", "src"].queries


def test_catalogue_is_readable_and_titles_are_unique(market):
    dataset, _ = market
    titles = dataset.titles()
    assert len(set(titles)) == len(titles) == 360
    assert all(re.fullmatch(r"[a-z ]+ by [A-Z][a-z]+", title) for title in titles)


def test_histories_have_four_to_twelve_items_that_were_not_taken_again(market):
    dataset, _ = market
    for table in dataset.tables.values():
        lengths = np.diff(table.offsets)
        assert lengths.min() >= 4
        assert lengths.max() == 12
        assert all(table.target[row] not in table.history_of(row) for row in range(0, len(table), 17))


def test_the_two_test_rows_of_a_user_share_their_history(market):
    dataset, tastes = market
    rec, src = dataset.table("test", "rec"), dataset.table("test", "src")
    assert rec.user_ids == src.user_ids == list(tastes)
    np.testing.assert_array_equal(rec.history, src.history)
    assert all(src.queries)
    assert not any(rec.queries)


def test_test_targets_are_never_seen_in_training(market):
    dataset, _ = market
    seen: dict[str, set[int]] = {}
    for task in dataset.tasks:
        table = dataset.table("train", task)
        for row, user in enumerate(table.user_ids):
            seen.setdefault(user, set()).update([*table.history_of(row).tolist(), int(table.target[row])])
    for split in ("valid", "test"):
        for task in dataset.tasks:
            table = dataset.table(split, task)
            assert not any(int(t) in seen[u] for u, t in zip(table.user_ids, table.target, strict=True))


def test_negatives_leave_out_what_the_same_query_led_to(market):
    dataset, _ = market
    led_to: dict[str, set[int]] = {}
    for (_, task), table in dataset.tables.items():
        if task == "src":
            for query, target in zip(table.queries, table.target, strict=True):
                led_to.setdefault(query, set()).add(int(target))
    table = dataset.table("test", "src")
    for query, negatives in zip(table.queries, table.negatives, strict=True):
        assert not led_to[query] & set(negatives.tolist())


def test_some_users_search_for_the_opposite_of_what_they_browse(market):
    dataset, tastes = market
    department = departments(dataset)
    styles = np.array([title.split()[0] for title in dataset.titles()])
    rec, src = dataset.table("test", "rec"), dataset.table("test", "src")
    gifts = np.array([tastes[user].searches_gifts for user in src.user_ids])
    assert 0.3 < gifts.mean() < 0.6

    def within(table, rows):
        own = [department[table.target[row]] in tastes[table.user_ids[row]].departments for row in rows]
        liked = [styles[table.target[row]] in tastes[table.user_ids[row]].styles for row in rows]
        return np.mean(own), np.mean(liked)

    for table, rows in ((rec, np.flatnonzero(gifts)), (src, np.flatnonzero(~gifts))):
        own, liked = within(table, rows)
        assert own > 0.85
        assert liked > 0.4
    own, liked = within(src, np.flatnonzero(gifts))
    assert own == 0
    assert liked < 0.05


def test_history_and_query_tell_far_more_than_popularity(market):
    dataset, _ = market
    found = simple_rankers(dataset, {task: dataset.table("test", task) for task in dataset.tasks}, samples=0)
    for name, task in (("co-occurrence", "rec"), ("BM25", "src")):
        assert found["popularity"][task]["hit@10"] < 0.3
        assert found[name][task]["hit@10"] > found["popularity"][task]["hit@10"] + 0.25
    # Here people write of one thing in many words, so that former searches know more than the titles.
    by_log = found["BM25, titles and queries"]["src"]["ndcg@10"]
    assert by_log > found["BM25, stemmed"]["src"]["ndcg@10"] + 0.05
    assert found["BM25, titles and queries, popularity"]["src"]["ndcg@10"] == pytest.approx(by_log, abs=0.02)


def test_queries_look_typed():
    rng = np.random.default_rng(0)
    products = make_products(rng)
    queries = [type_query(products[n % len(products)], n % 2 == 0, rng) for n in range(2000)]
    assert all(query == query.lower() and 3 <= len(query) <= 60 for query in queries)
    assert len(set(queries)) > 600
    words = {word for product in products for word in product.title.lower().split()}
    known = [sum(word in words for word in query.split()) / len(query.split()) for query in queries]
    # Mostly words of titles, but slips, half words, other names and vague queries too.
    assert 0.5 < np.mean(known) < 0.9
    assert np.mean(np.array(known) == 0) > 0.1


def test_a_marketplace_without_users_is_an_error():
    with pytest.raises(ValueError, match="at least one user"):
        marketplace.load(num_users=0)
