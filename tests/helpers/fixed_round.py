"""People who go a fixed round of the items: what a ranker that is trained has to learn, and popularity cannot know."""

import numpy as np

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table

N = 24


def shop(users: int = 160, negatives: int | None = None) -> Dataset:
    """Each row's next item stands five further; the last is for test, beside ``negatives``, the one before for
    validation."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    for number in range(users):
        start = int(rng.integers(N))
        items = [(start + 5 * step) % N for step in range(8)]
        for place in range(1, 6):
            rows["train"].append(Row(f"u{number}", items[:place], items[place]))
        rows["valid"].append(Row(f"u{number}", items[:6], items[6]))
        others = None if negatives is None else [item for item in range(N) if item not in items][:negatives]
        rows["test"].append(Row(f"u{number}", items[:7], items[7], negatives=others))
    tables = {(split, "rec"): Table.from_rows("rec", of_split) for split, of_split in rows.items()}
    return Dataset("round", [Item(f"i{n}", f"thing {n}") for n in range(N)], tables)
