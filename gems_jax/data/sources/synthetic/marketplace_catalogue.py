"""The catalogue of the small marketplace: departments, categories, and items with readable titles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gems_jax.data.dataset.tables import Item

STYLES = ("blue", "green", "red", "black", "white", "striped", "vintage", "colorful")
BRANDS = (
    "Willow", "Harbor", "Summit", "Juniper", "Lantern", "Meadow", "Falcon", "Orchard", "Pioneer", "Copper",
    "Maple", "Anchor",
)  # fmt: skip
BRANDS_PER_DEPARTMENT = 4


@dataclass(frozen=True)
class Category:
    """A kind of product: its name, words that describe one, and what else people call it."""

    name: str
    features: tuple[str, ...]
    also_called: str


@dataclass(frozen=True)
class Department:
    """Categories that go together, who they are for and what for."""

    name: str
    person: str
    activity: str
    categories: tuple[Category, ...]


def _categories(*rows: str) -> tuple[Category, ...]:
    """From lines of ``name | feature, feature, ... | other name``."""
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return tuple(Category(name, tuple(features.split(", ")), other) for name, features, other in cells)


DEPARTMENTS = (
    Department("camping", "hiker", "camping", _categories(
        "family tent | light, waterproof, easy, four season | shelter",
        "sleeping bag | warm, light, compact, cotton | bedroll",
        "camping stove | folding, gas, small, steel | cooker",
        "hiking backpack | waterproof, large, light, canvas | rucksack",
        "head lamp | bright, rechargeable, small, waterproof | torch",
    )),
    Department("garden", "gardener", "gardening", _categories(
        "watering can | steel, large, small, copper | sprinkler",
        "garden gloves | leather, cotton, waterproof, long | gauntlets",
        "plant pot | clay, large, hanging, round | planter",
        "pruning shears | sharp, steel, long, curved | secateurs",
        "seed tray | deep, small, plastic, heated | propagator",
    )),
    Department("kitchen", "cook", "cooking", _categories(
        "frying pan | iron, large, light, copper | skillet",
        "chef knife | sharp, steel, long, curved | blade",
        "cutting board | bamboo, large, round, heavy | chopping block",
        "mixing bowl | steel, glass, deep, large | basin",
        "tea kettle | electric, steel, small, quiet | boiler",
    )),
    Department("desk", "student", "writing", _categories(
        "desk light | bright, folding, small, electric | reading lamp",
        "paper notebook | leather, large, soft, square | journal",
        "fountain pen | fine, steel, heavy, slim | ink writer",
        "pencil case | leather, canvas, large, soft | pouch",
        "document folder | plastic, large, slim, strong | binder",
    )),
    Department("music", "musician", "music", _categories(
        "guitar strap | leather, cotton, wide, soft | sling",
        "music stand | folding, steel, wooden, light | score holder",
        "drum sticks | wooden, light, heavy, short | beaters",
        "violin bow | wooden, light, fine, carbon | fiddle stick",
        "piano bench | wooden, soft, folding, wide | stool",
    )),
    Department("pets", "dog owner", "pets", _categories(
        "dog leash | leather, long, strong, soft | lead",
        "cat bed | soft, round, warm, large | basket",
        "food bowl | steel, deep, heavy, small | feeder",
        "chew toy | rubber, strong, soft, round | squeaker",
        "bird cage | large, hanging, wooden, round | aviary",
    )),
    Department("games", "child", "playing", _categories(
        "building blocks | wooden, large, soft, square | bricks",
        "animal puzzle | wooden, large, easy, round | jigsaw",
        "board game | easy, quick, classic, family | tabletop",
        "doll house | wooden, folding, large, classic | mansion",
        "toy train | wooden, electric, classic, quick | railway",
    )),
    Department("sewing", "knitter", "sewing", _categories(
        "knitting needles | bamboo, steel, long, light | pins",
        "wool yarn | soft, warm, fine, heavy | thread",
        "sewing box | wooden, large, folding, leather | workbasket",
        "fabric scissors | sharp, steel, long, light | snips",
        "quilt kit | easy, large, warm, cotton | patchwork",
    )),
    Department("sport", "runner", "training", _categories(
        "yoga mat | soft, light, folding, wide | exercise rug",
        "running socks | warm, short, soft, cotton | footwear",
        "water bottle | steel, glass, large, light | flask",
        "jump rope | light, quick, long, leather | skipping cord",
        "gym bag | large, canvas, strong, waterproof | holdall",
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """The words of an item; ``department`` and ``category`` are positions."""

    department: int
    category: int
    style: str
    feature: str
    brand: str

    @property
    def name(self) -> str:
        """The category's name."""
        return DEPARTMENTS[self.department].categories[self.category].name

    @property
    def title(self) -> str:
        """Readable and in the words of a query, which is why only the brand is capitalised."""
        return f"{self.style} {self.feature} {self.name} by {self.brand}"


def make_products(rng: np.random.Generator) -> list[Product]:
    """Every category in every style, brands and features spread evenly within a category."""
    products = []
    for department_number, department in enumerate(DEPARTMENTS):
        brands = rng.choice(BRANDS, BRANDS_PER_DEPARTMENT, replace=False)
        for category_number, category in enumerate(department.categories):
            brand_of = rng.permutation(np.resize(np.arange(len(brands)), len(STYLES)))
            feature_of = rng.permutation(np.resize(np.arange(len(category.features)), len(STYLES)))
            for number, style in enumerate(STYLES):
                feature, brand = category.features[feature_of[number]], str(brands[brand_of[number]])
                products.append(Product(department_number, category_number, style, feature, brand))
    return products


def make_items(products: list[Product]) -> list[Item]:
    """Catalogue entries; ids are numbers with a leading letter, as a shop's article numbers."""
    return [Item(f"A{number:03d}", product.title) for number, product in enumerate(products)]
