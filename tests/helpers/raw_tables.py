"""Raw tables of interactions in every format, for tests."""

import csv
import json
import shutil

import pyarrow as pa
from pyarrow import parquet

from gems_jax.data.prepare import prepare


def write_rows(path, rows):
    """Rows, dictionaries of one form, in the format of the path's ending; lists as JSON in CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})


def catalogue(count=30):
    return [{"item_id": f"i{n}", "title": f"thing {n}", "text": f"brand {n % 3}"} for n in range(count)]


def log(users=6, events=5):
    """A log of searches (every second event) and recommendations, in an order that is not that of time."""
    rows = [
        {
            "task": "src" if step % 2 else "rec",
            "user_id": f"u{user}",
            "target": f"i{(3 * user + step) % 30}",
            "query": f"thing {step}" if step % 2 else None,
            "timestamp": 1_700_000_000 + 100 * step + user,
        }
        for user in range(users)
        for step in range(2 * events)
    ]
    return rows[::-1]


def rows_of(dataset):
    """Every row of every table in the catalogue's and users' own names."""
    ids = dataset.item_ids()
    return {
        key: [
            (
                table.user_ids[row],
                [ids[item] for item in table.history_of(row)],
                ids[table.target[row]],
                table.queries[row],
                None if table.negatives is None else sorted(ids[item] for item in table.negatives[row]),
            )
            for row in range(len(table))
        ]
        for key, table in dataset.tables.items()
    }


def ready(folder, ending=".csv", rows=None, **files):
    """Writes a log and its catalogue; the options that describe them."""
    write_rows(folder / f"interactions{ending}", log() if rows is None else rows)
    write_rows(folder / f"items{ending}", catalogue())
    return {"interactions": f"interactions{ending}", "items": f"items{ending}", **files}


def load(folder, files, out="out", again=False, **kwargs):
    """Prepares the table that a folder holds, anew unless a dataset that is there is meant to be found ``again``."""
    if not again:
        shutil.rmtree(folder / out, ignore_errors=True)
    kwargs = {"num_negatives": 3, "max_bad_fraction": 0.0, "progress": None, **kwargs}
    return prepare("table", folder / out, path=folder, files=files, **kwargs)
