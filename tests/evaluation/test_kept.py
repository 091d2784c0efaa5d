"""Rankers that were trained for an evaluation are found again by the next one, and by it alone."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixed_round import N, shop

from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.rankers import SasrecConfig, TigerConfig, TwoTowerConfig
from gems_jax.data.dataset.tables import Dataset, Row, Table
from gems_jax.evaluation.baselines import baselines
from gems_jax.evaluation.simple_rankers import simple_rankers
from gems_jax.neural_rankers import epochs

SASREC = SasrecConfig(width=8, layers=1, heads=2, max_length=4, epochs=2, batch_size=32)
TIGER = TigerConfig(width=8, layers=1, heads=2, levels=2, codebook_size=6, max_length=2, epochs=1, batch_size=256)
OPTIONS = EvaluateConfig(
    baselines=("sasrec", "tiger", "two-tower-trained"), sasrec=SASREC, tiger=TIGER, two_tower=TwoTowerConfig(epochs=2)
)
VECTORS = np.random.default_rng(3).standard_normal((N, 5)).astype(np.float32)


def read(texts: list[str]) -> np.ndarray:
    """Vectors of texts that name their item at the end."""
    return VECTORS[[int(text.split()[-1]) for text in texts]]


def both_tasks() -> Dataset:
    """Histories that follow a rule, and queries that name their item."""
    dataset = shop(20, negatives=9)
    asked = {
        (split, "src"): Table.from_rows("src", [Row(f"u{n}", [], n, f"thing {n}", [(n + 1) % N]) for n in range(N)])
        for split in ("train", "valid", "test")
    }
    return dataclasses.replace(dataset, tables={**dataset.tables, **asked})


def measured(dataset: Dataset, options: EvaluateConfig, folder: Path, removed: tuple[int, ...] = ()) -> dict[str, Any]:
    """The rankers of an evaluation, each on the test rows of its task."""
    tables = {task: dataset.table("test", task) for task in dataset.tasks}
    return simple_rankers(dataset, tables, 0, baselines(options, dataset, read, removed, folder), removed)


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("kept") / "baselines"
    return folder, measured(both_tasks(), OPTIONS, folder)


def trainings(monkeypatch: Any) -> list[str]:
    """What is trained from now on; each training ends before its first step."""
    begun: list[str] = []

    def begin(*_: Any, desc: str, **__: Any) -> Any:
        begun.append(desc)
        raise KeyboardInterrupt if desc == "killed" else ValueError("trained anew")

    monkeypatch.setattr(epochs, "tqdm", begin)
    return begun


def test_a_second_evaluation_trains_nothing_and_finds_the_same(made: Any, monkeypatch: Any, capsys: Any) -> None:
    folder, first = made
    assert sorted(path.name for path in folder.iterdir()) == ["sasrec-rec", "tiger-rec", "two-tower-trained-src"]
    begun = trainings(monkeypatch)
    assert measured(both_tasks(), OPTIONS, folder) == first
    assert begun == []
    said = capsys.readouterr().out
    assert said.count("trained before on the same rows") == 3
    assert first["SASRec"]["rec"]["settings"]["steps"] >= 2


def test_before_a_training_its_size_is_told(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    begun = trainings(monkeypatch)
    found = measured(both_tasks(), OPTIONS, tmp_path)
    assert begun == ["SASRec", "TIGER", "two towers"]
    assert found["SASRec"]["rec"]["missing"] == "ValueError: trained anew"
    said = capsys.readouterr().out
    assert "evaluate: SASRec is trained, at most " in said
    assert "until ndcg@10 of validation rows has not risen for 5 epochs" in said
    assert not list(tmp_path.iterdir())  # what was not trained to its end is not kept


@pytest.mark.parametrize("changed", ["rows", "setting", "removed", "damage"])
def test_other_rows_settings_or_items_and_damaged_files_are_trained_again(
    changed: str, made: Any, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    folder, _ = made
    dataset, options, removed = both_tasks(), OPTIONS, ()
    if changed == "rows":
        train = dataset.table("train", "rec")
        dataset = dataclasses.replace(dataset, tables={**dataset.tables, ("train", "rec"): train.take(range(20))})
    elif changed == "setting":
        options = dataclasses.replace(OPTIONS, sasrec=dataclasses.replace(SASREC, seed=1))
    elif changed == "removed":
        removed = (3,)
    else:
        weights = folder / "two-tower-trained-src" / "weights.npz"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-9])
    begun = trainings(monkeypatch)
    measured(dataset, options, folder, removed)
    if changed == "damage":
        weights.write_bytes(whole)
    expected = {"rows": ["SASRec", "TIGER"], "setting": ["SASRec"], "removed": ["TIGER"], "damage": ["two towers"]}
    assert begun == expected[changed]
    assert ("is damaged" if changed == "damage" else "on other rows, texts or settings") in capsys.readouterr().out


def test_without_a_folder_nothing_is_kept() -> None:
    dataset = both_tasks()
    options = dataclasses.replace(OPTIONS, baselines=("two-tower-trained",))
    table = dataset.table("test", "src")
    found = simple_rankers(dataset, {"src": table}, 0, baselines(options, dataset, read))
    assert "hit@10" in found["two-tower, trained"]["src"] or "missing" not in found["two-tower, trained"]["src"]
