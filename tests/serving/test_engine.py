"""Answers to requests: that they are rankings of the items a request allows, and that no batch compiles anew."""

import jax
import numpy as np
import pytest
import shop
from shop import Shop

from gems_jax.items.tokens import ItemIndex
from gems_jax.ranking.rank_items import rank_items
from gems_jax.serving.catalogue import check_task
from gems_jax.serving.prompts import padded
from gems_jax.serving.requests import Request, RequestError

EVERY = range(len(shop.IDENTIFIERS))


@pytest.fixture(scope="module", params=[shop.t5, shop.decoder], ids=["t5", "decoder"])
def made(request: pytest.FixtureRequest) -> Shop:
    return Shop(request.param)


@pytest.fixture(scope="module")
def t5_shop() -> Shop:
    return Shop(shop.t5)


def as_pairs(answer):
    return [(item.item_id, item.score) for item in answer.items]


def whole_ranking(made, *prompts):
    """Item numbers and scores of the whole catalogue for each prompt, by a search as wide as it is."""
    inputs = padded(prompts, 2, 20, 0)
    ids, scores = rank_items(made.model, inputs, made.items, k=16, beams=16)
    return [
        [(item, score) for item, score in zip(row, values, strict=True) if item >= 0]
        for row, values in zip(np.asarray(ids).tolist(), np.asarray(scores).tolist(), strict=True)
    ]


def some_of(ranking, numbers, k):
    return [(f"B{item}", pytest.approx(score, abs=1e-5)) for item, score in ranking if item in numbers][:k]


@pytest.fixture(scope="module")
def rankings(made):
    """Of the whole catalogue, after ann's history: what is recommended, and what a red shoe finds."""
    end = made.model.layout == "encoder_decoder"
    return whole_ranking(made, made.prompt([3], [4, 1, 4, 6], end), made.prompt([6, 4, 5, 3], [4, 1, 4, 6], end))


def test_an_answer_is_the_ranking_of_the_allowed_items(made, rankings):
    choices = [
        (None, None),
        (None, [0, 2, 5]),
        ([0, 2, 7, 8, 10, 6], None),
        ([1, 0, 3, 4, 5, 8], [0, 3]),
        (None, [3, 0, 9, 8, 7, 2, 5, 10]),
        ([11], None),
        ([1, 4], None),
        ([], None),
    ]
    named = lambda numbers: None if numbers is None else [f"B{number}" for number in numbers]  # noqa: E731
    for allow, deny in choices:
        values = {"user": "ann", "k": 9, "allow": named(allow), "deny": named(deny)}
        recommended, searched = made.engine.rank([Request.of(values), Request.of(values | {"query": "red shoe"})])
        left = {n for n in EVERY if (allow is None or n in allow) and n not in (deny or [])}
        assert as_pairs(recommended) == some_of(rankings[0], left - {4, 1, 6}, 9), (allow, deny)
        assert as_pairs(searched) == some_of(rankings[1], left, 9), (allow, deny)
        assert [item.known for item in searched.items] == [
            item.item_id in ("B4", "B1", "B6") for item in searched.items
        ]


def test_a_narrow_search_is_that_of_a_catalogue_of_the_allowed_items(t5_shop):
    """One that leaves out what is found, in a search of all, would have lost beams to it."""
    denied, left = [9, 2, 7, 8], [0, 1, 3, 4, 5, 6, 10, 11]
    prompt = padded([t5_shop.prompt([6, 4, 3], [4, 0], True)], 1, 20, 0)
    ids, scores = rank_items(t5_shop.model, prompt, ItemIndex(t5_shop.items.token_ids[left]), k=2, beams=2)
    engine = t5_shop.again(beams=2)
    (answer,) = engine.rank([Request("src", history=("B4", "B0"), query="red", k=2, deny=[f"B{n}" for n in denied])])
    assert as_pairs(answer) == [
        (f"B{left[item]}", pytest.approx(score, abs=1e-5))
        for item, score in zip(np.asarray(ids)[0].tolist(), np.asarray(scores)[0].tolist(), strict=True)
    ]


