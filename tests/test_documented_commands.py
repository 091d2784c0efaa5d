"""Every block and every command of the pages is run, or read as the program reads it, or stands here with a reason.

A block or a command that is none of these fails. Commands whose work takes minutes, or of which another one with other
options is run, are read by their program's own parser, and their configuration is checked as when they are run. What is
asked of the demo's run, and trained beside it, is run on a tiny one. Some forty seconds.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from documented import blocks, commands, hidden, run
from few_kernels import few_kernels
from named_code import ROOT
from tiny import MODEL, TUNING, gems_jax, read

from gems_jax import arguments, cli
from gems_jax.arguments import config_of
from gems_jax.commands import COMMANDS
from gems_jax.config.methods import METHODS
from gems_jax.training.optimiser.methods import BUILDERS

# Pages whose Python is run by a test of their own, here and elsewhere; tests/test_documented_code.py runs all others.
PYTHON_ELSEWHERE = {
    "docs/data.md": "tests/data/test_table_format.py",
    "docs/methods.md": "tests/test_documented_commands.py",
    "docs/serving.md": "tests/test_documented_commands.py",
    "docs/tutorial.md": "tests/test_tutorial.py",
}
# Blocks that no program reads.
TEXT = {
    "docs/optimiser.md": "a formula",
    "docs/tutorial.md": "what evaluate prints: tests/test_tutorial.py compares its rows",
}
# Programs that are not here, and words for them that are no more than looked at.
ELSEWHERE = {
    "curl": "needs the network, or a service: what it asks of one is asked below",
    "docker": "needs docker",
    "hf": "needs the network",
    "kubectl": "needs a cluster",
    "python -m http.server": "Python's own, and never ends",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks like the checkout of somebody who has followed the pages up to their commands."""
    here = tmp_path_factory.mktemp("reader")
    (here / "configs").symlink_to(ROOT / "configs")
    (here / "C").write_bytes((ROOT / "configs/demo.yaml").read_bytes())
    (config,) = [block.text for block in blocks() if (block.page, block.language) == ("docs/tutorial.md", "yaml")]
    (here / "shop.yaml").write_text(config)
    return here


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Page and words of every command."""
    found = commands(tmp_path_factory.mktemp("shell"))
    assert len(found) > 150
    return found


def of(shown, *programs):
    return [(page, words) for page, words in shown if words[0] in programs]


# --- Blocks -----------------------------------------------------------------------------------------------------


def test_no_code_is_shown_without_a_fence_that_says_what_it_is():
    assert hidden() == []


def test_every_block_is_one_that_a_test_looks_at():
    here = (ROOT / "tests/test_documented_code.py").read_text()
    for block in blocks():
        if block.language == "python":
            test = PYTHON_ELSEWHERE.get(block.page, "tests/test_documented_code.py")
            text = (ROOT / test).read_text()
            assert block.page.removeprefix("docs/") in text, f"{block.page}: no test runs its Python"
            assert test != "tests/test_documented_code.py" or f'run("{block.page}")' in here
        elif block.language in ("csv", "json"):  # files of the page's example, which is run
            assert re.search(r"`[\w.]+`:$", block.before), block.text
            assert block.page in PYTHON_ELSEWHERE
        elif block.language == "text":
            assert block.page in TEXT
        else:
            assert block.language in ("bash", "yaml", "bibtex"), f"{block.page}: {block.language!r}\n{block.text}"


def test_configurations_of_the_pages_are_ones_that_are_taken(tmp_path):
    found = [block for block in blocks() if block.language == "yaml"]
    assert len(found) >= 5
    for number, block in enumerate(found):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block.text)
        given = yaml.safe_load(block.text)
        assert read("prepare", "--config", path).data.name == given["data"]["name"]


def test_what_is_cited_is_what_the_citation_file_names():
    (entry,) = [block.text for block in blocks() if block.language == "bibtex"]
    named = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    title = re.search(r"title\s+= \{(.*)\}", entry)[1]
    assert title in json.dumps(named)
    assert re.search(r"arXiv:([\d.]+)", entry)[1] in json.dumps(named)


# --- Commands ---------------------------------------------------------------------------------------------------


def taken(words):
    """Reads a command of ``gems-jax`` as the command does, and checks the configuration among its options."""
    _, options = cli.parse(words)
    if "train" in options and "data" in options:
        config_of(options)
    if "study" in options:
        assert options.study.names()


def test_every_command_is_one_that_a_test_below_looks_at(shown):
    programs = {"gems-jax", "python", ".venv/bin/python", "make", "pip", "sbatch"}
    for page, words in shown:
        known = words[0] in programs or words[0].startswith("launch/") or words[0] in ELSEWHERE
        assert known, f"{page}: nothing looks at {' '.join(words)}"


def test_commands_of_gems_jax_are_taken_as_they_stand(shown, folder, monkeypatch):
    monkeypatch.chdir(folder)
    make = arguments._parser
    parser_of = functools.cache(lambda name: make(name, COMMANDS[name]))
    monkeypatch.setattr(arguments, "_parser", lambda name, command: parser_of(name))  # most of the time is its making
    wrong = []
    for page, words in of(shown, "gems-jax"):
        if words[1:] == ["--version"]:
            continue
        assert words[1] in COMMANDS, f"{page}: {words}"
        if any(word.startswith("--") for word in words):  # else it is the name of a command in a sentence
            try:
                taken(words[1:])
            except ValueError as error:
                wrong.append(f"{page}: {' '.join(words)}: {error}")
    assert wrong == []


def test_scripts_find_what_they_import_and_take_the_options_that_pages_give_them(shown):
    """What they do with their options takes minutes. Scripts that read none, and those of no page, are loaded alone."""
    cases = []
    for page, (program, *words) in of(shown, "python", ".venv/bin/python"):
        if program != "python" or " ".join([program, *words]).startswith(tuple(ELSEWHERE)):
            continue
        place, rest = (" ".join(words[:2]), words[2:]) if words[0] == "-m" else (str(ROOT / words[0]), words[1:])
        reads = place.startswith("-m ") or "ArgumentParser" in Path(place).read_text()
        assert reads or not rest, f"{page}: {words}"
        cases.append([place, rest if reads else None])
    assert len(cases) > 25
    others = {str(path) for path in (ROOT / "benchmarks").glob("*.py")} - {place for place, _ in cases}
    cases += [[place, None] for place in sorted(others)]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = [sys.executable, ROOT / "tests/helpers/options_taken.py", ROOT]
    done = subprocess.run(program, env=kept, input=json.dumps(cases), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_pages_install_make_and_test_is_there(shown):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page, (_, word, *words) in of(shown, "pip"):
        assert word == "install", page
        for wanted in words:
            name, asked = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?", wanted).groups()
            offered = metadata(name).get_all("Provides-Extra") if name == "jax" else extras
            assert set(asked.split(",") if asked else ()) <= set(offered), f"{page}: {wanted}"
    for page, words in of(shown, "make"):
        assert words[1] in targets, f"{page}: {words}"
    for page, (_, *words) in of(shown, ".venv/bin/python"):
        assert words[:2] == ["-m", "pytest"], page
        assert (ROOT / words[-1]).is_file(), f"{page}: {words}"


def test_scripts_for_clusters_are_there_and_hand_on_options_that_train_takes(shown, folder, monkeypatch):
    """tests/test_launch_scripts.py and tests/test_launch.py say what each script does with them."""
    monkeypatch.chdir(folder)
    for page, (script, *words) in [(page, words) for page, words in shown if words[0].startswith("launch/")]:
        assert (ROOT / script).is_file(), page
        own = {"local.sh": 1, "gpu.sh": 0, "render_jobset.py": 1}.get(Path(script).name)
        if own is None:  # tpu_vm.sh
            (given,) = [re.match("export (.*)", block.text) for block in blocks() if "export NAME=" in block.text]
            environment = os.environ | dict(word.split("=", 1) for word in given[1].split())
            words = words if words[0] == "--dry-run" else ["--dry-run", *words]
            done = subprocess.run(["bash", ROOT / script, *words], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{page}: {words}: {done.stderr}"
            own = 2
        rest = [word.removeprefix("/gems_jax/") for word in words[own:]]
        if rest:
            taken(["train", *rest, *([] if "--workdir" in rest else ["--workdir", "w"])])
    ((_, words),) = of(shown, "sbatch")
    script = words.index("launch/slurm.sbatch")
    assert (ROOT / words[script]).is_file()
    taken(["train", *words[script + 1 :], "--workdir", "runs/big"])
    for page, words in of(shown, "docker"):
        assert (ROOT / words[words.index("--file") + 1]).is_file(), page


# --- The demo's run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(prepared, shown, tmp_path_factory):
    """A folder with a tiny demo, tuned by a command of a page."""
    here = tmp_path_factory.mktemp("demo")
    for name in ("data", "base", "null_space"):
        shutil.copytree(prepared.root / name, here / "runs/demo" / name)
    config = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    for name, value in (MODEL | TUNING | {"train.steps": 2, "items.length_buckets": []}).items():
        section, field = name.split(".")
        config[section][field] = value
    (here / "configs").mkdir()
    (here / "configs/demo.yaml").write_text(yaml.safe_dump(config))
    ((_, words),) = [(page, words) for page, words in shown if page == "docs/optimiser.md" and "fira" in words]
    with pytest.MonkeyPatch.context() as patch, few_kernels():
        patch.chdir(here)
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        assert gems_jax(*words[1:]) == 0
    (here / words[words.index("--workdir") + 1]).rename(here / "runs/demo/gems")
    return here


def test_the_demo_s_run_answers_as_the_page_on_answers_asks_it(demo, shown, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    recommender = run("docs/serving.md")["recommender"]
    assert len([line for line in capsys.readouterr().out.splitlines() if re.match(r"A\d+ ", line)]) == 5
    (predict,) = [words for page, words in of(shown, "gems-jax") if page == "docs/serving.md" and "predict" in words]
    (curl,) = [words for page, words in of(shown, "curl") if page == "docs/serving.md"]
    body = json.loads(curl[curl.index("-d") + 1])
    Path("requests.jsonl").write_text(json.dumps(body) + "\n")
    assert gems_jax(*predict[1:]) == 0
    (answer,) = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    (asked,) = recommender.rank("src", [body])
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in asked.items]


def test_the_method_of_the_page_on_methods_tunes(demo, monkeypatch):
    monkeypatch.chdir(demo)
    try:
        with few_kernels():
            run("docs/methods.md")
    finally:
        METHODS.pop("first-task"), BUILDERS.pop("first-task")
    kept = yaml.safe_load(Path("runs/first/config.yaml").read_text())
    assert kept["train"]["method"] == "first-task"
    assert len(Path("runs/first/metrics.jsonl").read_text().splitlines()) == 2
