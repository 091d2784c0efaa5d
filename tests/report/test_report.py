"""The report: self-contained, complete for what was recorded, safe with strange text."""

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gems_jax.report import write_report
from gems_jax.report.charts import bars_chart, drift_chart


def metrics_lines(steps: int = 80, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        gate = float(np.clip(0.5 + 0.1 * rng.standard_normal(), 0, 1))
        decay = float(np.exp(-3 * step / steps))
        lines.append(
            {
                "step": step,
                "loss/rec": 5.5 + 3 * decay + 0.15 * rng.standard_normal(),
                "loss/src": 3.5 + 5 * decay + 0.15 * rng.standard_normal(),
                "gate/rec": gate,
                "gate/src": 1 - gate,
                "grad_norm/rec": 1 + 2 * decay + 0.1 * rng.random(),
                "grad_norm/src": 2 + 2 * decay + 0.1 * rng.random(),
                "conflict/rec-src": 0.85 * decay + 0.06 * rng.standard_normal(),
                "null_space/leak": 2e-7 * float(np.exp(0.3 * rng.standard_normal())),
                "tokens_per_second": 21000.0,
            }
        )
        if step % (steps // 8) == 0:
            lines[-1] |= {
                "eval/rec/hit@10": 0.39 - 0.2 * decay,
                "eval/src/hit@10": 0.72 - 0.4 * decay,
                "eval/general/loss": 4.65 + 0.38 * (1 - decay),
            }
    return lines


def task_entry(hit: float, rows: int = 8317) -> dict[str, Any]:
    entry: dict[str, Any] = {"rows": rows}
    for k, share in ((5, 0.7), (10, 1.0), (20, 1.3)):
        for name, value in (("hit", hit), ("ndcg", 0.65 * hit), ("mrr", 0.5 * hit), ("map", 0.5 * hit)):
            entry[f"{name}@{k}"] = share * value
            entry[f"{name}@{k}_ci"] = [share * value - 0.011, share * value + 0.011]
            entry[f"released_{name}@{k}"] = share * value
    return entry


def shift(scale: float) -> dict[str, list[float]]:
    names = [f"encoder/block/{part}/kernel" for part in ("attention/q", "attention/o", "mlp/wi_0", "mlp/wo")]
    names += [f"decoder/block/{part}/kernel" for part in ("self_attention/v", "cross_attention/v", "mlp/wo")]
    return {name: [scale * (1 + row) / (2 + layer) for layer in range(4)] for row, name in enumerate(names)}


def evaluation() -> dict[str, Any]:
    def general(forgetting: float) -> dict[str, Any]:
        full = {"loss_full": 5.05 + 1.3 * forgetting, "base_loss_full": 4.66}
        kept = {
            "top1_agreement": 1 - 0.2 * forgetting,
            "top1_agreement_full": 1 - 0.3 * forgetting,
            "shift": shift(0.1 * forgetting),
        }
        losses = {"loss": 4.65 + forgetting, "base_loss": 4.65} | full
        return losses | {name.replace("loss", "perplexity"): math.exp(loss) for name, loss in losses.items()} | kept

    def outcome(difference: float, p_value: float) -> dict[str, dict[str, float]]:
        ends = {"low": difference - 0.01, "high": difference + 0.01}
        return {"ndcg@10": {"difference": difference, **ends, "p_value": p_value, "users": 900}}

    titles = [
        "Magnetic Stirrer Hot Plate, 5 x 5 inch, Ceramic Top",
        "Borosilicate Glass Beaker Set, 5 Pieces",
        "Nitrile Exam Gloves, Powder Free, Medium, Box of 100",
        "Digital Pocket Scale 0.01 g",
        "pH Test Strips, 0-14, 200 Count",
    ]
    top = [{"title": title, "score": -1.2 - 0.3 * i, "hit": False} for i, title in enumerate(titles)]
    found = [item | {"hit": i == 1} for i, item in enumerate(top)]
    return {
        "rec": task_entry(0.381),
        "src": task_entry(0.712, rows=8116),
        "general": general(0.37),
        "baselines": {
            "popularity": {"rec": task_entry(0.272), "src": task_entry(0.272)},
            "cooccurrence": {"rec": task_entry(0.385)},
            "bm25": {"src": task_entry(0.682)},
        },
        "comparison": {
            "AdamW, joint loss": {
                "rec": task_entry(0.376),
                "src": task_entry(0.718),
                "general": general(0.83),
            },
            "GEMS without null space": {
                "rec": task_entry(0.379),
                "src": task_entry(0.709),
                "general": general(2.9),
            },
        },
        "paired": {
            "AdamW, joint loss": {"rec": outcome(0.012, 0.004), "src": outcome(-0.021, 0.0002)},
            "GEMS without null space": {"rec": outcome(0.001, 0.8)},
        },
        "examples": [
            {"task": "rec", "user": "u1", "history": titles + titles[:3], "query": "", "top": top,
             "target": "Laboratory Timer with Magnet"},
            {"task": "src", "user": "u2", "history": titles[2:], "query": "glas beaker", "top": found,
             "target": titles[1]},
        ],
    }  # fmt: skip


def make_workdir(folder: Path, lines: list[dict[str, Any]] | None, content: dict[str, Any] | None) -> Path:
    if lines is not None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    if content is not None:
        (folder / "eval.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def pictures(html: str) -> list[str]:
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    return [base64.b64decode(picture).decode() for picture in found]


class Checker(HTMLParser):
    """Every opened tag is closed, and nothing but anchors and embedded data is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "action", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = make_workdir(tmp_path_factory.mktemp("run"), metrics_lines(), evaluation())
    path = write_report(folder)
    assert path == folder / "report.html"
    assert sorted(file.name for file in folder.iterdir()) == ["eval.json", "metrics.jsonl", "report.html"]
    return path.read_text(encoding="utf-8")


def test_report_is_well_formed_and_asks_for_nothing_from_outside(full_report: str) -> None:
    checker = Checker()
    checker.feed(full_report)
    assert not checker.open
    assert "script" not in checker.tags
    assert "link" not in checker.tags
    assert all(reference.startswith("data:") for reference in checker.references)
    assert "url(" not in full_report
    for picture in pictures(full_report):
        assert not re.findall(r'(?:href|src)="(?!#)', picture)


def test_report_shows_every_method_and_marks_the_best_of_a_column(full_report: str) -> None:
    for name in ("Popularity", "Item co-occurrence", "BM25", "AdamW, joint loss", "GEMS (this run)"):
        assert f"<td>{name}</td>" in full_report
    best = re.findall(r'class="best"><b>([^<]+)</b>', full_report)
    assert {"0.385", "0.718", "+0.88"} <= set(best)  # forgetting: over all tokens
    assert "0.381" not in best
    assert "8,317 recommendation rows, 8,116 search rows" in full_report


def test_every_picture_has_one_caption(full_report: str) -> None:
    captions = re.findall(r"<figcaption>(.+?)</figcaption>", full_report)
    assert len(captions) == len(pictures(full_report)) == full_report.count("<figure")
    assert len(captions) == 13
    for title in ("Loss of each task", "Gates", "Do the tasks pull apart?", "Leak into general directions"):
        assert f"<h3>{title}</h3>" in full_report


def test_report_shows_every_metric_of_this_run_with_its_interval(full_report: str) -> None:
    (table,) = re.findall(r"<h3>Recommendation: all metrics of this run</h3>(.+?)</table>", full_report)
    assert re.findall(r"<th>([^<]+)</th>", table) == ["Metric", "@5", "@10", "@20"]
    assert re.findall(r"<tr><td>([^<]+)</td>", table) == ["hit", "ndcg", "mrr", "map"]
    assert '<b>0.495</b><span class="ci">0.484 to 0.506</span>' in table


def test_released_variants_are_shown_where_they_differ(tmp_path: Path) -> None:
    content = evaluation()
    content["rec"]["released_map@20"] += 0.1
    html = write_report(make_workdir(tmp_path, None, content)).read_text(encoding="utf-8")
    assert html.count("<td>released map</td>") == 1
    assert "<td>released ndcg</td>" not in html


def test_report_shows_what_separates_this_run_from_others(full_report: str) -> None:
    (table,) = re.findall(r"<h3>This run less another, on the same users</h3>(.+?)</table>", full_report)
    assert '<td class="better"><b>+0.012</b><span class="ci">+0.002 to +0.022, p = 0.004</span>' in table
    assert '<td class="worse"><b>-0.021</b><span class="ci">-0.031 to -0.011, p &lt; 0.001</span>' in table
    assert "<td><b>+0.001</b>" in table
    assert '<td class="none">' in table


def test_report_shows_which_choices_were_kept_and_how_far_each_layer_moved(full_report: str) -> None:
    assert "<th>top-1 kept</th>" in full_report
    heads = re.search(r"<tr><th>Method</th>.*?</tr>", full_report)
    assert "<th>forgetting</th>" in heads[0]
    assert "for 92.6% of tokens" in full_report
    assert "<h3>How far each layer&#x27;s output has moved</h3>" in full_report
    assert "The largest, 13.0%, is in decoder mlp wo." in full_report
    assert "<h3>Output shift of each run</h3>" in full_report


def test_report_gives_loss_and_perplexity_before_and_after_over_both_vocabularies(full_report: str) -> None:
    (table,) = re.findall(r"<h3>Loss and perplexity on general text</h3>(.+?)</table>", full_report)
    rows = [re.findall(r"<td[^>]*>(?:<b>)?([^<]*)", row) for row in re.findall(r"<tr[^>]*>(<td.+?)</tr>", table)]
    assert [row[0] for row in rows] == ["AdamW, joint loss", "", "GEMS without null space", "", "GEMS (this run)", ""]
    assert rows[4][1:] == ["with item tokens", "4.650", "5.531", "104.58", "252.40", "88.9%"]
    assert rows[5][1:] == ["base model&#x27;s", "4.650", "5.020", "104.58", "151.41", "92.6%"]


def test_shifts_of_unstacked_kernels_and_of_many_layers_are_drawn(tmp_path: Path) -> None:
    shifts = {"head/kernel": 0.25, "block/mlp/wo/kernel": [0.01 * layer for layer in range(30)]}
    content = {"rec": {"hit@10": 0.1}, "general": {"loss": 2.0, "base_loss": 1.0, "shift": shifts}}
    html = write_report(make_workdir(tmp_path, None, content)).read_text(encoding="utf-8")
    assert "The largest, 29.0%, is in mlp wo." in html
    assert "Output shift of each run" not in html


def test_examples_show_history_query_and_where_the_target_stands(full_report: str) -> None:
    assert "right item at place 2" in full_report
    assert "right item not among the first 5" in full_report
    assert '<span class="query">glas beaker</span>' in full_report
    assert "Chosen: Laboratory Timer with Magnet" in full_report
    assert "… 3 earlier" in full_report


def test_same_records_give_the_same_bytes(tmp_path: Path, full_report: str) -> None:
    folder = make_workdir(tmp_path, metrics_lines(), evaluation())
    again = write_report(folder).read_text(encoding="utf-8")
    assert pictures(again) == pictures(full_report)


def test_titles_and_queries_cannot_put_markup_into_the_page(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script>'
    content = {
        "rec": {"hit@10": 0.1},
        "comparison": {nasty: {"rec": {"hit@10": 0.2}}},
        "examples": [
            {"task": nasty, "history": [nasty], "query": nasty, "target": nasty,
             "top": [{"title": nasty, "score": -1.0, "hit": False}]}
        ],
    }  # fmt: skip
    html = write_report(make_workdir(tmp_path, None, content)).read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 5


def test_run_that_is_not_evaluated_yet_still_gets_its_training_pictures(tmp_path: Path) -> None:
    html = write_report(make_workdir(tmp_path, metrics_lines(10), None)).read_text(encoding="utf-8")
    assert "has not been evaluated yet" in html
    assert len(pictures(html)) >= 5


def test_what_was_not_recorded_is_left_out(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss/only": 1.0}, {"step": 2, "loss/only": float("nan")}]
    html = write_report(make_workdir(tmp_path, lines, {"only": {"hit@10": 0.5}})).read_text(encoding="utf-8")
    assert len(pictures(html)) == 2
    assert "General text" not in html


def test_resumed_run_counts_a_repeated_step_once_and_a_cut_off_last_line_not_at_all(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss/rec": 9.0}, {"step": 2, "loss/rec": 5.0}, {"step": 1, "loss/rec": 1.0}]
    make_workdir(tmp_path, lines, None)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "loss/r')
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "2 steps" in html
    assert "recommendation 1.00 → 5.00" in html


def test_zero_leak_is_drawn(tmp_path: Path) -> None:
    lines = [{"step": step, "null_space/leak": 0.0} for step in range(1, 4)]
    html = write_report(make_workdir(tmp_path, lines, None)).read_text(encoding="utf-8")
    assert "within what float32 rounding allows" in html


def test_leak_above_the_bound_is_said_aloud(tmp_path: Path) -> None:
    lines = [{"step": step, "null_space/leak": 0.3} for step in range(1, 4)]
    html = write_report(make_workdir(tmp_path, lines, None)).read_text(encoding="utf-8")
    assert "ABOVE what float32 rounding allows" in html


def test_text_that_the_tokenizer_does_not_know_stands_below_the_results(tmp_path: Path) -> None:
    content = {"rec": task_entry(0.3), "unknown_tokens": {"titles": 0.625, "queries": 0.01},
               "unknown_words": {"titles": ["kettle"]}}  # fmt: skip
    html = write_report(make_workdir(tmp_path, None, content)).read_text(encoding="utf-8")
    said = "the tokenizer does not know 62 % of the tokens of titles (such as &#x27;kettle&#x27;): the model reads one"
    assert html.count(said) == 1
    assert "of queries" not in html


def test_folder_without_records_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("metrics", "evaluation_text", "message"),
    [
        ('{"step": 1}\nnot json\n{"step": 2}\n', None, "metrics.jsonl, line 2: not JSON"),
        ('{"loss/rec": 1}\n', None, 'metrics.jsonl, line 1: .*"step"'),
        ("[1]\n", None, "metrics.jsonl, line 1"),
        (None, '{"rec": ', "eval.json, line 1: not JSON"),
        (None, "[]", "eval.json: expected an object"),
    ],
)
def test_malformed_file_is_named_and_nothing_is_written(
    tmp_path: Path, metrics: str | None, evaluation_text: str | None, message: str
) -> None:
    for name, text in (("metrics.jsonl", metrics), ("eval.json", evaluation_text)):
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert not list(tmp_path.glob("*report*"))


def test_a_chart_of_zeros_has_an_axis():
    """A model that finds nothing has bars of no length, and warnings are errors here."""
    rows = [("GEMS", 0.0, (0.0, 0.0)), ("popularity", 0.0, None)]
    assert "0.000" in bars_chart(rows, "GEMS", "#225588", "hit@10")
    assert drift_chart([("GEMS", 2.0, 2.0)], "GEMS", "loss")
