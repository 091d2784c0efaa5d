"""One table of methods: what names them, builds them and lists them agrees, and users can add to it."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import fails, gems_jax, metrics, options, read

from gems_jax import baselines
from gems_jax.baselines.weighting import weighted
from gems_jax.config.checks import check
from gems_jax.config.methods import METHODS, TuningMethod
from gems_jax.config.optimiser import GemsConfig
from gems_jax.config.own_rates import said as rates_said
from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig
from gems_jax.study.config import StudyConfig
from gems_jax.training.optimiser.chain import make_method
from gems_jax.training.optimiser.methods import BUILDERS, merged_by, register_method
from gems_jax.training.stages import ensure_null_space

ROOT = Path(__file__).parents[2]


def test_every_method_has_a_builder_and_every_baseline_is_a_method():
    assert set(BUILDERS) == set(METHODS)
    assert {name.replace("_", "-") for name in baselines.__all__} - {"joint"} <= set(METHODS)


def test_documents_list_the_methods_there_are():
    page = (ROOT / "docs" / "overview.md").read_text()
    listed = re.search(r"\* \*\*Baselines on the same call\*\*.*?\n(?=\* )", page, re.DOTALL)
    assert set(re.findall(r"[(,] *`([a-z-]+)`", listed[0])) == set(METHODS) - {"gems"}
    rows = [line.split(" | ") for line in (ROOT / "docs" / "methods.md").read_text().splitlines() if line[:3] == "| `"]
    takes = {"never": "no |", "option": "with `gems.null_space` |", "always": "yes |", "weights": "of the weights |"}
    takes = {word: said.removesuffix(" |") for word, said in takes.items()}
    rates = {name: f"{method.own_rate.value:.0e}".replace("e-0", "e-") for name, method in METHODS.items()}
    assert rows == [[f"| `{n}`", m.label, m.about, takes[m.null_space], f"{rates[n]} |"] for n, m in METHODS.items()]


def test_documents_say_why_each_method_has_its_learning_rate():
    page = (ROOT / "docs" / "methods.md").read_text()
    rows = [re.fullmatch(r"\| (\de-\d) \| (.*) \| (.*) \|", line) for line in page.splitlines()]
    listed = {row[3]: (float(row[1]), re.findall(r"`([a-z-]+)`", row[2])) for row in rows if row}
    assert {m.own_rate.why: m.own_rate.value for m in METHODS.values()} == {
        why: rate for why, (rate, _) in listed.items()
    }
    named = {name: why for why, (_, names) in listed.items() for name in names}
    (others,) = [why for why, (_, names) in listed.items() if not names]
    assert {name: named.get(name, others) for name in METHODS} == {n: m.own_rate.why for n, m in METHODS.items()}


def test_no_null_space_is_named_as_the_reason_of_a_learning_rate_where_there_is_none():
    protected, free = Config(), Config(gems=GemsConfig(null_space=False))
    assert METHODS["gems"].own_rate.why in rates_said(protected)
    assert METHODS["gems"].own_rate.why not in rates_said(free)
    assert "kernels 0.003" in rates_said(free)
    assert "gems.null_space false gives up: GaLore has 0.001;" in rates_said(free)


def test_a_run_has_its_methods_own_learning_rate_until_a_number_is_given(prepared, tmp_path, capsys):
    few = {"train__method": "adamw", "train__steps": 1, "train__warmup": 0}
    run, words = tmp_path / "run", options(prepared.root, **few)
    assert gems_jax("train", "--dry-run", "--workdir", run, *words) == 0
    said = capsys.readouterr().out
    reason = f"kernels 0.0003 (of the method; {METHODS['adamw'].own_rate.why}; train.learning_rate sets another)"
    assert reason in said
    assert "  learning_rate: 0.0003\n" in said  # as the run will keep it
    assert gems_jax("train", "--workdir", run, *words) == 0
    assert reason in capsys.readouterr().out
    assert metrics(run)[-1]["learning_rate"] == pytest.approx(3e-4)
    # What is kept is a number, which another version's table would not change.
    assert read("evaluate", "--workdir", run).train.learning_rate == 3e-4
    assert gems_jax("train", "--workdir", run, *words, "--train.learning_rate", "3e-4") == 0
    assert "is trained already (1 steps)" in capsys.readouterr().out
    given = [*words, "--train.learning_rate", "3e-3"]
    assert "train.learning_rate: 0.0003 there, 0.003 now" in fails(capsys, "train", "--workdir", run, *given)
    assert gems_jax("train", "--workdir", tmp_path / "given", *given) == 0
    assert "learning rates: kernels 0.003, item rows 0.003\n" in capsys.readouterr().out
    assert metrics(tmp_path / "given")[-1]["learning_rate"] == pytest.approx(3e-3)
    said = fails(capsys, "train", "--workdir", tmp_path / "given", *words)
    assert "train.learning_rate: 0.003 there, 0.0003 now" in said


def test_help_lists_them_too(capsys):
    with pytest.raises(SystemExit):
        gems_jax("train", "--help")
    assert f"--train.method {{{','.join(METHODS)}}}" in capsys.readouterr().out


def first_task(inner_tx, *, num_tasks):
    """The gradient of the first task, the others' left out."""
    return weighted("first_task", inner_tx, lambda tasks, state: (jnp.eye(num_tasks)[0], state), num_tasks=num_tasks)


