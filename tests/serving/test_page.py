"""The page: what it asks for, that titles are text to it, and, where there is a browser, that it works in one."""

import re
import shutil
import subprocess
import warnings
from html.parser import HTMLParser
from importlib import resources

import pytest
import shop
from serving_client import Echo, serving

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.serving.catalogue import Catalogue
from gems_jax.serving.requests import Request

MARKUP = "<img src=x onerror=alert(1)> & <b>lamp</b>"
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
    assert reached == ["token", "user", "show-user", "item", "add-item", "history", "query", "Ask"]
    assert {one["of"].get("tabindex", "0") for one in elements.found} == {"0", "-1"}
    assert [one["name"] for one in elements.found if one["of"].get("tabindex") == "-1"] == ["h2"]
    # Whatever is used or is a part of the page has a name, and what names it is there.
    labels = {one["of"]["for"]: one["text"] for one in elements.named("label")}
    assert all(labels[one["of"]["id"]].strip() for one in elements.named("input"))
    assert all(one["text"].strip() for one in elements.named("button", "legend", "summary", "th", "title"))
    assert len(elements.named("legend")) == len(elements.named("fieldset"))
    for one in [*elements.named("section", "form"), by_id["history"], by_id["notes"]]:
        label = one["of"].get("aria-label") or by_id[one["of"]["aria-labelledby"]]
        assert label
    assert {one["of"].get("scope") for one in elements.named("th")} == {"col"}
    assert [one["name"] for one in elements.named("main", "header")] == ["header", "main"]
    assert [one["name"] for one in elements.named("h1", "h2", "h3")] == ["h1", "h2"]
    # What comes of a press is told: in a line of its own, which is there from the beginning.
    assert by_id["status"]["of"]["role"] == "status"
    assert by_id["status"]["of"]["aria-live"] == "polite"
    assert 'say(answer.items.length + " items, best first.")' in script
    # Presses are those of buttons, which have keys; the name of one begins with what is written on it.
    pressed = re.findall(r'(\S+)\.addEventListener\("click"', script)
    buttons = set(re.findall(r'const (\w+) = make\("button"', script))
    ids = {f'byId("{one["of"]["id"]}")' for one in elements.named("button") if "id" in one["of"]}
    assert set(pressed) == buttons | ids
    for written, name in re.findall(r'make\("button", "([^"]+)", .*"aria-label": "([^"]+)"', script):
        assert name.strip() == written
    assert set(re.findall(r'onEnter\("(\w+)"', script)) == {"user", "item"}


def chromium():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing = "the page was not tried in a browser: there is no chromium here"
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # told, and no error
            warnings.warn(missing, stacklevel=2)
        pytest.skip(missing)
    return found


def test_a_browser_shows_answers_and_titles_with_markup_as_they_are_written(tmp_path):
    browser = chromium()
    engine = Echo()
    items = [Item(f"B{number}", MARKUP) for number in range(9)]
    tables = {("train", task): Table.from_rows(task, [Row("ann", [4], 1, "lamp")]) for task in ("rec", "src")}
    engine.catalogue = Catalogue(Dataset("shop", items, tables), shop.TEMPLATES)
    engine.name, engine.base = MARKUP, Echo("untuned")
    with serving(lambda: engine, max_k=10) as client:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=360,800", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"]
        address = f"http://{client.host}:{client.port}/#user=ann&query=lamp"
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 items, best first." in done.stdout
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; &lt;b&gt;lamp&lt;/b&gt;" in done.stdout
    assert "<img" not in done.stdout
    assert "<h2>BM25</h2>" in done.stdout
    assert "<h2>base model</h2>" in done.stdout
    assert "untuned lamp" in done.stdout
