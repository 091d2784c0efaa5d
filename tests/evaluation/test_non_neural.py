"""Rankers without a model: the numbers of their formulas, in any script, and none costs another."""

import json
import math
import resource

import numpy as np
import pytest

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.data.preparation.few_candidates import few_candidates
from gems_jax.data.sources.amazon import category_query
from gems_jax.data.text.words import search_terms, split_words
from gems_jax.evaluation import non_neural, simple_rankers
from gems_jax.evaluation.ranking_summary import evaluate_scorer, evaluate_scores
from gems_jax.evaluation.simple_rankers import missing_lines, not_measured

NAMES = (
    "popularity", "popularity, same task", "co-occurrence", "BM25", "BM25, stemmed", "BM25, titles and queries",
    "BM25, titles and queries, popularity",
)  # fmt: skip


def every(table):
    return np.arange(len(table))


def bm25_by_hand(documents, query, k1=1.5, b=0.75):
    """Lucene's BM25 of lists of words, as Kamphuis et al. (2020) write it."""
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        total = 0.0
        for word in query:
            holders = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
            total += idf * words.count(word) / (words.count(word) + k1 * (1 - b + b * len(words) / average))
        scores.append(total)
    return scores


@pytest.mark.parametrize(
    ("titles", "query", "best"),
    [
        (["red lamp", "blue chair", "garden hose"], "Blue CHAIR", 1),
        (["красная лампа", "синий стул", "шланг"], "Синий стул", 1),
        (["红色台灯", "蓝色椅子", "花园水管"], "水管", 2),
        (["红色台灯 LED", "蓝色椅子", "花园水管"], "水管", 2),
        (["赤いランプ", "青い椅子", "庭のホース"], "ホース", 2),
        (["빨간 램프", "파란 의자를", "호스"], "의자", 1),
        (["โคมไฟสีแดง", "เก้าอี้", "สายยาง"], "สายยางสีแดง", 2),
        (["Küche", "Kuchen", "Kü"], "KU\u0308CHE", 0),
        (["हिन्दी किताब", "लाल दीपक", "कुर्सी"], "लाल दीपक", 1),
        (["ear", "oreille l'été", "ete"], "ÉTÉ", 1),
    ],
)
def test_words_are_found_in_every_script(titles, query, best):
    items = [Item(str(number), title) for number, title in enumerate(titles)]
    table = Table.from_rows("src", [Row("u", [], 0, query, [1, 2])])
    scores = non_neural.bm25_scores(items, table, table.candidates())[0]
    assert scores.argmax() == best
    assert scores[best] > 0
    expected = bm25_by_hand([search_terms(title) for title in titles], search_terms(query))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_latin_words_and_numbers_stay_whole_and_other_marks_part_them():
    assert split_words("3M Scotch™ 12.5mm Gürtel_grün") == ["3M", "Scotch", "12", "5mm", "Gürtel", "grün"]
    assert search_terms("STRASSE Straße") == ["strasse", "strasse"]
    assert search_terms("灯") == ["灯"]
    assert search_terms("LED台灯") == ["led", "台", "灯", "台灯"]
    assert search_terms("\ud800 !?") == []


def test_category_queries_keep_words_of_every_script():
    assert category_query(["Küche & Haushalt", "Küchengeräte", "Wasserkocher"]) == "küchengeräte wasserkocher"
    assert category_query(["家居", "灯具", "台灯"]) == "灯具 台灯"
    assert category_query(["Товары", "Лампы и свет", "лампы"]) == "и свет лампы"


def shop(rng, users=40, num_items=30, negatives=6):
    def table(task, rows, with_negatives):
        made = []
        for row in range(rows):
            order = rng.permutation(num_items).tolist()
            length = int(rng.integers(0, 6))
            query = f"thing {order[7]} of {order[7] % 4}" if task == "src" else ""
            wrong = order[8 : 8 + negatives] if with_negatives else None
            made.append(Row(f"u{row % users}", order[:length], order[7], query, wrong))
        return Table.from_rows(task, made)

    tables = {("train", task): table(task, 90, False) for task in ("rec", "src")}
    tables |= {("test", task): table(task, 25, bool(negatives)) for task in ("rec", "src")}
    items = [Item(f"i{n}", f"thing {n}", f"of {n % 4}") for n in range(num_items)]
    return Dataset("shop", items, tables)


