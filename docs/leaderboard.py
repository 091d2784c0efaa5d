"""The page of what a tuned model has to beat: `python docs/leaderboard.py` writes docs/leaderboard.md from the results.

Results are those of `benchmarks/leaderboard.py`, and of the study of tuned models.
"""

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CUTOFFS = [f"{metric}@{k}" for metric in ("hit", "ndcg") for k in (5, 10, 20)]
TASKS = {"rec": "Recommendation", "src": "Search"}
KINDS = {"all": "among the whole catalogue of {items:,} items", "sampled": "among 1 + 99 sampled items"}
LABELS = {
    "popularity": "popularity",
    "popularity, same task": "popularity in the task",
    "co-occurrence": "item co-occurrence",
    "BM25": "BM25 of titles and brands",
    "BM25, stemmed": "BM25, over stems",
    "BM25, titles and queries": "BM25, stems, with training queries",
    "BM25, titles and queries, popularity": "BM25, stems, with training queries and popularity",
}
TUNED = {"adamw": "joint AdamW", "gems": "**GEMS**"}
HEAD = """# What has to be beaten

Written by `python docs/leaderboard.py` from `benchmarks/results/leaderboard.json` and `study_gpu_tuned.json`.

Rankers that need no tuned language model, on Amazon "Industrial & Scientific" ({items:,} items; test rows: {rec:,} of
recommendation, {src:,} of search; the last item of each user, the one before for validation). Its files are
`Scientific.inter.json` and `Scientific.item.json` of
[CollisionGenRec](https://github.com/Nishikata97/CollisionGenRec) (`data/Scientific`), and `queries.tsv`, a query for
each item made of its categories, see [data.md](data.md). People did not type these queries, and many items share one: a
search is right only where it finds the very item that was bought.

Every row of a table ranks the same rows among the same candidates. Among the whole catalogue these include the items of
the user's history and, for searches, all that share the query. "New transitions" are the test rows whose item never
came directly after the last one of the history in any training row. Ranges are 95 % intervals over users.
"""
TIGER = """## What TIGER was given

TIGER generates the identifier of the next item from those of the history. Here its identifiers are codes of residual
k-means of titles and brands, read as the name of each row says, and no two items share theirs. The paper ([arXiv
2305.05065](https://arxiv.org/abs/2305.05065)) has four layers on each side, of width 128, and codes of an RQ-VAE of
sentence embeddings; its published numbers stand at the end of this page. Two shared cores carry less than that, and no
other settings were tried:

"""
TAIL = """
## What GEMS does not beat

* **Recommendation**: {rec}
* **Search**: {src}
* **Whole catalogue**: no tuned model has been measured there on this dataset yet; `gems-jax evaluate` does so for every
  run ([files.md](files.md#candidates)). Nothing here says how GEMS would stand in the first tables.
* Two towers are not measured yet: they need a pretrained model that reads titles.

## Published numbers, which are of another dataset

All with another filter of the same category: 3,686 items, among the whole catalogue
([MiniOneRec, arXiv 2510.24431](https://arxiv.org/abs/2510.24431)). They order methods; they cannot be compared with
the tables above, where items, users and rows differ.

| | hit@10 | ndcg@10 |
|---|---|---|
| SASRec | .109 | .081 |
| TIGER | .132 | .091 |
| LC-Rec | .133 | .095 |
| MiniOneRec (1.5 B parameters, with reinforcement) | .159 | .117 |
"""


def number(value):
    """Three digits behind the point, without a zero before it."""
    return f"{value:.3f}".lstrip("0") if value < 1 else f"{value:.3f}"


def label(row):
    """A row's name: what texts were read by, the shape and the seed of what was trained."""
    parts = [LABELS.get(row["name"], row["name"])]
    parts += [row[key] for key in ("shape", "model") if row.get(key)]
    parts += [f"seed {row['seed']}"] if row["seed"] is not None else []
    return ", ".join(parts)


def cell(entry, metric):
    """A number with its interval, where there is one."""
    text = number(entry[metric])
    low, high = entry.get(f"{metric}_ci", (None, None))
    return text if low is None or "@10" not in metric else f"{text} [{number(low)}, {number(high)}]"


def table(rows, kind, task):
    """The rows of a task among candidates of a kind, worst ndcg@10 first."""
    shown = [row for row in rows if "hit@10" in row[kind].get(task, {})]
    shown.sort(key=lambda row: row[kind][task]["ndcg@10"])
    new = any("hit@10" in row[kind][task].get("new_transition", {}) for row in shown)
    heads = ["", *CUTOFFS, *(["new transitions: hit@10", "ndcg@10"] if new else [])]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in shown:
        entry = row[kind][task]
        cells = [label(row), *(cell(entry, metric) for metric in CUTOFFS)]
        cells += [cell(entry["new_transition"], metric) for metric in ("hit@10", "ndcg@10")] if new else []
        lines.append(f"| {' | '.join(cells)} |")
    rest = f" New transitions: {shown[0][kind][task]['new_transition']['rows']:,} rows." if new else ""
    return "\n".join(lines) + (f"\n\n{rest.strip()}" if rest else "") + "\n"


