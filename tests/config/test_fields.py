"""What the fields of a configuration may be: every one has its range, and all that are wrong are named at once."""

import dataclasses
import math
import typing

import pytest
from jsonargparse import ArgumentParser
from tiny import everything_in, fails

from gems_jax.config.checks import check
from gems_jax.config.ranges import RANGES, hints_of
from gems_jax.config.run import Config
from gems_jax.data.raw.options import TableFiles
from gems_jax.evaluation.ranking_summary import CUTOFFS
from gems_jax.study.config import StudyConfig


def leaves(kind, prefix=""):
    """Dotted names and types of all fields that are no sections."""
    for entry in dataclasses.fields(kind):
        hint = hints_of(kind)[entry.name]
        inner = next((x for x in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(x)), None)
        if inner is None:
            yield prefix + entry.name, hint
        else:
            yield from leaves(inner, f"{prefix}{entry.name}.")


FIELDS = dict([*leaves(Config), *leaves(StudyConfig, "study.")])
NUMBERS = {name: hint for name, hint in FIELDS.items() if "int" in str(hint) or "float" in str(hint)}
NUMBERS = {name: hint for name, hint in NUMBERS.items() if "Literal" not in str(hint)}


def with_value(name, value):
    """The default configuration with one field changed; of a study where it is one of its fields."""
    *sections, field = name.split(".")
    if sections[:1] == ["study"]:
        return StudyConfig(**{field: value})
    owners = [Config()]
    for section in sections:
        owners.append(getattr(owners[-1], section) or TableFiles())
    made = dataclasses.replace(owners.pop(), **{field: value})
    for section in reversed(sections):
        made = dataclasses.replace(owners.pop(), **{section: made})
    return made


def refusal(name, value):
    with pytest.raises(ValueError, match=name.rpartition(".")[2]) as refused:
        check(with_value(name, value))
    return str(refused.value)


def test_help_says_of_every_field_what_it_is():
    said = {}
    for kind, name in ((Config, "run"), (StudyConfig, "study"), (TableFiles, "run.data.files")):
        parser = ArgumentParser()
        parser.add_class_arguments(kind, name)
        said |= {action.dest.removeprefix("run."): action.help for action in parser._actions}
    assert [name for name in FIELDS if not said[name] or said[name].startswith("of ")] == []


def test_every_number_has_a_range():
    assert set(RANGES) == set(NUMBERS)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, True, "3", 10**400], ids=lambda x: str(x)[:4])
def test_no_number_is_negative_or_infinite_or_none_at_all(value):
    for name, hint in NUMBERS.items():
        given = (value, value) if "tuple" in str(hint) else value
        assert f"{name.removeprefix('data.')} must be" in refusal(name, given)


def test_what_is_not_optional_is_not_null():
    needed = [name for name, hint in FIELDS.items() if type(None) not in typing.get_args(hint)]
    assert "train.steps" in needed
    for name in needed:
        assert "got None" in refusal(name, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.steps", 0), ("train.learning_rate", 0.0), ("train.batch_size", 0), ("train.log_every", 0),
        ("train.dropout", 1.0), ("train.clip", 0.0), ("train.steps", 2**31), ("train.seed", 2**32),
        ("train.profile", (5, 2)), ("train.profile", (0, 2)), ("gems.rank", 0), ("gems.rank", 1.5),
        ("evaluate.beams", 19), ("evaluate.rows", 0), ("evaluate.batch_size", 0), ("data.max_bad_fraction", 1.1),
        ("items.length_buckets", (16, 0)), ("null_space.energy", 1.1), ("null_space.min_share", 1.0),
        ("mesh.tensor", 0), ("model.path", ""), ("text.train", "a\0b"), ("train.metric", "eval/rec/ndcg@11"),
        ("study.metric", "ndcg@11"), ("study.grid", (1e-3, 0.0)),
    ],
)  # fmt: skip
def test_values_just_outside_are_refused(name, value):
    assert name in refusal(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.seed", 2**32 - 1), ("train.item_learning_rate", 0.0), ("gems.rank", 1.0), ("gems.task_rank", 0),
        ("evaluate.beams", 20), ("data.num_negatives", 0), ("evaluate.samples", 0), ("train.clip", None),
        ("train.learning_rate", 1), ("items.length_buckets", (16, 24)), ("null_space.energy", 1.0),
        ("train.learning_rate", None),
        ("data.files.separators", {"target": ""}), ("data.files.missing", ("", "-")), ("data.files.missing", ()),
    ],
)  # fmt: skip
def test_values_just_inside_are_taken(name, value):
    check(with_value(name, value))


def test_evaluation_needs_as_many_beams_as_its_longest_ranking():
    assert RANGES["evaluate.beams"].least == max(CUTOFFS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--null_space.rank", "4"], "exactly one of null_space.energy, null_space.rank and null_space.threshold"),
        (["--null_space.energy", "null"], "got none"),
        (["--train.batch_size", "6", "--train.accumulate", "4"], "train.batch_size 6 must be divisible"),
        (["--train.stochastic_rounding", "true"], "model.dtype bfloat16 alone"),
        (["--train.patience", "2"], "train.patience=2 needs train.metric"),
        (["--train.metric", "eval/rec/ndcg@10"], "set train.eval_every"),
        (["--train.metric", "eval/buy/hit@10", "--train.eval_every", "5"], "did you mean 'eval/"),
        (["--evaluate.checkpoint", "best"], "evaluate.checkpoint best needs train.metric"),
        (["--train.temperature", "2"], "no effect on train.sampling equal"),
        (["--null_space.energy", "null", "--null_space.rank", "1.0"], "null_space.rank 1.0 is all directions"),
        (["--train.method", "released"], "needs a whole number as gems.rank, got 0.25"),
        (["--items.prompts", '{"rec": "{histroy}"}'], "items.prompts.rec: "),
        (["--data.files.delimiter", ";;"], "error: files.delimiter must be one character (or tab), got ';;'\n"),
        (["--data.files.max_row_bytes", "0"], "data.files.max_row_bytes must be a whole number from 1 on, got 0"),
        (["--evaluate.beams", "10"], "evaluate.beams must be a whole number from 20 on, got 10"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_before_any_work(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said in fails(capsys, "train", "--workdir", "w", *words)
    assert everything_in(tmp_path) == []


def test_all_wrong_fields_are_named_in_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "train:\n  steps: 0\n  schedule: cosin\n  clip: .inf\ndata: {preprocessing: {core: -1}}\n"
    )
    assert fails(capsys, "prepare", "--config", "c.yaml").splitlines() == [
        "gems-jax: error: c.yaml:",
        "  line 2: train.steps must be a whole number from 1 on, got 0",
        "  line 3: train.schedule must be one of cosine, linear, constant, got 'cosin'; did you mean 'cosine'?",
        "  line 4: train.clip must be a number above 0, or null, got inf",
        "  line 5: data.preprocessing.core must be a whole number from 0 on, or null, got -1",
    ]
    words = ["--train.steps", "0", "--train.learning_rate=-1", "--study.seeds", "0"]
    assert fails(capsys, "compare", "--workdir", "w", *words).splitlines() == [
        "gems-jax: error: 3 fields of the configuration cannot be:",
        "  train.steps must be a whole number from 1 on, got 0",
        "  train.learning_rate must be a number above 0, or null, got -1",
        "  study.seeds must be a whole number from 1 on, got 0",
    ]
    assert everything_in(tmp_path) == ["c.yaml"]