@pytest.fixture
def added():
    """A method from outside the package, for one test."""
    register_method("first-task", merged_by(first_task), TuningMethod("the first task", "AdamW on the first task"))
    yield "first-task"
    del METHODS["first-task"], BUILDERS["first-task"]


def test_a_method_from_outside_is_named_by_a_configuration_and_a_study(added):
    """It tunes, too: tests/test_documented_commands.py runs the program of docs/methods.md."""
    config = Config(train=TrainConfig(method=added))
    check(config)
    assert added in StudyConfig(methods=(added,)).names()
    params = {"block": {"kernel": jnp.ones((3, 2))}}
    grads = {"block": {"kernel": jnp.stack([jnp.full((3, 2), 2.0), jnp.full((3, 2), -5.0)])}}
    tx, alone = make_method(config, 2, None), optax.adam(1.0)
    update, _ = tx.update(grads, tx.init(params), params)
    wanted, _ = alone.update({"block": {"kernel": grads["block"]["kernel"][0]}}, alone.init(params))
    np.testing.assert_allclose(update["block"]["kernel"], wanted["block"]["kernel"], rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"train.method must be one of .*, got 'first-tasks'; did you mean 'first-task'"
    ):
        check(Config(train=TrainConfig(method="first-tasks")))


def test_osft_reads_its_null_space_off_the_base_model_and_takes_none_of_text(prepared, tmp_path):
    options_of = lambda **others: options(prepared.root, train__method="osft", text__train="nowhere.txt", **others)  # noqa: E731
    config = read("train", "--workdir", tmp_path / "run", *options_of(null_space__path=tmp_path / "weights"))
    made = ensure_null_space(config)
    assert (made.side, made.rule) == ("both", {"energy": 0.85, "min_share": 0.35})
    again = ensure_null_space(config)
    assert again.outputs == made.outputs
    with pytest.raises(
        ValueError, match=r"on side 'in', the configuration asks for .* on side 'both'; calibrate again"
    ):
        ensure_null_space(read("train", "--workdir", tmp_path / "run", *options_of()))
    with pytest.raises(
        ValueError, match="osft needs null_space.energy or null_space.rank, and no null_space.threshold"
    ):
        read("train", "--workdir", tmp_path, *options_of(null_space__energy="null", null_space__threshold=0.1))


@pytest.mark.parametrize(
    ("name", "message"),
    [("gems", r"method 'gems' \(GEMS\) already"), ("My method", "small letters, digits and hyphens")],
)
def test_a_name_that_is_taken_or_no_name_of_a_folder_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        register_method(name, merged_by(first_task), TuningMethod("mine", "mine"))
    assert len(METHODS) == len(BUILDERS)
