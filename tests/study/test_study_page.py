"""The page of a study: from a made-up study.json, and from a real one of two methods."""

import json
import re

import numpy as np
import pytest
from few_kernels import few_kernels
from tiny import gems_jax, options

from gems_jax import cli
from gems_jax.config.run import Config
from gems_jax.evaluation.evaluate import load_rankings
from gems_jax.evaluation.paired import metric_of_rows, paired_test
from gems_jax.study.figures import figures
from gems_jax.study.pictures import plane
from gems_jax.training.workdir.files import as_json

TASKS = ("rec", "src")


PLACE = {
    "machine": "a machine", "device": "1 x cpu", "python": "3.11", "versions": {"jax": "0.1"}, "date": "2026-01-01",
}  # fmt: skip


def forgot(forgetting):
    return {"forgetting": forgetting, "forgetting_base_vocabulary": forgetting}


def curve(values):
    return {"step": list(range(10, 10 * len(values) + 10, 10)), "value": values}


def made_up():
    """Three methods; CAGrad's runs all diverged."""
    grid, rows, methods = [1e-3, 3e-3, 1e-2], [], []
    names = {"adamw": ("joint AdamW", 0.20, 2.0), "gems": ("GEMS", 0.25, 0.3), "cagrad": ("CAGrad", None, None)}
    for name, (label, level, forgetting) in names.items():
        seeds = [0, 1] if level else []
        rate = {"adamw": 3e-3, "gems": 1e-2}.get(name)
        for learning_rate, seed in [(r, 0) for r in grid] + ([(rate, 1)] if level else []):
            row = {"method": name, "learning_rate": learning_rate, "seed": seed, "chosen": learning_rate == rate}
            if level:
                value = level + 10 * learning_rate / 1000
                found = {task: {"ndcg@10": value, "hit@10": 2 * value} for task in TASKS}
                row |= {"valid": found, "test": found, "general": forgot(forgetting)}
            else:
                row |= {"diverged": "not finite"}
            rows.append(row)
        method = {"name": name, "label": label, "learning_rate": rate, "at_edge": rate == 1e-2, "seeds": seeds,
                  "diverged": 0 if level else 3}  # fmt: skip
        if level:
            numbers = {f"test/{t}/{m}": {"mean": level * k, "sd": 0.01} for t in TASKS for m, k in
                       (("ndcg@10", 1), ("hit@10", 2))}  # fmt: skip
            method["numbers"] = numbers | {
                "general/forgetting": {"mean": forgetting, "sd": 0.02},
                "general/forgetting_base_vocabulary": {"mean": forgetting, "sd": 0.02},
                "seconds": {"mean": 120.4, "sd": 1.0},
                "optimiser_bytes": {"mean": 3 * 2**20, "sd": 0.0},
            }
            method["curves"] = {"conflict/rec-src": curve([0.9, 0.1, -0.1]), "gate/rec": curve([0.5, 0.4]),
                                "gate/src": curve([0.5, 0.6]), "captured/shared": curve([0.9, 0.7])}  # fmt: skip
            spectra = {"share": [0.1, 0.5, 1.0], "shared": [0.7, 0.9, 1.0], "rec": [0.6, 0.9, 1.0]}
            method["spectra"] = {"before": spectra, "after": spectra}
        methods.append(method)
    test = {
        "difference": 0.05,
        "low": 0.03,
        "high": 0.07,
        "p_value": 1e-4,
        "users": 99,
        "seeds": 2,
        "p_corrected": 1e-4,
    }
    worse = test | {"difference": -0.01, "p_corrected": 0.4}
    methods[1]["against"] = {
        f"{task}/{m}": test if task == "rec" else worse for task in TASKS for m in ("ndcg@10", "hit@10")
    }
    return {
        "format": 1,
        "command": "gems-jax compare --workdir d",
        "circumstances": [{"where": PLACE, "methods": list(names), "rows": 11}],
        "settings": as_json(Config()),
        "study": {"methods": list(names), "main": ["adamw", "gems"], "seeds": 2, "rest_seeds": 1, "grid": grid,
                  "metric": "ndcg@10", "valid_rows": 0, "rows": 11, "finished": 11},
        "base": {"general": {"loss": 4.25}, "unigram_loss": 6.0,
                 "rankers": {"popularity": {t: {"ndcg@10": 0.1, "hit@10": 0.2} for t in TASKS},
                             "BM25": {"src": {"ndcg@10": 0.4, "hit@10": 0.5}}}},
        "methods": methods,
        "rows": rows,
    }  # fmt: skip