def test_co_occurrence_is_the_cosine_of_users_summed_over_the_history(monkeypatch):
    dataset = shop(np.random.default_rng(0))
    training = [dataset.table("train", task) for task in dataset.tasks]
    size = len(dataset.items)
    taken = {}
    for table in training:
        for row, user in enumerate(table.user_ids):
            taken.setdefault(user, set()).update([*table.history_of(row).tolist(), int(table.target[row])])
    count = np.zeros((size, size))
    for items in taken.values():
        for first in items:
            for second in items:
                count[first, second] += 1
    test = dataset.table("test", "rec")
    expected = np.zeros((len(test), size))
    for row in every(test):
        for item in test.history_of(row):
            for other in range(size):
                if other != item:
                    root = math.sqrt(count[item, item] * count[other, other])
                    expected[row, other] += count[item, other] / root if root else 0.0
                expected[row, other] += 1e-6 * count[other, other]
    monkeypatch.setattr(non_neural, "BLOCK", 500)  # several blocks of rows
    scorer = non_neural.co_occurrence(training, test, size)
    np.testing.assert_allclose(scorer(every(test), None), expected, atol=1e-6)
    among = test.candidates()
    by_rows = np.take_along_axis(expected, among, axis=1)
    np.testing.assert_allclose(non_neural.co_occurrence_scores(training, test, among, size), by_rows, atol=1e-6)
    np.testing.assert_array_equal(
        non_neural.popularity_scores(training, among, size), np.diagonal(count).astype(np.float32)[among]
    )


def test_a_log_of_queries_finds_what_titles_do_not_say():
    items = [Item("a", "Couch"), Item("b", "Lamp"), Item("c", "Sofa leg")]
    log = Table.from_rows("src", [Row("x", [], 0, "comfy sofa"), Row("y", [], 0, "sofa"), Row("z", [], 1, "light")])
    table = Table.from_rows("src", [Row("u", [], 0, "sofas", [1, 2]), Row("u", [], 1, "light", [0, 2])])
    documents = non_neural.titles_and_queries(items, log)
    found = non_neural.bm25(documents, table, stem=True)(every(table), None)
    words = [["couch", "comfi", "sofa", "sofa"], ["lamp", "light"], ["sofa", "leg"]]
    np.testing.assert_allclose(found, [bm25_by_hand(words, ["sofa"]), bm25_by_hand(words, ["light"])], rtol=1e-5)
    counts = non_neural.target_counts(log, 3)
    assert counts.tolist() == [2, 1, 0]
    both = non_neural.with_popularity(non_neural.bm25(documents, table, stem=True), counts)
    np.testing.assert_allclose(both(every(table), None), found + np.log1p(counts), rtol=1e-6)
    among = both(every(table), table.candidates())
    np.testing.assert_allclose(among, np.take_along_axis(found + np.log1p(counts), table.candidates(), 1), rtol=1e-6)


@pytest.mark.parametrize("negatives", [6, 0])
def test_every_ranker_is_measured_against_candidates_and_the_whole_catalogue_alike(negatives):
    dataset = shop(np.random.default_rng(1), negatives=negatives)
    tables = {task: dataset.table("test", task) for task in dataset.tasks}
    found = simple_rankers.simple_rankers(dataset, tables, samples=0)
    assert tuple(found) == NAMES
    assert [sorted(tasks) for tasks in found.values()] == [["rec", "src"]] * 2 + [["rec"]] + [["src"]] * 4
    assert missing_lines(found) == []
    for tasks in found.values():
        for entry in tasks.values():
            assert entry["candidates"] == (7 if negatives else 30)
            assert 0 <= entry["hit@5"] <= entry["hit@10"] <= 1
    # Queries name the item.
    assert found["BM25"]["src"]["ndcg@10"] == 1.0