def test_many_requests_are_answered_in_their_order_whatever_their_lengths(t5_shop):
    histories = [["B4"] * count for count in (6, 0, 3, 1, 9, 2, 5)]
    requests = [Request.of({"history": history, "query": "red", "k": 3}) for history in histories]
    together = t5_shop.engine.rank(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = t5_shop.engine.rank([request])
        assert as_pairs(alone) == [(item, pytest.approx(score, abs=1e-5)) for item, score in as_pairs(answer)]
    assert t5_shop.engine.rank([]) == []


def test_someone_the_dataset_does_not_know_is_answered_as_one_with_the_same_history(t5_shop):
    known, cold = t5_shop.engine.rank([Request("rec", user="ann"), Request("rec", history=("B4", "B1", "B4", "B6"))])
    assert known.items == cold.items


def test_after_a_warm_up_no_batch_compiles_a_program(t5_shop):
    compiled = []
    programs = t5_shop.engine.warm_up()
    assert programs == 2  # of one row and of three, each of 20 tokens
    listener = lambda event, *_, **__: compiled.append(event) if "compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for count in (1, 2, 3, 7):
            some = [
                {"history": ["B0"] * (n % 5), "query": "red " * (n + 1), "deny": ["B1", "B2"][:n], "k": 1 + n % 4}
                for n in range(count)
            ]
            t5_shop.engine.rank([*map(Request.of, some), Request("rec", user="bob", allow=("B7",), k=4)])
        assert compiled == []
        t5_shop.engine.rank([Request("rec", user="bob", k=5)])  # wider than the usual search
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize(
    ("values", "field", "why"),
    [
        ({"user": "anne"}, "user", "no user 'anne'; it has 2, such as ['ann']"),
        ({"history": ["B1", "x", "y"]}, "history", "the catalogue has no item 'x', 'y'; it has 12, such as 'B0'"),
        ({"user": "ann", "deny": ["B99"]}, "deny", "no item 'B99'"),
        ({"user": "ann", "allow": [f"x{n}" for n in range(9)]}, "allow", "'x4' and 4 more"),
        ({}, "user", "give a user of the dataset, or the history of someone else"),
        ({"task": "src", "user": "ann"}, "query", "needs a query"),
        ({"task": "rec", "user": "ann", "query": "red"}, "query", "has no query"),
        ({"user": "ann", "query": "\u00a0\u200b"}, "query", "the query is empty"),
        ({"task": "chat", "user": "ann"}, "task", "never tuned for task 'chat'"),
        ({"user": "ann", "k": 0}, "k", "from 1 to 1,000, got 0"),
        ({"user": "ann", "k": 1001}, "k", "from 1 to 1,000, got 1001"),
        ({"user": "ann", "k": "10"}, "k", "got '10'"),
        ({"user": "ann", "history": ["B1"]}, "history", "either user or history"),
        ({"history": "B1"}, "history", "expected a list of item ids, got 'B1'"),
        ({"user": ["ann"]}, "user", "expected text"),
        ({"user": "ann", "qeury": "red"}, "qeury", "no such field; it has task, user, history, query"),
    ],
)
def test_a_request_that_cannot_be_answered_names_the_field(t5_shop, values, field, why):
    with pytest.raises(RequestError) as caught:
        t5_shop.engine.rank([Request.of(values)])
    assert caught.value.field == field
    assert why in str(caught.value)


def test_fewer_items_than_asked_for_are_all_there_are(t5_shop):
    (answer,) = t5_shop.engine.rank([Request("rec", user="bob", k=1000)])
    assert sorted(item.item_id for item in answer.items) == sorted(f"B{n}" for n in EVERY if n not in (0, 2, 3))


def test_ids_may_be_whole_numbers():
    assert Request.of({"user": 7, "k": 3, "deny": [12, "B1"]}) == Request("rec", user="7", k=3, deny=("12", "B1"))


def test_a_query_that_the_model_cannot_read_whole_is_told(t5_shop):
    queries = ["red shoe", "red shoe " * 20, "\U0001f389"]
    answers = t5_shop.engine.rank([Request.of({"user": "ann", "query": query, "k": 1}) for query in queries])
    assert [list(answer.notes) for answer in answers] == [
        [],
        ["the query is too long for items.max_length 20: its end is cut off and not searched for"],
        ["the model's tokenizer knows none of the characters of '\U0001f389': all such queries are one to it"],
    ]


def test_a_model_that_gives_no_numbers_is_no_ranking(t5_shop, monkeypatch):
    from gems_jax.serving import engine as module

    monkeypatch.setattr(module, "beam_search", lambda *_, **__: (np.zeros((1, 4), int), np.full((1, 4), np.nan)))
    with pytest.raises(ValueError, match="scores that are not numbers"):
        t5_shop.engine.rank([Request("rec", user="ann", k=4)])


def test_a_task_without_training_rows_is_named():
    check_task(shop.dataset(), "rec")
    with pytest.raises(RequestError, match=r"never tuned for task 'sum'.* training rows of 'rec', 'src' alone"):
        check_task(shop.dataset(), "sum")


def test_a_batch_does_not_go_through_the_names_of_all_items(t5_shop, monkeypatch):
    asked = [Request.of({"user": "ann", "query": "red </s>"}), Request.of({"user": "bob"})]
    before = [as_pairs(answer) for answer in t5_shop.engine.rank(asked)]
    monkeypatch.setattr(
        type(t5_shop.tokenizer), "added_tokens_decoder", property(lambda _: pytest.fail("all names were read"))
    )
    assert [as_pairs(answer) for answer in t5_shop.engine.rank(asked)] == before