def page_of(summary, folder):
    (folder / "study.json").write_text(json.dumps(summary))
    assert gems_jax("compare", "--results", folder / "study.json", "--page", folder / "docs" / "study.md") == 0
    return (folder / "docs" / "study.md").read_text()


def table_rows(text, heading):
    """Cells of the first table behind a heading, by the first one."""
    lines = text.partition(f"## {heading}\n\n")[2].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in (cells[0], *cells[2:])}


def test_a_page_says_which_runs_were_made_where(tmp_path):
    summary = made_up()
    summary["circumstances"] = [
        {"where": PLACE, "methods": ["adamw"], "rows": 4},
        {"where": PLACE | {"device": "1 x gpu"}, "methods": ["gems", "cagrad"], "rows": 1},
    ]
    text = page_of(summary, tmp_path)
    assert "joint AdamW (4 runs): a machine, 1 x cpu; Python" in text
    assert "GEMS, CAGrad (1 run): a machine, 1 x gpu; Python" in text


def test_a_page_shows_every_rate_of_kernels_with_every_rate_of_item_rows(tmp_path):
    summary = made_up()
    summary["study"] |= {"grid": [1e-3, 1e-2], "item_grid": [3e-3]}
    summary["rows"] = [row | {"item_learning_rate": 3e-3} for row in summary["rows"]]
    summary["methods"] = [method | {"item_learning_rate": 3e-3} for method in summary["methods"]]
    text = page_of(summary, tmp_path)
    assert "the learning rates of kernels and item rows of each method were chosen on" in text
    assert "learning rates 0.001, 0.01, with 0.003 for item rows, for every method" in text
    grid = table_rows(text, "The grid")
    assert grid[""] == ["0.001, items 0.003", "0.01, items 0.003"]
    assert grid["GEMS"] == ["0.250 / 0.250, +0.30", "**0.250 / 0.250**, +0.30"]
    assert table_rows(text, "Results")["**GEMS**"][0] == "0.01, items 0.003"


def test_times_of_another_machine_than_most_are_left_out(tmp_path):
    summary = made_up()
    third = summary["methods"][0] | {"name": "lora", "label": "LoRA"}
    summary["methods"].append(third)
    for method, place in zip(summary["methods"], ("a card", "two cores", None, "a card"), strict=True):
        method["timed_on"] = place
    table = table_rows(page_of(summary, tmp_path), "Results")
    seconds = table[""].index("seconds a run")
    assert [table[name][seconds] for name in ("joint AdamW", "**GEMS**", "LoRA")] == ["120", "–", "120"]


