"""What a run was tuned on: other orders are the same, anything else is named, and so is damage."""

import dataclasses
import hashlib
import json
import re
import types
import zlib

import numpy as np
import pytest
import yaml

import gems_jax as gj
from gems_jax.config.base_model import ModelConfig
from gems_jax.config.data import DataConfig
from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.items import ItemsConfig
from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.items.tokens import ItemIndex
from gems_jax.training.build import check_beams
from gems_jax.training.path_checks import check_run_paths
from gems_jax.training.stages import Assets, ensure_base
from gems_jax.training.workdir.assets import check_record, in_run_order, read_record, record_of, write_record
from gems_jax.training.workdir.files import check_config, keep_config, read_kept_config

NULL_SPACE = gj.NullSpace.from_moments({"kernel": np.diag([4.0, 1.0])}, rank=1)


def shop():
    items = [Item("i0", "lamp"), Item("i1", "chair", "Acme"), Item("i2", "rug")]
    rows = {("train", "rec"): [Row("ann", [0], 1)], ("test", "rec"): [Row("ann", [0, 1], 2, "", [1, 0])]}
    return Dataset("shop", items, {key: Table.from_rows(key[1], table) for key, table in rows.items()})


class Words:
    """A tokenizer of items' tokens ``<7>`` and of words, which it tells apart by the spaces before them or not."""

    def __init__(self, number, spaces):
        self._number, self._word = number, r"\s*[^<\s]+|\s+$" if spaces else r"[^<\s]+"

    def __call__(self, texts, add_special_tokens):
        if isinstance(texts, str):
            return {"input_ids": self([texts], add_special_tokens)["input_ids"][0]}
        found = [re.findall(rf"\s*<\d+>|{self._word}", text) for text in texts]
        return {"input_ids": [[self._id(piece) for piece in pieces] for pieces in found]}

    def _id(self, piece):
        return int(piece.strip(" <>")) if "<" in piece else zlib.crc32(piece.encode())

    def get_vocab(self):
        return {"a": self._number}

    def convert_ids_to_tokens(self, ids):
        return [f"<{token}>" for token in ids] if isinstance(ids, list) else f"<{ids}>"


def assets(dataset=None, tokens=(7, 8, 9), number=0, spaces=False):
    return Assets(
        types.SimpleNamespace(layout="decoder"),
        Words(number, spaces),
        dataset or shop(),
        ItemIndex(np.array(tokens)[:, None]),
    )


@pytest.fixture
def config(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (base / name).write_text(name)
    return Config(model=ModelConfig(path=str(base)))


@pytest.fixture
def run(config, tmp_path):
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "8").mkdir(parents=True)
    write_record(record_of(config, assets(), NULL_SPACE), workdir)
    return workdir


def changed_items(**changes):
    dataset = shop()
    return dataclasses.replace(
        dataset, items=[dataclasses.replace(item, **changes.get(item.item_id, {})) for item in dataset.items]
    )


def test_the_same_is_fine_and_a_record_reads_back(run, config):
    check_record(record_of(config, assets(), NULL_SPACE), run, training=True)
    check_record(record_of(config, assets()), run)
    assert list(read_record(run).items) == ["i0", "i1", "i2"]


def test_a_catalogue_in_another_order_keeps_the_runs_numbers(run, config, capsys):
    other = shop().in_order(["i2", "i0", "i1"])
    assert other.table("test", "rec").history_of(0).tolist() == [1, 2]
    found = in_run_order(other, run)
    assert "another order" in capsys.readouterr().out
    assert found.items == shop().items
    for key, table in shop().tables.items():
        for name in ("history", "target", "offsets", "negatives"):
            np.testing.assert_array_equal(getattr(found.tables[key], name), getattr(table, name))
    # Lines that were sorted by hand leave the rows with the numbers of others.
    with pytest.raises(ValueError, match="another order .* without checksums.json nothing says whether its rows"):
        in_run_order(other, run, run.parent)
    (run.parent / "checksums.json").touch()
    assert in_run_order(other, run, str(run.parent)).items == shop().items
    check_record(record_of(config, assets(found), NULL_SPACE), run, training=True)
    with pytest.raises(ValueError, match="the catalogue is in another order"):
        check_record(record_of(config, assets(other)), run)
    with pytest.raises(ValueError, match="has 3 items, not these 2"):
        other.in_order(["i0", "i1"])


def test_a_tuned_run_makes_no_other_base_model_or_data_where_its_own_are_gone(run, config, tmp_path):
    gone = dataclasses.replace(config, data=DataConfig("table", path=str(tmp_path / "raw"), dir=str(tmp_path / "data")))
    with pytest.raises(FileNotFoundError, match="with data.dir .*data, where there is nothing.*--data.dir FOLDER"):
        check_run_paths(gone, run)
    (tmp_path / "raw").mkdir()
    check_run_paths(gone, run)  # prepared again
    (tmp_path / "base" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="tuned with model.path .*base, where .*: --model.path FOLDER"):
        check_run_paths(gone, run)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([*shop().items, Item("i3", "vase")], r"the catalogue has 1 item more \('i3'\)"),
        (shop().items[:1], r"the catalogue has 2 items fewer \(such as 'i1'\)"),
        ([*shop().items[:2], Item("i9", "rug")], r"1 item more \('i9'\); the catalogue has 1 item fewer \('i2'\)"),
        (changed_items(i1={"title": "stool"}).items, r"1 item has another title or text \('i1'\)"),
        (changed_items(i1={"text": "Ace"}, i2={"title": "mat"}).items, r"2 items have another title or text"),
    ],
)
def test_another_catalogue_is_counted_before_anything_is_loaded(run, items, message):
    with pytest.raises(ValueError, match=f"run was tuned on something else: .*{message}.*choose another --workdir"):
        in_run_order(dataclasses.replace(shop(), items=items), run)


