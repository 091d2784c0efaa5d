"""Collects which items the rows of each split name, and which of valid and test training never shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.data.dataset.tables import SPLITS, Item, Table
from gems_jax.data.preparation.holdout import TEST, VALID


class ItemSets:
    """Items by split, collected over any number of shards of a dataset.

    Args:
      num_items: of the catalogue.
      with_users: whether items that training never shows are an error, which then names a user of one.
    """

    def __init__(self, num_items: int, with_users: bool = False) -> None:
        self.named = np.zeros((len(SPLITS), num_items), bool)
        self.targets = np.zeros((len(SPLITS), num_items), np.int64)
        self._with_users = with_users
        # By split, item to the first user that has it as a target.
        self._user_of: list[dict[int, str]] = [{} for _ in SPLITS]

    def add(self, tables: Mapping[tuple[str, str], Table]) -> None:
        """The items of some rows."""
        for (split_name, _), table in tables.items():
            split = SPLITS.index(split_name)
            self.targets[split] += np.bincount(table.target, minlength=self.targets.shape[1])
            self.named[split, table.target] = True
            self.named[split, table.history] = True
            if self._with_users and split in (VALID, TEST):
                for row in np.sort(np.unique(table.target, return_index=True)[1]).tolist():
                    self._user_of[split].setdefault(int(table.target[row]), table.user_ids[row])

    def merge(self, other: ItemSets) -> None:
        """Adds what another one collected of later rows."""
        self.named |= other.named
        self.targets += other.targets
        for mine, others in zip(self._user_of, other._user_of, strict=True):
            for item, user in others.items():
                mine.setdefault(item, user)

    def num_targets(self) -> int:
        """How many items are a target anywhere."""
        return int(self.targets.any(axis=0).sum())

    def card(self, name: str, items: list[Item]) -> dict[str, Any]:
        """Items named in each split, and targets of valid and test that training never shows.

        Args:
          name: of the dataset.
          items: the catalogue.

        Raises:
          ValueError: there are such targets, and they are an error.
        """
        result: dict[str, Any] = {split: int(self.named[number].sum()) for number, split in enumerate(SPLITS)}
        result["targets never in train"] = {}
        for split in (VALID, TEST):
            cold = self.targets[split] * ~self.named[0]
            count = int(cold.sum())
            result["targets never in train"][SPLITS[split]] = count
            if count and self._with_users:
                item, user = next((item, user) for item, user in self._user_of[split].items() if cold[item])
                raise ValueError(
                    f"{name}: the item sets of the splits differ: {count:,} targets of {SPLITS[split]} never "
                    f"occur in train, the first is item {items[item].item_id!r} of user {user!r}; where that is meant, "
                    "say so (data.preprocessing.cold_items: true)"
                )
        return result

    def save(self, path: Path) -> None:
        """Writes it to an ``.npz`` file."""
        user_of: dict[str, np.ndarray] = {
            f"{kind}{split}": np.asarray(list(values), dtype)
            for split, user_by_item in enumerate(self._user_of)
            for kind, values, dtype in (
                ("items", user_by_item.keys(), np.int64),
                ("users", user_by_item.values(), np.str_),
            )
        }
        with_users = np.asarray(self._with_users)
        np.savez(path, allow_pickle=False, named=self.named, targets=self.targets, with_users=with_users, **user_of)

    @classmethod
    def load(cls, path: Path) -> ItemSets:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            result = cls(stored["named"].shape[1], bool(stored["with_users"]))
            result.named, result.targets = stored["named"], stored["targets"]
            for split in range(len(SPLITS)):
                items, users = stored[f"items{split}"].tolist(), stored[f"users{split}"].tolist()
                result._user_of[split] = dict(zip(items, users, strict=True))
        return result
