"""The page in a browser: what its user sees, presses, hears and sends. Told and skipped where there is no Chromium.

`test_page.py` has what can be read off the page's files alone.
"""

import socket

import pytest
from browser import browsing
from page_visit import (
    ANN,
    CONTRASTS,
    FOUND,
    MARKUP,
    TITLES,
    Sums,
    answered,
    columns,
    says,
    show,
    titles_of_history,
    type_into,
)
from serving_client import serving


@pytest.fixture(scope="module")
def client():
    engine = Sums(0.1)
    engine.base = Sums(-0.1)
    with serving(lambda: engine, max_k=10) as client:
        yield client


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(opened):
    opened.looks()
    opened.events.clear()
    return opened


def test_a_user_is_chosen_searched_for_and_recommended_to_beside_the_other_rankers(browser, client):
    show(browser, client)
    type_into(browser, "user", "an")
    browser.until("[...document.querySelectorAll('#users option')].map((one) => one.value).join() === 'ann'")
    type_into(browser, "user", "ann")
    browser.press("Enter")
    says(browser, "Took the 5 items of ann.")
    assert titles_of_history(browser) == [TITLES[int(item[1:])] for item in ANN]
    type_into(browser, "query", "red shoe, note")
    assert browser.run("document.getElementById('submit').innerText") == "Search"
    browser.press("Enter")
    says(browser, FOUND)
    shown = columns(browser)
    assert list(shown) == ["Tuned model", "Base model", "Popularity", "BM25"]
    assert shown == answered(client, {"task": "src", "query": "red shoe, note", "history": ANN})
    assert [row for row in shown["Tuned model"] if row[1]], "none is told to be in the history"
    assert browser.run("document.getElementById('notes').innerText") == "a note"
    type_into(browser, "query", " ")
    assert browser.run("document.getElementById('submit').innerText") == "Recommend"
    browser.run("document.getElementById('submit').click()")
    says(browser, "8 items recommended, best first.")
    shown = columns(browser)
    assert list(shown) == ["Tuned model", "Base model", "Popularity"]
    assert shown == answered(client, {"task": "rec", "history": ANN})
    assert browser.run("document.getElementById('notes').innerText") == ""


def test_a_history_is_put_together_by_words_of_titles_and_what_cannot_be_is_said(browser, client):
    show(browser, client)
    type_into(browser, "item", "shoe 1")
    browser.until("document.querySelectorAll('#items option').length === 2")
    browser.press("Enter")
    says(browser, "Several items have shoe 1 in their titles: choose one.")
    for sought, title in (("shoe 11", TITLES[11]), ("RED shoe 3", TITLES[3]), ("B0", MARKUP)):
        type_into(browser, "item", sought)
        browser.press("Enter")
        says(browser, f"Added {title}.")
    assert titles_of_history(browser) == [TITLES[11], TITLES[3], MARKUP]
    assert browser.run("document.getElementById('history-label').innerText") == "History, 3 items, oldest first"
    browser.run("document.querySelectorAll('#history button')[1].click()")
    says(browser, f"Removed {TITLES[3]}.")
    assert titles_of_history(browser) == [TITLES[11], MARKUP]
    assert browser.run("document.activeElement.id") == "item"
    for field, sought, said in (
        ("item", "tulip", "No item has tulip in its title."),
        ("item", " ", "Type words of a title, and choose one."),
        ("user", "nobody", client("GET", "/v1/users/nobody")[2]["detail"]),
    ):
        type_into(browser, field, sought)
        browser.press("Enter")
        says(browser, said)
        assert browser.run("document.getElementById('status').className") == "error"
    assert titles_of_history(browser) == [TITLES[11], MARKUP]


def test_in_a_small_window_what_went_wrong_comes_into_view(browser, client):
    browser.looks(360, 400)
    show(browser, client)
    assert browser.run("document.getElementById('status').getBoundingClientRect().top > innerHeight")
    type_into(browser, "user", "nobody")
    browser.press("Enter")
    says(browser, client("GET", "/v1/users/nobody")[2]["detail"])
    box = "document.getElementById('status').getBoundingClientRect()"
    assert browser.run(f"{box}.top >= 0 && {box}.bottom <= innerHeight")


def test_why_shows_what_each_item_of_the_history_did_and_leads_back(browser, client):
    show(browser, client, "#user=ann&query=shoe", FOUND)
    browser.run("document.querySelectorAll('#answers button')[2].click()")
    browser.until("!document.getElementById('why').hidden")
    asked = {"task": "src", "query": "shoe", "history": ANN, "item_id": "B9"}
    found = client("POST", "/v1/explain", asked)[2]
    rows = browser.run(
        "[...document.querySelectorAll('#why-rows tr')].map((row) => [...row.cells].map((c) => c.innerText))"
    )
    changes = [f"{one['change']:+.3f}".replace("-", "\N{MINUS SIGN}") for one in found["history"]]
    changes = ["0.000" if change[1:] == "0.000" else change for change in changes]
    assert rows == [[one["title"], change] for one, change in zip(found["history"], changes, strict=True)]
    assert {change[0] for change in changes} == {"+", "0", "\N{MINUS SIGN}"}
    assert browser.run("document.activeElement.innerText") == f"Why {TITLES[9]}?"
    score = f"{found['score']:.3f}".replace("-", "\N{MINUS SIGN}")
    assert browser.run("document.getElementById('why-score').innerText") == f"Score {score}"
    browser.run("document.getElementById('back').click()")
    assert browser.run("document.activeElement.getAttribute('aria-label')") == f"Why? {TITLES[9]}"


