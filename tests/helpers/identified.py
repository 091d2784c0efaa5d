"""Options of tiny runs whose items share tokens."""

from tiny import options

SMALL = {"items__identifiers": "rkmeans", "items__levels": 2, "items__codebook_size": 24, "items__max_length": 48}
RUN = {"train__method": "adamw", "train__steps": 2, "train__checkpoint_every": 1, "evaluate__rows": 8}


def identified_options(prepared, root):
    """Words of a command, with identifiers in a folder of ``root``, and what is prepared already."""
    places = {"model__path": prepared.root / "base", "data__dir": prepared.root / "data"}
    return options(root, **places, **SMALL, **RUN, items__path=root / "identifiers")
