"""Codes of embeddings: as good as another library's k-means, found again, the same bits from the same seed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared import SHARED, needs_shared
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

import gems_jax as gj
from gems_jax.identifiers import kmeans
from gems_jax.identifiers.code_files import write_codes
from gems_jax.identifiers.codebooks import codebooks_of
from gems_jax.identifiers.kmeans import fit_kmeans, lloyd_pass
from gems_jax.identifiers.measures import counts_of, level_errors, use_of_level


def grouped_rows(count: int, width: int = 16, groups: int = 300, seed: int = 0) -> np.ndarray:
    """Rows around centres, those of a centre ``groups`` rows apart."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(groups, width)) + 5
    return (centres[np.arange(count) % groups] + rng.normal(size=(count, width))).astype(np.float32)


ROWS = grouped_rows(1500)
FEW_GROUPS = grouped_rows(1500, groups=12)


@pytest.fixture(scope="module")
def made() -> Any:
    return gj.identifiers.rkmeans(ROWS, levels=2, size=24)


@pytest.fixture(scope="module")
def learned() -> Any:
    sizes = {"levels": 2, "size": 16, "latent": 8, "hidden": (32,)}
    return gj.identifiers.rqvae(FEW_GROUPS, **sizes, steps=300, batch_size=128, learning_rate=3e-3)


def test_each_level_reaches_the_inertia_of_scikit_learn_within_one_in_a_hundred(made: Any) -> None:
    left = ROWS
    for level in range(2):
        with threadpool_limits(1):  # two threads wait for each other where other tests run beside them
            reference = KMeans(24, n_init=5, random_state=0).fit(left).inertia_ / len(ROWS)
        assert made.errors[1 + level] <= 1.01 * reference
        left = left - made.codebooks[level][made.codes[:, level]]
    assert np.isclose(np.square(left).sum(1).mean(), made.errors[2], rtol=1e-4)


def test_codebooks_of_a_sample_and_two_passes_over_all_are_hardly_worse() -> None:
    whole = gj.identifiers.rkmeans(ROWS, levels=2, size=8)
    sampled = gj.identifiers.rkmeans(ROWS, levels=2, size=8, sample=400)
    assert (whole.codebooks != sampled.codebooks).any()
    assert sampled.errors[2] <= 1.03 * whole.errors[2]


@pytest.mark.parametrize(("quantiser", "rows"), [("made", ROWS), ("learned", FEW_GROUPS)])
def test_the_items_themselves_get_their_codes_again_in_any_number(quantiser: str, rows: Any, request: Any) -> None:
    ids = request.getfixturevalue(quantiser)
    assert (ids.assign(rows) == ids.codes).all()
    assert (ids.assign(rows[7:8]) == ids.codes[7:8]).all()
    assert ids.assign(grouped_rows(5, seed=3)).shape == (5, 2)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(made: Any) -> None:
    again, other = (gj.identifiers.rkmeans(ROWS, levels=2, size=24, seed=seed) for seed in (0, 1))
    assert (again.codes == made.codes).all()
    assert (again.codebooks == made.codebooks).all()
    assert (other.codebooks != made.codebooks).any()
    small = {"levels": 1, "size": 4, "latent": 2, "hidden": (4,), "steps": 60, "batch_size": 16}
    first, second, third = (gj.identifiers.rqvae(ROWS, seed=seed, **small) for seed in (0, 0, 1))
    assert (first.codebooks == second.codebooks).all()
    assert (first.codebooks != third.codebooks).any()


def test_an_rqvae_keeps_what_tells_items_apart_and_uses_its_codes(learned: Any) -> None:
    report = learned.report()
    assert report["error"][1] < report["error"][0] < 0.5
    assert min(report["used"]) >= 14
    # Items of one first code are of one group.
    group, first = np.arange(len(FEW_GROUPS)) % 12, learned.codes[:, 0]
    assert sum(np.bincount(group[first == code]).max() for code in range(16) if code in first) > 0.8 * len(first)


def test_a_centre_without_rows_moves_to_a_row_far_from_its_own() -> None:
    rows = np.array([[0.0], [1.0], [10.0]], np.float32)
    centres, inertia = lloyd_pass([rows], np.array([[0.0], [100.0]], np.float32))
    assert centres.ravel().tolist() == pytest.approx([11 / 3, 10.0])
    assert inertia == pytest.approx(101.0)


def test_more_codes_than_different_items_are_left_unused() -> None:
    rows = np.repeat(np.array([[1.0, 0.0], [0.0, 3.0]], np.float32), 4, axis=0)
    ids = gj.identifiers.rkmeans(rows, levels=2, size=5)
    assert ids.report()["distinct"] == 2
    assert ids.errors[2] == pytest.approx(0, abs=1e-10)
    assert np.isfinite(ids.codebooks).all()


def test_distances_are_told_apart_where_all_rows_have_much_in_common() -> None:
    rows = grouped_rows(300, width=4) + np.float32(3000)
    assert len(np.unique(fit_kmeans(rows, 8, seed=0), axis=0)) == 8
    far = gj.identifiers.rkmeans(rows, levels=1, size=8).errors[1]
    assert far == pytest.approx(gj.identifiers.rkmeans(rows - np.float32(3000), levels=1, size=8).errors[1], rel=0.02)


