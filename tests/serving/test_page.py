"""The page: what it asks for, that titles are text to it, and what its files say to eyes, keys and screen readers.

`test_page_in_browser.py` uses it in a browser.
"""

import itertools
import re
from html.parser import HTMLParser
from importlib import resources

import pytest
import shop
from serving_client import Echo, serving

from gems_jax.serving.requests import Request

FOLDER = resources.files("gems_jax.serving.http").joinpath("page_files")


def test_an_item_is_explained_by_leaving_out_each_item_of_the_history():
    engine = shop.Shop().engine
    asked = {"task": "src", "query": "red", "history": ["B4", "B1", "B4"], "item_id": "B7"}

    def score(history):
        request = Request("src", query="red", history=history, k=1, allow=("B7",))
        return engine.rank([request])[0].items[0].score

    whole = score(("B4", "B1", "B4"))
    changes = {"B4": whole - score(("B1",)), "B1": whole - score(("B4", "B4"))}
    with serving(lambda: engine) as client:
        status, _, found = client("POST", "/v1/explain", asked)
        assert (status, found["score"]) == (200, pytest.approx(whole, abs=1e-5))
        assert {one["item_id"]: one["change"] for one in found["history"]} == pytest.approx(changes, abs=1e-5)
        sizes = [abs(one["change"]) for one in found["history"]]
        assert sizes == sorted(sizes, reverse=True)
        status, _, found = client("POST", "/v1/explain", asked | {"item_id": "B99"})
        assert (status, found["detail"][0]["loc"]) == (422, ["item_id"])


def test_rankers_without_a_model_stand_beside_it_and_histories_can_be_chosen():
    engine = Echo()
    with serving(lambda: engine) as client:
        status, _, found = client("POST", "/v1/beside", {"task": "src", "user": "ann", "query": "thing 7", "k": 2})
        assert (status, found["BM25"][0]["item_id"]) == (200, "B7")
        # Ann has 4 and 1, Bob 0 and 2: all are as popular, and the first of the catalogue come first.
        assert [item["item_id"] for item in found["popularity"]] == ["B0", "B1"]
        beside = client("POST", "/v1/beside", {"task": "rec", "user": "bob", "k": 4, "deny": ["B1"]})[2]
        assert {name: [item["item_id"] for item in items] for name, items in beside.items()} == {"popularity": ["B4"]}
        assert client("GET", "/v1/users?like=AN")[2] == {"users": ["ann"]}
        assert [item["item_id"] for item in client("GET", "/v1/users/ann")[2]["history"]] == ["B4", "B1", "B4", "B6"]
        assert client("GET", "/v1/users/nobody")[0] == 404
        assert client("GET", "/v1/items?like=thing%2011")[2] == {"items": [{"item_id": "B11", "title": "thing 11"}]}


def test_the_base_model_stands_beside_it_with_the_same_prompts_and_trie_where_it_is_kept():
    made = shop.Shop(shop.decoder)
    untuned = shop.Shop(shop.decoder)
    untuned.model.token_embedding.embedding[...] *= -1
    engine, alone = made.again(base=untuned.model), untuned.again()
    asked = {"task": "src", "user": "ann", "query": "red", "k": 4, "deny": ["B3"]}
    (wanted,) = alone.rank([Request.of(asked)])
    (other,) = engine.rank([Request.of(asked)])
    assert [item.item_id for item in wanted.items] != [item.item_id for item in other.items]
    with serving(lambda: engine) as client:
        before = client.metric("gems_jax_compilations_total")
        status, _, found = client("POST", "/v1/beside", asked)
        assert (status, list(found)) == (200, ["base model", "popularity", "BM25"])
        assert found["base model"] == [
            item._asdict() | {"score": pytest.approx(item.score, abs=1e-5)} for item in wanted.items
        ]
        # Neither takes the other's place: the tuned model answers as before.
        answer = client("POST", "/v1/rank", asked)[2]
        assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in other.items]
        assert client.metric("gems_jax_compilations_total") == before
    with serving(lambda: made.engine) as client:
        assert list(client("POST", "/v1/beside", asked)[2]) == ["popularity", "BM25"]


def test_the_page_asks_nobody_else_and_takes_titles_as_text():
    with serving(Echo, token="secret") as client:
        for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
            status, headers, text = client("GET", path)
            assert (status, headers["content-type"].partition(";")[0]) == (200, kind)
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'")
            assert "unsafe" not in policy
            assert not re.search(r"https?://|//[a-z]", text)
    page, script = (FOLDER.joinpath(name).read_text() for name in ("index.html", "page.js"))
    assert not re.search("innerHTML|outerHTML|insertAdjacent|document.write|eval", script)
    assert 'name="viewport"' in page
    assert 'lang="en"' in page
    assert set(re.findall(r'byId\("([\w-]+)"\)', script)) <= set(re.findall(r'id="([\w-]+)"', page))


