"""What tests of the page in a browser share: an engine without a model, steps of a user, and what the page shows."""

import shop
from serving_client import Echo

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.serving.answers import Answer, RankedItem
from gems_jax.serving.catalogue import Catalogue

MARKUP = "<img src=x onerror=alert(1)> & <b>lamp</b>"
FOUND = "10 items found, best first."
LONG = "lamp" * 60  # nowhere a line may break
TITLES = [MARKUP, LONG, *(f"red shoe {number}" for number in range(2, 12))]
ANN = ["B1", "B4", "B0", "B4", "B6"]  # her history, as in the rows below, the target of the test row last
# Of each text that is seen: its contrast by WCAG 2, colours laid over those behind them.
CONTRASTS = """(() => {
  const parts = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], below) => [r, g, b].map((one, place) => one * a + below[place] * (1 - a));
  const linear = (one) => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4;
  const light = (colour) => colour.reduce(
    (sum, one, place) => sum + linear(one / 255) * [.2126, .7152, .0722][place], .05);
  const ratio = (one, other) => Math.max(light(one) / light(other), light(other) / light(one));
  const behind = (at) =>
    at ? over(parts(getComputedStyle(at).backgroundColor), behind(at.parentElement)) : [255, 255, 255];
  const shown = (at) => at ? getComputedStyle(at).opacity * shown(at.parentElement) : 1;
  const found = [], tell = (at, style, text) => {
    const [r, g, b, a] = parts(style.color);
    found.push([text, ratio(over([r, g, b, a * shown(at)], behind(at)), behind(at))]);
  };
  for (const at of document.querySelectorAll("body *")) {
    if (!at.getClientRects().length) continue;
    const texts = [...at.childNodes].filter((one) => one.nodeType === Node.TEXT_NODE);
    const text = at.value || texts.map((one) => one.data).join("").trim();
    if (text) tell(at, getComputedStyle(at), text);
    else if (at.placeholder) tell(at, getComputedStyle(at, "::placeholder"), at.placeholder);
  }
  return found;
})()"""


class Sums(Echo):
    """An engine without a model: an item's score is made of its number, the query and the history.

    Args:
      step: between scores of neighbours; negative turns the order around.
    """

    def __init__(self, step):
        super().__init__()
        rows = {
            ("train", "rec"): [Row("ann", [4], 1), Row("bob", [0, 4], 2)],
            ("train", "src"): [Row("ann", [4], 1, query="red")],
            ("test", "rec"): [Row("ann", [1, 4, 0, 4], 6)],
        }
        items = [Item(f"B{number}", title) for number, title in enumerate(TITLES)]
        tables = {key: Table.from_rows(key[1], table) for key, table in rows.items()}
        self.catalogue, self.step = Catalogue(Dataset("shop", items, tables), shop.TEMPLATES), step

    def answer(self, rankings):
        return [Answer(tuple(self._best(one)), ("a note",) if "note" in one.query else ()) for one in rankings]

    def _best(self, ranking):
        listed = set(ranking.listed.tolist())
        allowed = [number for number in range(len(TITLES)) if (number in listed) == ranking.keeps]
        history = sum((place + 1) * (item - 3) for place, item in enumerate(ranking.shown)) / 100
        scores = {number: -2 + self.step * number + history + len(ranking.query) / 10 for number in allowed}
        for number in sorted(allowed, key=lambda one: -scores[one])[: ranking.k]:
            yield RankedItem(f"B{number}", TITLES[number], scores[number], number in ranking.known)


def show(browser, client, asked="", said=""):
    """Opens the page and waits until it has said something or, where it has nothing to say, is ready for its user."""
    browser.open(f"http://{client.host}:{client.port}/{asked}")
    says(browser, said)
    if not said:
        browser.until("document.getElementById('user').placeholder")


def says(browser, text):
    browser.until(f"document.getElementById('status').textContent === {text!r}")


def type_into(browser, field, text):
    browser.run(f"document.getElementById({field!r}).select()")
    browser.write(text)


def columns(browser):
    """Heading to rows of title, whether it is said to be in the history, and score, as a user reads them."""
    return browser.run("""Object.fromEntries([...document.querySelectorAll("#answers section")].map((part) => [
      part.querySelector("h2").innerText,
      [...part.querySelectorAll("li .row")].map((row) => [row.children[0].firstChild.data,
        row.querySelector(".known") !== null, row.querySelector(".score").innerText])]))""")


def written(items):
    """The rows of `columns` that stand for items of the service's answer."""
    digits = [
        str(int(item["score"])) if item["score"] == int(item["score"]) else f"{item['score']:.3f}" for item in items
    ]
    return [
        [item["title"], item.get("known", False), score.replace("-", "\N{MINUS SIGN}")]
        for item, score in zip(items, digits, strict=True)
    ]


def answered(client, asked):
    """What the columns must show of the service's answers to a request."""
    beside = client("POST", "/v1/beside", asked)[2]
    names = {"base model": "Base model", "popularity": "Popularity", "BM25": "BM25"}
    model = {"Tuned model": written(client("POST", "/v1/rank", asked)[2]["items"])}
    return model | {names[name]: written(items) for name, items in beside.items()}


def titles_of_history(browser):
    return browser.run("[...document.querySelectorAll('#history .row > span')].map((one) => one.textContent)")