def test_an_answer_that_comes_late_does_not_take_the_place_of_a_newer_one(browser, client):
    show(browser, client)
    # The first ranking reaches the service after the second has been answered.
    browser.run("""{ const send = window.fetch, gate = new Promise((open) => { window.letGo = open; });
      let held = false;
      window.fetch = async (path, ...rest) => {
        if (path !== "v1/rank" || held) return send(path, ...rest);
        held = true;
        await gate;
        const found = await (await send(path, ...rest)).json();
        const json = async () => { setTimeout(() => { window.late = true; }); return found; };
        return { ok: true, json };
      }; }""")
    type_into(browser, "query", "old")
    browser.press("Enter")
    browser.until("document.querySelector('[aria-busy]') !== null")
    type_into(browser, "query", "newer")
    browser.press("Enter")
    says(browser, FOUND)
    newer = columns(browser)
    assert newer == answered(client, {"task": "src", "query": "newer", "history": []})
    browser.run("window.letGo()")
    browser.until("window.late")
    assert columns(browser) == newer


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_nothing_is_cut_off_or_lies_beside_the_window(browser, client, width):
    browser.looks(width)
    show(browser, client, "#user=ann&query=lamp", FOUND)
    browser.run("document.querySelector('#answers button').click()")
    browser.until("!document.getElementById('why').hidden")
    assert browser.run("document.body.innerText.includes('lamplamp')")
    assert browser.run("document.documentElement.scrollWidth") <= width
    beside = """[...document.querySelectorAll("body *")].filter((one) => {
      const box = one.getBoundingClientRect();
      return box.width && (box.left < 0 || box.right > innerWidth || one.scrollWidth > one.clientWidth + 1 &&
        getComputedStyle(one).display !== "inline" && one.clientWidth);
    }).map((one) => one.outerHTML)"""
    assert browser.run(beside) == []
    # Fingers find what they press: 24 CSS pixels, which WCAG 2.2 (2.5.8) asks for, or more.
    sizes = "[...document.querySelectorAll('button, input')].map((one) => one.getBoundingClientRect())"
    pressed = browser.run(f"{sizes}.filter((box) => box.width).map((box) => Math.min(box.width, box.height))")
    assert len(pressed) > 10
    assert min(pressed) >= 24


def test_keys_alone_reach_and_press_everything_and_where_they_are_is_seen(browser, client):
    show(browser, client)
    reached = []

    def tab():
        browser.press("Tab")
        name = "at.id || at.getAttribute('aria-label') || at.textContent"
        seen = f"((at, style) => [{name}, style.outlineStyle, parseFloat(style.outlineWidth)])"
        reached.append(browser.run(f"{seen}(document.activeElement, getComputedStyle(document.activeElement))"))
        return reached[-1][0]

    assert tab() == "user"
    browser.write("ann")
    assert tab() == "show-user"
    browser.press(" ")
    says(browser, "Took the 5 items of ann.")
    assert [tab() for _ in range(3)] == ["item", "add-item", "history"]
    assert [tab() for _ in range(5)] == [f"Remove {TITLES[item]}" for item in (1, 4, 0, 4, 6)]
    assert tab() == "query"
    browser.write("shoe")
    assert tab() == "submit"
    browser.press("Enter")
    says(browser, FOUND)
    rows = columns(browser)["Tuned model"]
    assert [tab() for _ in rows] == [f"Why? {title}" for title, _, _ in rows]
    browser.press("Enter")
    browser.until("document.activeElement.id === 'why-title'")
    assert tab() == "back"
    browser.press("Enter")
    assert browser.run("document.activeElement.getAttribute('aria-label')") == f"Why? {rows[-1][0]}"
    browser.press("Tab", shift=True)
    assert browser.run("document.activeElement.getAttribute('aria-label')") == f"Why? {rows[-2][0]}"
    assert [one for one in reached if one[1] != "solid" or one[2] < 2] == []