class Elements(HTMLParser):
    """The elements of a page in the order in which they are read and, by the tab key, reached.

    Attributes:
      found: of each its name, attributes, text and the names of those around it.
    """

    EMPTY = ("input", "meta", "link")

    def __init__(self, page):
        super().__init__()
        self.found, self._open = [], []
        self.feed(page)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, name, attributes):
        around = [one["name"] for one in self._open]
        self.found.append({"name": name, "of": dict(attributes), "text": "", "around": around})
        if name not in self.EMPTY:
            self._open.append(self.found[-1])

    def handle_endtag(self, name):
        assert self._open.pop()["name"] == name

    def handle_data(self, data):
        for one in self._open:
            one["text"] += data

    def named(self, *names):
        return [one for one in self.found if one["name"] in names]


def test_all_of_the_page_is_reached_by_keys_and_has_a_name_for_those_who_listen_to_it():
    page, script = (FOLDER.joinpath(name).read_text() for name in ("index.html", "page.js"))
    elements = Elements(page)
    by_id = {one["of"]["id"]: one for one in elements.found if "id" in one["of"]}
    assert len(by_id) == sum("id" in one["of"] for one in elements.found)
    # In the order of reading, which no number changes; headings are reached by the script alone.
    tabbed = [one for one in elements.found if one["name"] in ("input", "button") or one["of"].get("tabindex") == "0"]
    reached = [one["of"].get("id") or one["text"] for one in tabbed]
    assert reached == [
        *("token", "use-token", "user", "show-user", "item", "add-item", "history", "query", "submit", "back")
    ]
    assert {one["of"].get("tabindex", "0") for one in elements.found} == {"0", "-1"}
    assert [one["name"] for one in elements.found if one["of"].get("tabindex") == "-1"] == ["h2"]
    # Whatever is used or is a part of the page has a name, and what names it is there.
    labels = {one["of"]["for"]: one["text"] for one in elements.named("label")}
    assert all(labels[one["of"]["id"]].strip() for one in elements.named("input"))
    assert all(one["text"].strip() for one in elements.named("button", "legend", "th", "title"))
    assert len(elements.named("legend")) == len(elements.named("fieldset"))
    for one in [*elements.named("section", "form", "table"), by_id["history"], by_id["notes"]]:
        label = one["of"].get("aria-label") or by_id[one["of"]["aria-labelledby"]]
        assert label
    assert {one["of"].get("scope") for one in elements.named("th")} == {"col"}
    assert [one["name"] for one in elements.named("main", "header")] == ["header", "main"]
    assert [one["name"] for one in elements.named("h1", "h2", "h3")] == ["h1", "h2"]
    # What comes of a press is told: in a line of its own, which is there from the beginning.
    assert by_id["status"]["of"]["role"] == "status"
    assert by_id["status"]["of"]["aria-live"] == "polite"
    assert 'say(counted(answer.items.length, "item")' in script
    # Presses are those of buttons, which have keys; the name of one begins with what is written on it.
    pressed = re.findall(r'(\S+)\.addEventListener\("click"', script)
    buttons = set(re.findall(r'const (\w+) = make\("button"', script))
    ids = {f'byId("{one["of"]["id"]}")' for one in elements.named("button") if one["of"]["type"] == "button"}
    assert set(pressed) == buttons | ids
    for written, name in re.findall(r'make\("button", "([^"]+)", .*"aria-label": "([^"]+)"', script):
        assert name.strip() == written
    assert set(re.findall(r'onEnter\("(\w+)"', script)) == {"token", "user", "item"}


def luminance(colour):
    """Relative luminance by WCAG 2 of a colour such as #0b57a4."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_fields_stand_out_in_light_and_dark_colours():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.005
    )  # the well-known grey that is just too light
    style = FOLDER.joinpath("page.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in style.split("@media (prefers", 1))
    assert set(light) == set(dark)
    # No colour beside these, whose names are those below.
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgb|hsl", re.sub(r"--[\w-]+: #\w{6};", "", style))
    texts, behind = ("text", "quiet", "wrong", "press"), ("page", "card", "field")
    assert set(light) == {*texts, *behind, "on-press", "edge", "line"}
    for colours in (light, dark):
        pairs = [*itertools.product(texts, behind), ("on-press", "press")]
        assert {pair for pair in pairs if contrast(*(colours[name] for name in pair)) < 4.5} == set()
        assert {name for name in behind if contrast(colours["edge"], colours[name]) < 3} == set()
    # Where the keyboard is, is drawn, by one of the colours that stand out.
    assert re.search(r":focus-visible \{ outline: 3px solid var\(--press\)", style)
    assert "outline: none" not in style