def test_the_whole_catalogue_is_ranked_by_score_and_ties_favour_nobody():
    rows = [Row(f"u{row}", [], row % 50) for row in range(2000)]
    scores = np.arange(50.0)

    def rank(of_items, rows=rows):
        return evaluate_scorer(Table.from_rows("rec", rows), non_neural.same_for_all(of_items), 50, samples=0)

    assert rank(scores)["hit@10"] == 0.2
    assert rank(scores)["mrr@20"] == pytest.approx(sum(1 / place for place in range(1, 21)) / 50)
    assert rank(np.zeros(50))["hit@10"] == pytest.approx(0.2, abs=0.03)
    assert rank(np.zeros(50)) == rank(np.zeros(50))
    for target in (0, 25, 49):
        assert rank(np.zeros(50), [Row("u", [], target)] * 2000)["hit@10"] == pytest.approx(0.2, abs=0.03)
    # Equal ones at the cut alone: of the 45 at zero each is among the ten as often as another.
    half = rank(np.where(np.arange(50) < 5, 1.0, 0.0))
    assert half["hit@5"] == 0.1
    assert half["hit@10"] == pytest.approx(0.1 + 0.9 * 5 / 45, abs=0.03)
    with pytest.raises(ValueError, match="row 0 has a score that is nan"):
        rank(np.full(50, np.nan))


def test_rankers_of_candidates_keep_the_numbers_of_scores():
    dataset = shop(np.random.default_rng(2))
    table = dataset.table("test", "src")
    training = [dataset.table("train", task) for task in dataset.tasks]
    scores = non_neural.popularity_scores(training, table.candidates(), 30)
    popular = non_neural.same_for_all(non_neural.item_counts(training, 30))
    assert evaluate_scorer(table, popular, 30, samples=0) == evaluate_scores(table, scores, samples=0)


def test_a_ranker_that_fails_says_why_and_costs_no_other(monkeypatch):
    def too_large(*args):
        raise MemoryError("Unable to allocate 149. GiB")

    dataset = shop(np.random.default_rng(3))
    nameless = Dataset("shop", [Item(item.item_id, "★ ♥") for item in dataset.items], dataset.tables)
    monkeypatch.setattr(non_neural, "co_occurrence", too_large)
    tables = {task: dataset.table("test", task) for task in dataset.tasks}
    found = simple_rankers.simple_rankers(nameless, tables, samples=0)
    assert found["co-occurrence"]["rec"] == {
        "missing": "there is not enough memory for it (Unable to allocate 149. GiB)"
    }
    no_words = "ValueError: no title of the catalogue has a letter or a number: there are no words to search"
    assert found["BM25"]["src"] == {"missing": no_words}
    assert "hit@10" in found["popularity"]["rec"]
    assert "hit@10" in found["BM25, titles and queries"]["src"]  # the queries have words
    assert missing_lines(found) == [
        "co-occurrence, rec: not measured (there is not enough memory for it (Unable to allocate 149. GiB))",
        f"BM25, src: not measured ({no_words})",
        f"BM25, stemmed, src: not measured ({no_words})",
    ]
    pending = not_measured(tables)
    assert {name: set(tasks) for name, tasks in pending.items()} == {name: set(t) for name, t in found.items()}
    assert len(missing_lines(pending)) == 9
    json.dumps(found, allow_nan=False)


def test_items_taken_together_are_counted_without_a_square_of_the_catalogue():
    size, rng = 200_000, np.random.default_rng(0)

    def table(rows):
        histories = rng.integers(0, size, (rows, 5))
        return Table.from_rows("rec", [Row(f"u{row}", histories[row], row, "", [9, 8]) for row in range(rows)])

    training, test = table(50), table(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scorer = non_neural.co_occurrence([training], test, size)
    assert scorer(every(test), test.candidates()).shape == (5, 3)
    assert scorer(every(test), None).shape == (5, size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB; the square has 160 GB


def test_few_candidates_are_told_with_what_chance_finds():
    few = {"rec": {"hit@10": 1.0, "candidates": 6}, "src": {"hit@10": 0.5, "candidates": 15}, "general": {"loss": 1.0}}
    assert few_candidates(few, str.upper) == [
        "REC: each row has 6 candidates, so that a random order has hit@5 0.83, hit@10 1.00, hit@20 1.00; more of them "
        "(data.num_negatives) say more",
        "SRC: each row has 15 candidates, so that a random order has hit@10 0.67, hit@20 1.00; more of them "
        "(data.num_negatives) say more",
    ]
    assert few_candidates({"rec": {"candidates": 100}, "name": "run"}) == []
