"""The tutorial, followed from its first line to its last as it stands, with sizes and steps small enough for a test.

Half a minute, because nothing else shows that its commands fit each other.
"""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from documented import fenced
from few_kernels import few_kernels
from tiny import gems_jax, metrics

PAGE = (Path(__file__).parents[1] / "docs/tutorial.md").read_text()
COMMANDS = re.findall(r"^gems-jax (.*)$", PAGE, re.MULTILINE)
# Fields of its configuration that decide how long it takes; the words of the commands stay as they are.
SMALLER = {
    "text": {"input_length": 48, "eval_batches": 1, "eval_batch_size": 8},
    "pretrain": {
        "steps": 2,
        "batch_size": 8,
        "vocab_size": 600,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_decoder_layers": 1,
    },
    "null_space": {"batches": 2, "batch_size": 8},
    "train": {"steps": 2, "batch_size": 8, "log_every": 1},
    "evaluate": {"rows": 16, "batch_size": 16, "samples": 5, "facts": False},
}


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A folder in which somebody has done all that the page says, and what each command printed."""
    folder, said = tmp_path_factory.mktemp("tutorial"), {}
    with pytest.MonkeyPatch.context() as patch, few_kernels():
        patch.chdir(folder)
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        (program,), (config,) = fenced("docs/tutorial.md", "python"), fenced("docs/tutorial.md", "yaml")
        exec(compile(program, "make_log.py", "exec"), {"__name__": "__main__"})  # noqa: S102
        fields = yaml.safe_load(config)
        smaller = {name: fields.get(name, {}) | changed for name, changed in SMALLER.items()}
        Path("shop.yaml").write_text(yaml.safe_dump(fields | smaller))
        for words in COMMANDS:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert gems_jax(*shlex.split(words)) == 0, words
            said[words.split(" --")[0]] = out.getvalue()
    return folder, said


def test_the_log_has_the_lines_that_the_page_says_and_all_of_them_are_used(followed):
    folder, said = followed
    lines = [len((folder / "shop" / name).read_text().splitlines()) for name in ("interactions.csv", "items.jsonl")]
    assert lines == [3200 + 1, 96]
    assert "train: rec 800, src 800" in said["prepare"]
    assert "bad" not in said["prepare"]


def test_every_step_of_the_page_was_done_with_the_configuration_of_the_page(followed):
    folder, said = followed
    assert [words.split()[0] for words in COMMANDS] == [
        *("prepare", "doctor", "train", "train", "evaluate", "recommend", "search", "export")
    ]
    assert "would fit" in said["doctor"]
    assert len(metrics(folder / "runs/shop/gems")) == 2
    kept = yaml.safe_load((folder / "runs/shop/gems/config.yaml").read_text())
    assert (kept["train"]["method"], kept["data"]["num_negatives"]) == ("gems", 50)
    assert (folder / "runs/shop/gems/report.html").stat().st_size > 10_000
    assert {"model.safetensors", "README.md"} <= {path.name for path in (folder / "runs/shop/export").iterdir()}


def test_the_rows_that_the_page_shows_are_rows_that_evaluate_prints(followed):
    (shown,) = fenced("docs/tutorial.md", "text")
    table = lambda text: [re.split(r"  +", line)[0] for line in text.splitlines()]  # noqa: E731
    assert shown.splitlines()[0] in followed[1]["evaluate"].splitlines()
    assert set(table(shown)) <= set(table(followed[1]["evaluate"]))


def test_answers_are_the_number_of_items_that_is_asked_for(followed):
    titles = [json.loads(line)["title"] for line in (followed[0] / "shop/items.jsonl").read_text().splitlines()]
    for words in ("recommend", 'search "spade"'):
        found = re.findall(r"^ \d\. (.*)  \(i\d+, -\d", followed[1][words], re.MULTILINE)
        assert len(found) == 3
        assert set(found) <= set(titles)