def test_a_screen_reader_is_told_names_headings_tables_and_what_came_of_a_press(browser, client):
    show(browser, client, "#user=ann&query=shoe", FOUND)
    browser.run("document.querySelector('#answers button').click()")
    browser.until("!document.getElementById('why').hidden")
    tree = browser.tree()
    used = [
        one for one in tree if one["role"] in ("textbox", "searchbox", "combobox", "button", "form", "region", "table")
    ]
    assert [one for one in used if not one["name"].strip()] == []
    names = [one["name"] for one in tree if one["role"] in ("textbox", "searchbox", "combobox")]
    assert names == ["User of the dataset", "Add an item, by words of its title", "Query; empty for recommendations"]
    headings = [(one["level"], one["name"]) for one in tree if one["role"] == "heading"]
    rankers = ["Tuned model", "Base model", "Popularity", "BM25"]
    assert headings == [(1, "Search and recommendations"), *((2, name) for name in (*rankers, f"Why {TITLES[11]}?"))]
    assert [one["name"] for one in tree if one["role"] == "columnheader"] == [
        "Item of the history",
        "Change of the score",
    ]
    assert {"banner", "main", "form", "table", "row", "cell"} <= {one["role"] for one in tree}
    lists = [one for one in tree if one["role"] == "list"]
    assert len(lists) == 1 + len(rankers)  # the history, and no empty list of notes
    (status,) = [one for one in tree if one["role"] == "status"]
    assert (status["live"], status["atomic"]) == ("polite", True)
    # The line is there before it is filled, or nothing of it is read.
    changes = "{ childList: true, characterData: true, subtree: true }"
    live = "document.querySelector('[aria-live=polite]')"
    told = f"new Promise((end) => new MutationObserver(() => end({live}.textContent)).observe({live}, {changes}))"
    browser.run(f"window.told = {told}; document.getElementById('show-user').click()")
    assert browser.run("window.told") == "Took the 5 items of ann."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_text_stands_out_from_what_is_behind_it(browser, client, scheme):
    browser.looks(scheme=scheme)
    unknown = client("GET", "/v1/users/nobody")[2]["detail"]
    for asked, said in (("", ""), ("#user=nobody", unknown), ("#user=ann&query=red shoe, note", FOUND)):
        show(browser, client, asked, said)
        if said == FOUND:
            browser.run("document.querySelector('#answers button').click()")
            browser.until("!document.getElementById('why').hidden")
        found = browser.run(CONTRASTS)
        assert len(found) > (60 if said == FOUND else 10)
        assert [one for one in found if one[1] < 4.5] == []
    dark = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")
    # The measure itself: grey that is too near to both, and what is half seen through.
    browser.run("document.querySelector('h1').style.color = '#808080'")
    assert dict(browser.run(CONTRASTS))["Search and recommendations"] < 4.7
    browser.run("document.querySelector('fieldset:not([hidden]) legend').style.opacity = 0.3")
    assert dict(browser.run(CONTRASTS))["What"] > 4.5 > dict(browser.run(CONTRASTS))["For whom"]


def test_nothing_leaves_for_elsewhere_and_markup_stays_text(browser, client):
    own = f"http://{client.host}:{client.port}/"
    show(browser, client, "#user=ann&query=lamp", FOUND)
    browser.run("document.querySelector('#answers button').click()")
    browser.until("!document.getElementById('why').hidden")
    asked = {one["request"]["url"] for one in browser.told("Network.requestWillBeSent")}
    paths = {
        address.removeprefix(own).partition("?")[0].partition("#")[0] for address in asked if address.startswith(own)
    }
    assert paths == {"", "page.js", "page.css", "v1/users", "v1/users/ann", "v1/rank", "v1/beside", "v1/explain"}
    assert [one for one in asked if not one.startswith((own, "data:"))] == []
    # No element comes of a title, wherever it stands; and the page has no word to complain of.
    assert browser.run("document.body.innerText").count(MARKUP) >= 4
    assert browser.run("document.querySelectorAll('img, b').length") == 0
    assert browser.told("Page.javascriptDialogOpening") == browser.told("Runtime.exceptionThrown") == []
    assert browser.told("Log.entryAdded") == []
    # Even what had got in could not ask another, nor run: the browser keeps to the service's policy.
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.setblocking(False)
        address = f"http://127.0.0.1:{other.getsockname()[1]}/"
        assert browser.run(f"fetch({address!r}).then(() => 'sent', () => 'refused')") == "refused"
        image = f"new Promise((end) => {{ const made = new Image(); made.onerror = end; made.src = {address!r}; }})"
        browser.run(f"{image}.then(() => 'refused')")
        script = "Object.assign(document.createElement('script'), { textContent: 'window.ran = true' })"
        browser.run(f"document.body.append({script})")
        with pytest.raises(BlockingIOError):
            other.accept()
    assert browser.run("window.ran") is None
    refused = [one["entry"]["text"] for one in browser.told("Log.entryAdded")]
    for directive in ("connect-src", "img-src", "script-src"):
        assert any("Content Security Policy" in text and directive in text for text in refused), (directive, refused)


def test_a_service_with_a_token_asks_for_it(browser):
    with serving(lambda: Sums(0.1), token="secret", max_k=10) as client:
        browser.open(f"http://{client.host}:{client.port}/#user=ann")
        says(browser, "This service asks for its token.")
        assert browser.run("document.activeElement.id") == "token"
        browser.write("wrong")
        browser.press("Enter")
        says(browser, "That is not the token of this service.")
        type_into(browser, "token", "secret")
        browser.press("Enter")
        says(browser, "8 items recommended, best first.")
        assert "secret" not in browser.run("location.href + document.body.innerText")
        assert not [one for one in browser.told("Network.requestWillBeSent") if "secret" in one["request"]["url"]]
    browser.run("document.getElementById('submit').click()")
    says(browser, "The service does not answer: is it still running?")
