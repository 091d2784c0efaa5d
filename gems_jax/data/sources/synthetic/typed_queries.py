"""Queries as people type them: a few words, other names, half words, slips of the fingers."""

from __future__ import annotations

import numpy as np

from gems_jax.data.sources.synthetic.marketplace_catalogue import DEPARTMENTS, Product

VAGUE_SHARE = 0.3
GIFT_WORD_SHARE = 0.5
OTHER_NAME_SHARE = 0.1
TYPO_SHARE = 0.12
HALF_WORD_SHARE = 0.1

_VAGUE = ("something for {activity}", "{activity} things", "{activity} stuff", "for a {person}")
_VAGUE_GIFT = (
    "gift for {person}",
    "{activity} gift",
    "birthday present {person}",
    "gift for someone {activity}",
)
_GIFT_WORDS = ("gift", "present", "as a gift", "for a friend")


def type_query(product: Product, is_gift: bool, rng: np.random.Generator) -> str:
    """Makes a query that someone who ends up with this product might have typed.

    Example:
      >>> product = Product(1, 0, "green", "steel", "Willow")
      >>> type_query(product, is_gift=False, rng=np.random.default_rng(1))
      'green watering can'
    """
    department = DEPARTMENTS[product.department]
    if rng.random() < VAGUE_SHARE:
        pattern = str(rng.choice(_VAGUE_GIFT if is_gift else _VAGUE))
        return _slip(pattern.format(activity=department.activity, person=department.person), rng)
    name = product.name
    if rng.random() < OTHER_NAME_SHARE:
        name = department.categories[product.category].also_called
    described = rng.random()
    if described < 0.3:
        words = f"{product.style} {name}"
    elif described < 0.5:
        words = f"{product.feature} {name}"
    elif described < 0.6:
        words = f"{name} {product.brand.lower()}"
    else:
        words = name
    words = _slip(words, rng)
    if is_gift and rng.random() < GIFT_WORD_SHARE:
        words = f"{words} {rng.choice(_GIFT_WORDS)}"
    return words


def _slip(words: str, rng: np.random.Generator) -> str:
    """Sometimes one word is misspelled, or the last one is not typed to its end."""
    typed = words.split()
    chance = rng.random()
    if chance < TYPO_SHARE:
        index = int(rng.integers(len(typed)))
        typed[index] = _misspell(typed[index], rng)
    elif chance < TYPO_SHARE + HALF_WORD_SHARE and len(typed[-1]) > 4:
        typed[-1] = typed[-1][: int(rng.integers(3, len(typed[-1])))]
    return " ".join(typed)


def _misspell(word: str, rng: np.random.Generator) -> str:
    if len(word) < 4:
        return word
    index = int(rng.integers(1, len(word) - 1))
    kind = int(rng.integers(3))
    if kind == 0:
        return word[:index] + word[index + 1 :]
    if kind == 1:
        return word[:index] + word[index] + word[index:]
    return word[:index] + word[index + 1] + word[index] + word[index + 2 :]