def tuned(study):
    """Method to task and metric to the values of its seeds, at the setting that validation rows chose."""
    found = {}
    for method in TUNED:
        rows = [row for row in study["rows"] if row["method"] == method and row.get("chosen")]
        found[method] = {
            (task, metric): [row["test"][task][metric] for row in rows]
            for task in TASKS
            for metric in ("hit@10", "ndcg@10")
        }
    return found


def tuned_table(found):
    """Tuned models among 1 + 99, mean and standard deviation over seeds."""
    heads = [f"{task} {metric}" for task in TASKS for metric in ("hit@10", "ndcg@10")]
    lines = [f"| | seeds | {' | '.join(heads)} |", "|" + "---|" * (2 + len(heads))]
    for method, values in found.items():
        cells = [f"{number(statistics.mean(v))} ± {number(statistics.stdev(v))}" for v in values.values()]
        lines.append(f"| {TUNED[method]} | {len(next(iter(values.values())))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def best(rows, task):
    """The ranker of the largest ndcg@10 among sampled items."""
    return max((row for row in rows if "ndcg@10" in row["sampled"].get(task, {})), key=lambda r: _ndcg(r, task))


def _ndcg(row, task):
    return row["sampled"][task]["ndcg@10"]


def against(found, rows, task):
    """A sentence: tuned models beside the best ranker without a language model among 1 + 99."""
    rival = best(rows, task)
    beaten = [name for name in found if statistics.mean(found[name][task, "ndcg@10"]) > _ndcg(rival, task)]
    tuned_ones = ", ".join(
        f"{TUNED[name].strip('*')} {number(statistics.mean(found[name][task, 'ndcg@10']))}" for name in found
    )
    verb = (
        f"is beaten by {' and '.join(TUNED[name].strip('*') for name in beaten)}" if beaten else "is beaten by neither"
    )
    low, high = rival["sampled"][task]["ndcg@10_ci"]
    return (
        f"among 1 + 99, {label(rival)} {verb}: ndcg@10 {number(_ndcg(rival, task))} [{number(low)}, {number(high)}]; "
        f"{tuned_ones}."
    )


def measured(rows):
    """Where and how the rows were measured, a paragraph for each command."""
    by_command = {}
    for row in rows:
        by_command.setdefault(json.dumps(row["circumstances"], sort_keys=True), []).append(row)
    parts = []
    for of_command in by_command.values():
        about = of_command[0]["circumstances"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        parts.append(
            f"`{about['command']}`\n\n{about['machine']}, other work running; Python {about['python']}, {versions}; "
            f"{about['date']}. CPU seconds of both tables, training included:\n\n"
            + "\n".join(f"* {label(row)}: {row['cpu_seconds']:,.0f}{settings(row)}" for row in of_command)
        )
    return "\n\n".join(parts) + "\n"


def settings(row):
    """What a row was trained with, and how it went."""
    found = next((entry["settings"] for entry in row["sampled"].values() if "settings" in entry), {})
    told = (
        f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else f'{value:,}'}"
        for name, value in found.items()
    )
    return f" ({', '.join(told)})" if found else ""


def tiger_note(rows):
    """What was spent on TIGER, beside what the paper did; nothing where it was not measured."""
    lines = []
    for row in rows:
        if row["name"] == "TIGER":
            told = row["all"]["rec"]["settings"]
            lines.append(
                f"* {label(row)}: {told['parameters']:,} parameters, {told['epochs']} passes over "
                f"{told['transitions']:,} transitions in {told['steps']:,} steps of {told['batch_size']}, "
                f"{row['cpu_seconds'] / 60:,.0f} CPU minutes with the ranking; the best on validation rows was pass "
                f"{told['best_epoch']}."
            )
    return TIGER + "\n".join(lines) + "\n" if lines else None


def page():
    """The page's text."""
    result = json.loads((RESULTS / "leaderboard.json").read_text())
    study = json.loads((RESULTS / "study_gpu_tuned.json").read_text())
    rows, items = result["rows"], result["dataset"]["items"]
    test = result["dataset"]["rows"]["test"]
    parts = [HEAD.format(items=items, **test)]
    for kind, words in KINDS.items():
        for task, name in TASKS.items():
            parts.append(f"## {name} {words.format(items=items)}\n\n{table(rows, kind, task)}")
    note = tiger_note(rows)
    parts += [note] if note else []
    found = tuned(study)
    parts.append(
        "## Tuned models among 1 + 99\n\nA base of 8.4 M parameters, 600 steps, the best of eight settings on "
        "validation rows; mean and standard deviation over seeds ([study_tuned.md](study_tuned.md), which has machine, "
        f"date and command). Same test rows and candidates as the sampled tables above.\n\n{tuned_table(found)}"
    )
    parts.append(f"## How the rankers were measured\n\n{measured(rows)}")
    return "\n".join(parts) + TAIL.format(**{task: against(found, rows, task) for task in TASKS})


if __name__ == "__main__":
    (ROOT / "docs" / "leaderboard.md").write_text(page())
