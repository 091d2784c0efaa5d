"""What compiled programs send, against the tables of docs/scaling.md."""

from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs" / "scaling.md"
KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
STEPS = ("plain", "refresh", "iterated")


def line_of(mesh, step, found):
    """A line of a table: calls and bytes of each kind."""
    cells = [f"{calls} / {size:,}" for calls, size in (found.get(kind, (0, 0)) for kind in KINDS)]
    return f"| {mesh} | {step} | {' | '.join(cells)} |"


def documented():
    """Calls and bytes by mesh and step, as the documentation has them."""
    found = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 2 + len(KINDS) and cells[1] in STEPS:
            pairs = [cell.replace(",", "").split(" / ") for cell in cells[2:]]
            found[cells[0], cells[1]] = [(int(calls), int(size)) for calls, size in pairs]
    return found


def check_sent(mesh, step, sent, lines):
    """Holds calls and bytes by kind to the documentation, which otherwise should have these lines."""
    assert set(sent) <= set(KINDS)
    wanted = documented().get((mesh, step))
    assert wanted is not None, f"docs/scaling.md should have\n{lines}"
    found = [sent.get(kind, (0, 0)) for kind in KINDS]
    for (calls, size), (most_calls, most) in zip(found, wanted, strict=True):
        # Another version of the compiler may do a little better or worse.
        assert calls <= 1.25 * most_calls + 2, f"docs/scaling.md should have\n{lines}"
        assert 0.5 * most - 64 <= size <= 1.25 * most + 64, f"docs/scaling.md should have\n{lines}"
