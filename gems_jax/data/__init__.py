"""Data: catalogues and tables, prompts, batches, general text."""

from gems_jax.data.dataset.tables import Dataset, Item, Row, Table

__all__ = ["Dataset", "Item", "Row", "Table"]