def test_what_a_method_ranks_at_where_little_may_be_forgotten(tmp_path):
    summary = made_up()
    changes = {"adamw": (0.2, 2.0, 12.0), "gems": (0.1, 0.25, 0.3)}
    levels = {"adamw": (0.1, 0.3, 0.2), "gems": (0.2, 0.15, 0.25)}
    for name in changes:
        for row in summary["rows"]:
            if row["method"] == name and row["seed"] == 0:
                place = summary["study"]["grid"].index(row["learning_rate"])
                row["general"] = forgot(changes[name][place])
                row["valid"] = {"rec": {"ndcg@10": levels[name][place]}, "src": {"ndcg@10": 0.5}}
            elif row["method"] == name:  # other seeds are of the chosen rate alone
                row["general"] = forgot(0.0)
                row["valid"] = {task: {"ndcg@10": 0.9} for task in TASKS}
    summary["at_equal_forgetting"] = {
        "3": {"gems": {"against": {"rec/ndcg@10": {"difference": -0.1, "p_corrected": 0.01}}}}
    }
    text = page_of(summary, tmp_path)
    lines = text.partition("frontier.svg")[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    table = {row[0]: row[1:] for row in cells[:5] if not row[0].startswith("-")}
    assert table[""] == ["area to +1", *(f"at most +{limit}" for limit in ("0.05", "0.1", "0.3", "1", "3")), "any"]
    first, second = "0.100 / 0.500", "0.300 / 0.500"
    # Between .2 and 1 nats AdamW's first run is the best: .3 mean over tasks times .8.
    assert table["joint AdamW"] == ["0.240", "–", "–", first, first, second, second]
    one, two = "0.200 / 0.500", "0.250 / 0.500"
    assert table["GEMS"] == [f"{0.2 * 0.35 + 0.7 * 0.375:.3f}", "–", one, two, two, "0.250 ▼ / 0.500", two]
    assert table["CAGrad"] == ["0.000", *["–"] * 6]
    assert "within the same limit, ndcg@10 user by user" in text


def test_a_page_shows_what_is_within_the_budget(tmp_path):
    summary = made_up()
    assert "## Within" not in page_of(summary, tmp_path)
    gems = summary["methods"][1]
    numbers = gems["numbers"] | {"general/forgetting": {"mean": 0.2, "sd": 0.05}}
    level = gems["against"]["src/ndcg@10"]
    gems["within_budget"] = {
        "learning_rate": 3e-3, "item_learning_rate": None, "seeds": [0, 1], "numbers": numbers,
        "against": dict.fromkeys(gems["against"], level | {"difference": 0.0123}),
    }  # fmt: skip
    summary["methods"].append(summary["methods"][0] | {"name": "lora", "label": "LoRA"})
    summary["study"] |= {"budget": 0.2, "forgetting_allowed": 0.4}
    text = page_of(summary, tmp_path)
    table = table_rows(text, "Within 0.2 of what joint AdamW forgets")
    assert list(table) == ["", "joint AdamW", "GEMS"]
    assert table["GEMS"] == ["0.003", "2", *["0.250 ± 0.010", "0.500 ± 0.010"] * 2, "0.200 ± 0.050", "0.10", "–"]
    assert table["joint AdamW"][6:8] == ["2.000 ± 0.020", "1.00"]
    # CAGrad's runs all diverged: that is said elsewhere.
    assert "forget at most 0.40, 0.2 of the mean forgetting of joint AdamW" in text
    assert "Marks as above. Methods without such a run: LoRA.\n" in text
    assert text.count("Recommendation: not told apart (+0.0123 ndcg@10)") == 1
    points = [picture for picture in figures(summary, list(TASKS)) if picture.name == "plane"][0].svg
    without = [picture for picture in figures(made_up(), list(TASKS)) if picture.name == "plane"][0].svg
    assert points.count("<use ") > without.count("<use ")
    assert "Forgetting: 0.200, with joint AdamW 2.000 (ratio 0.10)" in text


def test_a_page_names_the_method_that_others_are_compared_with(tmp_path):
    summary = made_up()
    adamw, gems = summary["methods"][:2]
    summary["study"]["reference"] = "gems"
    adamw["against"] = gems.pop("against")
    text = page_of(summary, tmp_path)
    assert "better and worse than GEMS on the same users" in text
    assert list(table_rows(text, "Against GEMS, user by user")) == ["", "joint AdamW"]
    assert "beside joint AdamW" not in text


def test_results_with_the_names_of_an_earlier_version_make_the_same_page(tmp_path):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "now").mkdir()
    earlier = json.loads(
        re.sub(r'"(general/)?forgetting": ([^{}]*?|{.*?}), ', "", json.dumps(made_up())).replace(
            "forgetting_base_vocabulary", "rise"
        )
    )
    said = "general/rise is called general/forgetting_base_vocabulary now, rise is called forgetting_base_"
    with pytest.warns(UserWarning, match=said):
        found = page_of(earlier, tmp_path / "earlier")
    assert found == page_of(made_up(), tmp_path / "now")


def test_earlier_results_show_what_was_forgotten_over_all_tokens_from_their_losses(tmp_path):
    summary = made_up()
    for row in summary["rows"]:
        if "general" in row:
            row["general"] = {"forgetting": 0.1, "loss_full": 5.5, "base_loss": 4.0, "forgetting_full": 0.2}
    for method in summary["methods"][:2]:
        numbers = method["numbers"]
        del numbers["general/forgetting_base_vocabulary"]
        numbers |= {
            "general/forgetting": {"mean": 0.1, "sd": 0.5},
            "general/forgetting_full": {"mean": 0.2, "sd": 0.5},
            "general/loss_full": {"mean": 5.25, "sd": 0.125},
            "general/base_loss": {"mean": 4.0, "sd": 0.0},
        }
    with pytest.warns(UserWarning, match="forgetting is called forgetting_base_vocabulary now"):
        text = page_of(summary, tmp_path)
    assert table_rows(text, "Results")["joint AdamW"][6] == "1.250 ± 0.125"
    assert table_rows(text, "The grid")["joint AdamW"][0].endswith(", +1.50")