def test_prompts_tokenizer_and_base_model_are_named(run, config):
    def wrong(message, changed=config, of=None):
        with pytest.raises(ValueError, match=message):
            check_record(record_of(changed, of or assets()), run)

    prompts = config.items.prompts | {"rec": "next"}
    wrong("prompt of task 'rec' was 'history", dataclasses.replace(config, items=ItemsConfig(prompts=prompts)))
    wrong("another vocabulary", of=assets(number=1))
    wrong("tokens of their own, or shared ones", dataclasses.replace(config, items=ItemsConfig(identifiers="x.json")))
    base = config.model.path
    for name, message in (("model.safetensors", "the base model is another"), ("tokenizer.json", "the tokenizer is")):
        with open(f"{base}/{name}", "r+") as file:
            file.write("flip")
        wrong(rf"{message}.*{name}")


def test_items_with_other_identifiers_are_counted(tmp_path, config):
    config = dataclasses.replace(config, items=ItemsConfig(identifiers="x.json"))
    write_record(record_of(config, assets()), tmp_path)
    with pytest.raises(ValueError, match=r"2 items have another identifier \(such as 'i1'\)"):
        check_record(record_of(config, assets(tokens=(7, 9, 8))), tmp_path)


def test_training_goes_on_with_the_same_rows_and_null_space_alone(run, config):
    more = Table.from_rows("rec", [Row("ann", [0], 1), Row("bob", [0], 2)])
    dataset = dataclasses.replace(shop(), tables=shop().tables | {("train", "rec"): more})
    other = gj.NullSpace.from_moments({"kernel": np.diag([1.0, 4.0])}, rank=1)
    now = record_of(config, assets(dataset), other)
    check_record(now, run)  # to recommend, newer rows are welcome
    with pytest.raises(ValueError, match="training rows of task 'rec' are others; the null space is another"):
        check_record(now, run, training=True)


def test_a_run_of_an_older_version_loads_with_a_notice(run, config):
    (run / "assets.json").unlink()
    with pytest.warns(UserWarning, match=r"has no assets\.json, since an older version tuned it"):
        check_record(record_of(config, assets(number=3)), run)
    dataset = shop()
    assert in_run_order(dataset, run) is dataset


def test_a_run_of_version_1_is_another_where_spaces_behind_items_have_tokens(run, config, tmp_path):
    path = run / "assets.json"
    found = json.loads(path.read_text())["assets"] | {"format_version": 1}
    del found["spaces"]
    sha256 = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": sha256, "assets": found}))
    check_record(record_of(config, assets(), NULL_SPACE), run, training=True)
    with pytest.raises(ValueError, match="an older version tuned it on prompts without the spaces behind items"):
        check_record(record_of(config, assets(spaces=True)), run)
    write_record(record_of(config, assets(spaces=True)), tmp_path)
    check_record(record_of(config, assets(spaces=True)), tmp_path)


def test_every_flipped_bit_of_a_record_is_found(run, config):
    whole = (run / "assets.json").read_bytes()
    for place in range(0, len(whole) - 1, 7):
        (run / "assets.json").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"assets\.json is damaged"):
            read_record(run)
    (run / "assets.json").write_text(json.dumps({"sha256": "", "assets": {"format_version": 9}}))
    with pytest.raises(ValueError, match="not what was written"):
        read_record(run)


def test_a_changed_configuration_is_not_taken_for_the_runs_own(tmp_path):
    keep_config(Config(), tmp_path)
    path = tmp_path / "config.yaml"
    assert read_kept_config(path) == yaml.safe_load(path.read_text())
    whole = path.read_text()
    for text in (whole.replace("beams: 20", "beams: 60"), whole.replace("sha256 of", "sha256-of"), "a: [", "train: 3"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml is damaged"):
            check_config(Config(), tmp_path)
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))  # as older versions wrote it
    check_config(Config(), tmp_path)


def test_a_base_model_is_read_as_it_was_written(config, tmp_path):
    from gems_jax.checksums import write_checksums

    base = tmp_path / "base"
    write_checksums(base)
    (base / "README.md").write_text("mine")
    assert ensure_base(config) == base
    (base / "tokenizer.json").write_text("tokenizer.jsoN")
    with pytest.raises(ValueError, match=r"is damaged \(tokenizer.json has other content than was written\)"):
        ensure_base(config)


def test_too_few_beams_to_measure_are_refused_by_the_fields_name():
    with pytest.raises(ValueError, match="evaluate.beams is 8; it must be at least 20"):
        check_beams(Config(evaluate=EvaluateConfig(beams=8)))
    check_beams(Config())
