"""A small marketplace made up from a seed, in which search and recommendation disagree for some users.

Every user has a taste: departments, styles and brands. Users browse by their taste. Some search by it too,
while others search for gifts: other departments, styles and brands than their own. For these the same history calls
for opposite things in the two tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gems_jax.data.dataset.tables import SPLITS, Dataset, Row, Table
from gems_jax.data.preparation.negatives import NUM_NEGATIVES, NegativeSampler
from gems_jax.data.preparation.splits import Event
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.sources.synthetic.marketplace_catalogue import (
    BRANDS,
    DEPARTMENTS,
    STYLES,
    Product,
    make_items,
    make_products,
)
from gems_jax.data.sources.synthetic.typed_queries import type_query

NUM_USERS = 800
GIFT_SHARE = 0.45
SEARCH_SHARE = 0.4
MIN_HISTORY, MAX_HISTORY = 4, 12
MIN_EVENTS, MAX_EVENTS = 8, 14  # before the events kept for valid and test
# Weights of a choice, as logarithms: how much a liked style or brand counts, and the item's own appeal.
STYLE_WEIGHT, BRAND_WEIGHT, APPEAL_WEIGHT = 1.8, 1.2, 0.6
OWN_DEPARTMENTS = (0.75, 0.2)  # main and second; the rest is anything
DEPARTMENT_SKEW = 0.5  # exponent by which departments differ in how many users they have


@dataclass(frozen=True)
class Taste:
    """The taste of a user, and whether the user searches for gifts; departments are positions."""

    departments: tuple[int, int]
    styles: frozenset[str]
    brands: frozenset[str]
    searches_gifts: bool


class _Shop:
    """The catalogue as arrays, and users choosing from it."""

    def __init__(self, products: list[Product], rng: np.random.Generator):
        self.products = products
        self.rng = rng
        self.department = np.array([product.department for product in products])
        self.style = np.array([product.style for product in products])
        self.brand = np.array([product.brand for product in products])
        self.appeal = APPEAL_WEIGHT * rng.standard_normal(len(products))

    def browse(self, taste: Taste, bought: list[int]) -> int:
        """An item of the user's own departments, by taste."""
        main, second = OWN_DEPARTMENTS
        weight = np.full(len(self.products), (1.0 - main - second) / len(DEPARTMENTS))
        weight[self.department == taste.departments[0]] += main
        weight[self.department == taste.departments[1]] += second
        return self._choose(np.log(weight) + self._liking(taste), bought)

    def gift(self, taste: Taste, bought: list[int]) -> int:
        """An item of a department, style and brand that are not the user's."""
        liking = -2.0 * self._liking(taste)
        liking[np.isin(self.department, taste.departments)] = -np.inf
        return self._choose(liking, bought)

    def _liking(self, taste: Taste) -> np.ndarray:
        liked_style = np.isin(self.style, list(taste.styles))
        liked_brand = np.isin(self.brand, list(taste.brands))
        return STYLE_WEIGHT * liked_style + BRAND_WEIGHT * liked_brand

    def _choose(self, liking: np.ndarray, bought: list[int]) -> int:
        logits = liking + self.appeal
        logits[bought] = -np.inf
        weight = np.exp(logits - logits.max())
        return int(self.rng.choice(len(weight), p=weight / weight.sum()))

    def act(self, taste: Taste, bought: list[int], searches: bool) -> Event:
        """One event: browsing, or searching with a typed query."""
        if not searches:
            return Event(self.browse(taste, bought))
        item = self.gift(taste, bought) if taste.searches_gifts else self.browse(taste, bought)
        return Event(item, type_query(self.products[item], taste.searches_gifts, self.rng))


def make_taste(products: list[Product], rng: np.random.Generator) -> Taste:
    """A random taste; liked brands are brands of the main department."""
    popularity = np.arange(1, len(DEPARTMENTS) + 1) ** -DEPARTMENT_SKEW
    main, second = rng.choice(len(DEPARTMENTS), 2, replace=False, p=popularity / popularity.sum())
    offered = {product.brand for product in products if product.department == main}
    brands = rng.choice([brand for brand in BRANDS if brand in offered], 2, replace=False)
    styles = rng.choice(STYLES, 2, replace=False)
    searches_gifts = bool(rng.random() < GIFT_SHARE)
    return Taste((int(main), int(second)), frozenset(map(str, styles)), frozenset(map(str, brands)), searches_gifts)