def test_a_page_says_what_the_results_say(tmp_path):
    text = page_of(made_up(), tmp_path)
    results = table_rows(text, "Results")
    assert results["**GEMS**"] == [
        "0.01", "2", "0.250 ± 0.010 ▲", "0.500 ± 0.010 ▲", "0.250 ± 0.010", "0.500 ± 0.010", "0.300 ± 0.020", "–",
        "120", "3.0",
    ]  # fmt: skip
    assert results["joint AdamW"][2] == "0.200 ± 0.010"
    assert results["BM25"][2:6] == ["–", "–", "0.400", "0.500"]
    assert "CAGrad" not in results
    assert table_rows(text, "The grid")["CAGrad"] == ["diverged"] * 3
    assert table_rows(text, "The grid")["GEMS"] == [
        "0.250 / 0.250, +0.30",
        "0.250 / 0.250, +0.30",
        "**0.250 / 0.250**, +0.30",
    ]
    assert "at an end of the grid for GEMS:" in text
    assert "every run diverged: CAGrad." in text
    assert "loss 4.250 a token on held-out general text (a unigram model: 6.000, 1.75 worse)" in text
    assert "Recommendation: better (+0.0500 ndcg@10)" in text
    assert "Search: not told apart (-0.0100 ndcg@10)" in text
    assert "Forgetting: 0.300, with joint AdamW 2.000 (ratio 0.15)" in text
    assert "gems-jax compare --workdir d" in text
    assert "\n\na machine, 1 x cpu; Python 3.11, jax 0.1; 2026-01-01." in text


@pytest.mark.parametrize("changes", [(0.1, 20.0, 3.0), (-0.2, 0.0, 5.0), (0.0, 0.0, 0.0)])
def test_names_of_many_methods_stay_inside_the_picture(changes):
    names = [f"GEMS with a name as long as any, {number}" for number in range(18)]
    points = [(name, 0.01 * n, 0.9, changes[n % 3]) for n, name in enumerate(names)]
    svg = plane(points, ("x", "y"), "forgetting")
    texts = [float(x) for x in re.findall(r'<g style="fill: #1f2933" transform="translate\(([-\d.]+) ', svg)]
    assert len(texts) >= 18
    assert min(texts) > 0  # they stand in the middle: what is too wide begins outside


def test_every_picture_of_a_page_is_there_and_the_same_results_give_the_same_bytes(tmp_path):
    text = page_of(made_up(), tmp_path)
    named = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert [name.removeprefix("study/") for name in named] == [
        "frontier.svg", "plane.svg", "conflict.svg", "gates.svg", "captured.svg", "spectra.svg"
    ]  # fmt: skip
    first = {name: (tmp_path / "docs" / name).read_bytes() for name in named}
    assert all(content.startswith(b"<?xml") for content in first.values())
    assert page_of(made_up(), tmp_path) == text
    assert {name: (tmp_path / "docs" / name).read_bytes() for name in named} == first


def test_a_study_of_one_learning_rate_does_not_say_that_it_chose_one(tmp_path):
    summary = made_up()
    assert "was chosen on validation rows from the same grid" in page_of(summary, tmp_path)
    summary["study"]["grid"] = [1e-2]
    text = page_of(summary, tmp_path)
    assert "one learning rate for all, 0.01." in text
    assert "chosen" not in text.split("## Results")[1].split("## ")[0]
    summary["study"]["grid"] = []
    text = page_of(summary, tmp_path)
    assert "runs are finished: each one's own learning rate for every method" in text
    assert "each method has its own learning rate." in text
    grid = text.split("## The grid")[1].split("## ")[0]
    assert "|  | its own |" in grid
    assert all("**" in line for line in grid.splitlines() if line.startswith(("| joint AdamW |", "| GEMS |")))


def test_what_methods_keep_of_facts_is_a_column_where_the_base_knows_enough(tmp_path):
    assert "facts" not in page_of(made_up(), tmp_path)  # of a study from before they were asked
    summary = made_up()
    for row in summary["rows"]:
        row.get("general", {}).update(facts_asked=341, facts_known=25, facts_kept=0.9)
    summary["methods"][1]["numbers"]["general/facts_kept"] = {"mean": 0.96, "sd": 0.02}
    lines = page_of(summary, tmp_path).split("## Results")[1].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    head = next(row for row in rows if "facts kept" in row)
    assert head[-4:] == ["same choice", "facts kept", "seconds a run", "optimiser, MiB"]
    of = {row[0]: row[-3] for row in rows if len(row) == len(head)}
    assert (of["**GEMS**"], of["joint AdamW"], of["popularity"]) == ("0.960 ± 0.020", "–", "–")


