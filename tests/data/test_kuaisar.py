"""KuaiSAR's logs of searches and recommendations, as CSV files of the published columns."""

import pytest
from raw_tables import rows_of, write_rows

from gems_jax.data.prepare import prepare

FIRST = 1_684_742_000_000


def recommendations(users=4, events=4):
    return [
        {"user_id": user, "item_id": (3 * user + step) % 20, "playing_time": 60792.0, "duration_ms": 45400.0,
         "time": "2023-05-22 15:53:20", "timestamp": float(FIRST + 1000 * step), "click": int(step < events),
         "forward": 0, "like": 0, "follow": 0, "search": 0, "search_item_related": 0}
        for user in range(users)
        for step in range(events + 1)
    ]  # fmt: skip


def searches(users=4, events=4):
    return [
        {"user_id": user, "search_session_id": 10 * user + step, "search_session_time": "2023-05-22 21:58:52",
         "search_session_timestamp": FIRST + 500 + 1000 * step, "keyword": [20, user, step],
         "search_source": "USER_INPUT", "item_id": 20 + (5 * user + step + 7 * shown) % 20,
         "click_cnt": 2 * (not shown), "item_type": "VIDEO" if step else "IMAGE_ATLAS"}
        for user in range(users)
        for step in range(events)
        for shown in range(2)
    ]  # fmt: skip


def videos(count=40):
    names = ("first", "second", "third", "fourth")
    levels = (lambda n: f"Food {n}", lambda n: "Cooking" if n % 2 else "empty", lambda n: "empty", lambda n: "UNKNOWN")
    return [
        {"item_id": n, "caption": [7, n], "author_id": 1, "item_type": "NORMAL"}
        | {f"{name}_level_category_name_en": level(n) for name, level in zip(names, levels, strict=True)}
        for n in range(count)
    ]


def write(folder, rec=None, src=None, items=None):
    write_rows(folder / "rec_inter.csv", recommendations() if rec is None else rec)
    write_rows(folder / "src_inter.csv", searches() if src is None else src)
    write_rows(folder / "item_features.csv", videos() if items is None else items)
    return folder


def load(folder, **kwargs):
    options = {"num_negatives": 2, "progress": None, "preprocessing": {"core": 0}} | kwargs
    return prepare("kuaisar", folder / "out", path=folder, **options)


def test_kuaisars_clicks_become_rows_of_both_tasks(tmp_path):
    dataset = load(write(tmp_path))
    assert dataset.tasks == ("rec", "src")
    found = rows_of(dataset)
    # User 1 saw 3 to 6 and searched 25 to 28 in between. The last of each task is test, the one before it valid.
    user = {key: [row[1:4] for row in rows if row[0] == "1"] for key, rows in found.items()}
    assert user["train", "src"] == [(["3"], "25", "20 1 0"), (["3", "25", "4"], "26", "20 1 1")]
    assert user["valid", "src"] == [(["3", "25", "4", "26"], "27", "20 1 2")]
    assert user["test", "src"] == [(["3", "25", "4", "26", "5", "27"], "28", "20 1 3")]
    assert user["test", "rec"] == [(["3", "25", "4", "26", "5", "27"], "6", "")]
    assert dataset.table("test", "rec").time.min() == FIRST / 1000 + 3
    items = {item.item_id: item for item in dataset.items}
    assert (items["5"].title, items["5"].text) == ("Food 5 > Cooking", "7 5")
    assert items["6"].title == "Food 6"
    assert dataset.card["quarantined"] == {}
    assert dataset.card["remarks"] == [
        "4 rows of rec_inter.csv have no click and were left out; the first: row 5",
        "16 rows of src_inter.csv have no click and were left out; the first: row 2",
    ]


def test_clicks_on_what_is_never_recommended_are_left_out_and_counted(tmp_path):
    src = [
        row | {"item_type": "USER", "item_id": 10**11} if row["search_session_id"] == 0 else row for row in searches()
    ]
    dataset = load(write(tmp_path, src=src))
    said = "1 rows of src_inter.csv are clicks on neither VIDEO nor IMAGE_ATLAS and were left out; the first: row 1"
    assert f"{said}, 'USER'" in dataset.card["remarks"]
    assert dataset.card["quarantined"] == {}
    # The small variant's files need no column of types.
    bare = [{name: value for name, value in row.items() if name != "item_type"} for row in searches()]
    write_rows(tmp_path / "bare" / "src_inter.csv", bare)
    write_rows(tmp_path / "bare" / "rec_inter.csv", recommendations())
    write_rows(tmp_path / "bare" / "item_features.csv", [{"item_id": n} for n in range(40)])
    bare = load(tmp_path / "bare")
    assert bare.items[0].title == "video 0"
    said = f"{len(bare.items)} items have no category with an English name; their titles are their ids"
    assert said in bare.card["remarks"]


def test_a_file_without_any_click_leaves_the_other_tasks_rows(tmp_path):
    options = {"core": 0, "both_tasks": False}
    dataset = load(write(tmp_path, rec=recommendations(events=0)), preprocessing=options)
    assert dataset.tasks == ("src",)
    assert [row[1:3] for row in rows_of(dataset)["test", "src"] if row[0] == "1"] == [(["25", "26", "27"], "28")]
    nothing = [row | {"click_cnt": 0} for row in searches()]
    with pytest.raises(ValueError, match="holds no row with a click; fetch KuaiSAR"):
        load(write(tmp_path / "other", rec=recommendations(events=0), src=nothing))


def test_kuaisars_bad_rows_are_named_with_file_and_row(tmp_path):
    good = searches()[0] | {"user_id": 9}
    bad = [good | {"click_cnt": "x"}, good | {"keyword": []}, good | {"search_session_timestamp": "soon"}]
    bad.append(good | {"item_id": 77})
    folder = write(tmp_path, src=searches() + bad)
    with pytest.raises(ValueError, match=r"(?s)src_inter\.csv: row 33': its click_cnt is no number"):
        load(folder)
    dataset = load(folder, max_bad_fraction=0.3)
    assert dataset.card["quarantined"] == {
        "row: its click_cnt is no number": 1,
        "row: the query is empty": 1,
        "row: the timestamp is no time between 1970 and 2100": 1,
        "target: the item is not in the catalogue": 1,
    }


def test_missing_files_and_columns_of_kuaisar_are_named(tmp_path):
    folder = write(tmp_path / "raw")
    rows = [{"who": row["user_id"], "item_id": 1, "click": 1, "timestamp": FIRST} for row in recommendations()]
    write_rows(folder / "rec_inter.csv", rows)
    with pytest.raises(ValueError, match=r"rec_inter\.csv has no column 'user_id' for user_id; it has 'who'"):
        load(folder)
    (folder / "src_inter.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no src_inter\.csv; fetch KuaiSAR_v2\.zip .*zenodo"):
        load(folder)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; fetch"):
        prepare("kuaisar", tmp_path / "o", path=tmp_path / "nowhere", progress=None)


def test_unisars_pickles_are_not_run_and_what_to_do_is_said(tmp_path):
    (tmp_path / "dataset").mkdir()
    # Not even opened: this one would end the process.
    (tmp_path / "dataset" / "rec_train.pkl").write_bytes(b"cos\n_exit\n(I7\ntR.")
    with pytest.raises(FileNotFoundError, match=r"has no rec_inter\.csv; it holds pickles.*data\.name: table.*zenodo"):
        load(tmp_path)