def test_chunks_change_nothing(monkeypatch: Any) -> None:
    whole = gj.identifiers.rkmeans(ROWS[:700], levels=2, size=4)
    monkeypatch.setattr(kmeans, "CHUNK", 256)
    parts = gj.identifiers.rkmeans(ROWS[:700], levels=2, size=4)
    np.testing.assert_allclose(parts.codebooks, whole.codebooks, rtol=1e-4, atol=1e-4)
    assert (parts.codes == whole.codes).mean() > 0.99


def test_the_report_counts_codes_entropy_collisions_and_what_is_left(made: Any) -> None:
    report = made.report()
    assert report["items"] == 1500
    assert report["in_collisions"] == int((counts_of(made.codes) > 1).sum()) > 0
    assert report["distinct"] == len({tuple(row) for row in made.codes.tolist()})
    assert report["used"] == [24, 24]
    assert report["largest"] == [int(np.bincount(column).max()) for column in made.codes.T]
    assert report["error"] == sorted(report["error"], reverse=True)
    assert json.loads(json.dumps(report)) == report
    assert use_of_level(np.repeat([1, 5, 6, 9], 3)) == (4, 3, 2.0)


@pytest.mark.parametrize(
    ("embeddings", "options", "message"),
    [
        (np.zeros(3), {}, "shape (3,)"),
        (np.zeros((3, 2), int), {}, "dtype int64"),
        (np.array([[0.0], [np.nan]]), {}, "row 1: not all of its numbers are finite"),
        (np.zeros((3, 2)), {"levels": 0}, "levels must be from 1"),
        (np.zeros((3, 2)), {"size": 1}, "size must be from 2"),
        (np.zeros((3, 2)), {"sample": 0}, "sample must be at least 1"),
    ],
)
def test_what_cannot_be_quantised_is_named(embeddings: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        gj.identifiers.rkmeans(embeddings, **options)


def test_embeddings_of_another_width_are_named(made: Any, learned: Any) -> None:
    for ids in (made, learned):
        with pytest.raises(ValueError, match="embeddings have 3 dimensions"):
            ids.assign(np.zeros((2, 3)))


@pytest.mark.parametrize(("quantiser", "rows"), [("made", ROWS), ("learned", FEW_GROUPS)])
def test_a_folder_has_codebooks_and_encoder_for_other_items(
    quantiser: str, rows: Any, tmp_path: Path, request: Any
) -> None:
    ids = request.getfixturevalue(quantiser)
    names = [f"B{number}" for number in range(len(rows))]
    write_codes(tmp_path, ids, names)
    again = gj.identifiers.load(tmp_path)
    assert again.item_ids == tuple(names)
    assert (again.codes == ids.codes).all()
    others = grouped_rows(40, seed=5)
    assert (again.assign(others) == ids.assign(others)).all()
    whole = (tmp_path / "codebooks.npz").read_bytes()
    (tmp_path / "codebooks.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="codebooks.npz is damaged"):
        gj.identifiers.load(tmp_path)
    (tmp_path / "codebooks.npz").unlink()
    with pytest.raises(FileNotFoundError, match="codebooks.npz is missing"):
        gj.identifiers.load(tmp_path)


def test_codebooks_of_given_codes_leave_least_at_each_level(made: Any) -> None:
    books = codebooks_of(made.codes, ROWS)
    left = level_errors(made.codes, ROWS, books)
    assert left[1] <= made.errors[1] * (1 + 1e-6)
    for shift in (-0.05, 0.05):
        moved = books.copy()
        moved[1, made.codes[0, 1]] += shift
        assert level_errors(made.codes, ROWS, moved)[2] > left[2]
    assert not codebooks_of(np.array([[0], [2]]), np.ones((2, 3)))[0, 1].any()


@needs_shared
@pytest.mark.parametrize(("name", "collisions"), [("rkmeans_native", 1326), ("rkmeans_zcr", 0), ("rqvae_native", 887)])
def test_published_identifiers_are_read_with_their_collisions(name: str, collisions: int) -> None:
    ids = gj.identifiers.load(SHARED / f"data/amazon_scientific/identifiers/{name}.json")
    assert ids.codes.shape == (4344, 4)
    assert ids.item_ids[:3] == ("0", "1", "2")
    assert ids.report()["in_collisions"] == collisions
    assert all(
        token.startswith(name) for token, name in zip(ids.tokens()[9], ("<a_", "<b_", "<c_", "<d_"), strict=True)
    )
    with pytest.raises(ValueError, match="without codebooks"):
        ids.assign(np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"B01": ["<a_1>", "<b_2>"], "B02": ["<b_2>", "<a_1>"]}', "item 'B02' has"),
        ('{"B01": ["<a_1>", "<b_2>"], "B02": ["<a_1>"]}', "item 'B02' has"),
        ('{"B01": ["<a>"]}', "a token a level"),
        ('{"B01": ["<a_70000>"]}', "codes up to 70000"),
        ('{"B01": ["<a_1>"], "B01": ["<a_2>"]}', "stands there twice"),
        ("{}", "one JSON object"),
        ("[" * 100_000, "no valid JSON"),
        ("\x80\x04K\x01.", "no valid JSON"),
    ],
)
def test_a_file_that_holds_no_codes_is_named(content: str, message: str, tmp_path: Any) -> None:
    path = tmp_path / "codes.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        gj.identifiers.load(path)