def test_a_page_of_an_unfinished_study_leaves_out_what_is_not_there(tmp_path):
    summary = made_up()
    del summary["methods"][1]["numbers"], summary["methods"][1]["against"]
    summary["study"]["finished"] = 5
    text = page_of(summary, tmp_path)
    assert "5 of 11 runs are finished" in text
    assert "Not finished, or every run diverged: GEMS; CAGrad." in text
    assert "beside joint AdamW" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: run gems-jax compare first"),
        ("{", "is not JSON"),
        ("[]", "is no result of gems-jax compare"),
        (json.dumps({"format": 2, "methods": []}), "format 1 is needed"),
        (json.dumps({"format": 1, "methods": [{"name": "gems"}]}), "no method with a finished grid yet"),
    ],
)
def test_what_is_no_study_is_refused(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    page = tmp_path / "study.md"
    assert gems_jax("compare", "--results", tmp_path / "study.json", "--page", page) == cli.EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
    assert not page.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["compare"], "compare needs --workdir"),
        (["compare", "--results", "r.json"], "name the file to write as --page"),
        (["compare", "--workdir", "w", "--study.methods", "[gem]"], "no method 'gem'"),
        (["compare", "--workdir", "w", "--study.seedz", "3"], "did you mean"),
    ],
)
def test_a_study_that_cannot_be_is_refused(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gems_jax(*argv) == cli.EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- a real one ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studied(prepared, tmp_path_factory):
    """Twenty-five seconds, for a study from the command to its page: two methods tuned and ranked."""
    folder = tmp_path_factory.mktemp("study")
    words = ["compare", "--workdir", folder / "d", *options(prepared.root, train__steps=4, evaluate__facts=True),
             "--study.methods", "[adamw,gems]", "--study.seeds", "1", "--study.grid", "[0.01]",
             "--page", folder / "study.md"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, few_kernels():
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        assert gems_jax(*words) == 0
    return folder, words


def test_a_study_of_two_methods_ends_in_numbers_and_a_page(studied):
    folder, _ = studied
    summary = json.loads((folder / "d" / "study.json").read_text())
    assert [method["name"] for method in summary["methods"]] == ["adamw", "gems"]
    users = load_rankings(folder / "d" / "runs" / "gems" / "0.01" / "0" / "ranking_rec.npz")
    for method in summary["methods"]:
        place = folder / "d" / "runs" / method["name"] / "0.01" / "0"
        for task in TASKS:
            values = metric_of_rows(load_rankings(place / f"ranking_{task}.npz"), "ndcg@10")
            assert method["numbers"][f"test/{task}/ndcg@10"]["mean"] == pytest.approx(values.mean())
        assert {"conflict/rec-src", "loss/rec"} <= set(method["curves"])
        for spectra in method["spectra"].values():
            assert all(np.all(np.diff(spectra[name]) >= 0) and spectra[name][-1] == 1 for name in ("shared", *TASKS))
        assert not (place / "checkpoints").exists()
        result = json.loads((place / "result.json").read_text())
        assert result["config"]["train"]["learning_rate"] == 0.01
        assert result["general"]["forgetting"] == pytest.approx(
            result["general"]["loss_full"] - result["general"]["base_loss"]
        )
        assert result["general"]["facts_asked"] == 341
    assert {"gate/rec", "captured/shared"} <= set(summary["methods"][1]["curves"])
    a, b = (
        metric_of_rows(load_rankings(folder / "d" / "runs" / name / "0.01" / "0" / "ranking_rec.npz"), "ndcg@10")
        for name in ("gems", "adamw")
    )
    expected = paired_test(a, b, users["user_ids"])
    found = summary["methods"][1]["against"]["rec/ndcg@10"]
    assert (found["difference"], found["p_value"]) == (expected.difference, expected.p_value)
    text = (folder / "study.md").read_text()
    assert re.search(
        r"^Facts: the base model is sure of \d answers? to 341 prompts, too few to say", text, re.MULTILINE
    )
    assert set(table_rows(text, "Results")) == {
        "",
        "popularity",
        "popularity, same task",
        "item co-occurrence",
        "BM25",
        "BM25, stemmed",
        "BM25, titles and queries",
        "BM25, titles and queries, popularity",
        "joint AdamW",
        "**GEMS**",
    }
    assert (folder / "study" / "plane.svg").is_file()


def test_a_finished_study_runs_nothing_again(studied, monkeypatch):
    folder, words = studied
    monkeypatch.setattr("gems_jax.study.compare.run_trial", None)
    before = (folder / "d" / "study.json").read_text()
    assert gems_jax(*words) == 0
    assert (folder / "d" / "study.json").read_text() == before
    (folder / "study.md").unlink()
    assert gems_jax(*words, "--summarise") == 0
    assert (folder / "study.md").is_file()