def generate(
    seed: int = 0, num_users: int = NUM_USERS, num_negatives: int = NUM_NEGATIVES
) -> tuple[Dataset, dict[str, Taste]]:
    """The marketplace and the tastes behind it.

    A user's first events train, one target an event from the fifth on: a browsed item is a ``rec`` row, a
    searched one a ``src`` row. Then comes one of each for valid, and one of each for test. The two test rows
    of a user have the same history, as have the two valid rows. Histories keep the newest twelve items.

    Args:
      seed: of everything.
      num_users: at least 1.
      num_negatives: per row of valid and test, among the items the user never takes; ``src`` rows also
        leave out items that were reached by the same query.

    Returns:
      The dataset, and user id to taste.
    """
    if num_users < 1:
        raise ValueError(f"a marketplace needs at least one user, got {num_users}")
    rng = np.random.default_rng([seed, 0])
    products = make_products(rng)
    shop = _Shop(products, rng)
    tastes = {f"user{number:04d}": make_taste(products, rng) for number in range(num_users)}
    timelines = {user: _timeline(shop, taste) for user, taste in tastes.items()}
    items = make_items(products)
    tables = _tables(timelines, NegativeSampler([item.item_id for item in items], seed), num_negatives)
    dataset = Dataset("marketplace", items, tables)
    dataset.card.update(
        name=dataset.name,
        seed=seed,
        num_negatives=num_negatives,
        items=len(items),
        users=num_users,
        users_searching_gifts=sum(taste.searches_gifts for taste in tastes.values()),
        interactions=sum(map(len, timelines.values())),
        rows=dataset.row_counts(),
        quarantined={},
    )
    return dataset, tastes


def load(seed: int = 0, num_users: int = NUM_USERS, num_negatives: int = NUM_NEGATIVES) -> Dataset:
    """The marketplace's tables alone, see `generate`.

    Example:
      >>> dataset = load(num_users=5)
      >>> dataset.tasks, len(dataset.items), len(dataset.table("test", "src"))
      (('rec', 'src'), 360, 5)
    """
    return generate(seed, num_users, num_negatives)[0]


def _timeline(shop: _Shop, taste: Taste) -> list[Event]:
    """Training events, then a browsed and a searched one for valid, then the same for test."""
    count = int(shop.rng.integers(MIN_EVENTS, MAX_EVENTS + 1))
    kinds = [*(shop.rng.random(count) < SEARCH_SHARE), False, True, False, True]
    events: list[Event] = []
    for searches in kinds:
        events.append(shop.act(taste, [event.item for event in events], bool(searches)))
    return events


def _tables(
    timelines: dict[str, list[Event]], sampler: NegativeSampler, num_negatives: int
) -> dict[tuple[str, str], Table]:
    same_query: dict[str, set[int]] = {}
    for events in timelines.values():
        for event in events:
            same_query.setdefault(event.query, set()).add(event.item)
    rows: dict[tuple[str, str], list[Row]] = {(split, task): [] for split in SPLITS for task in ("rec", "src")}
    for user, events in timelines.items():
        items = [event.item for event in events]
        for position in range(MIN_HISTORY, len(events)):
            split, history_end = _split_and_end(position, len(events))
            item, query = events[position]
            task = "src" if query else "rec"
            negatives = None
            if split != "train":
                shared = same_query[query] if query else ()
                negatives = sampler.draw(f"{split}/{task}/{user}", [*items, *shared], num_negatives)
            history = items[:history_end][-MAX_HISTORY:]
            rows[split, task].append(Row(user, history, item, query, negatives))
    return {key: Table.from_rows(key[1], table_rows) for key, table_rows in rows.items()}


def _split_and_end(position: int, total: int) -> tuple[str, int]:
    """Split of an event and where its history ends: valid and test rows see nothing of their own pair."""
    if position >= total - 2:
        return "test", total - 2
    if position >= total - 4:
        return "valid", total - 4
    return "train", position


SOURCE = SourceEntry(
    load=lambda options: load(options.seed, options.num_users, options.num_negatives), takes=("num_users",)
)
