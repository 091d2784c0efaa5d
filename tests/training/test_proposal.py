"""A configuration from a model's folder, the user's own logs and this machine: it runs as it is."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from tiny import fails, gems_jax

import gems_jax as gj
from gems_jax import cli
from gems_jax.arguments import config_of
from gems_jax.config.base_model import ModelConfig
from gems_jax.config.own_rates import kernel_rate
from gems_jax.config.run import Config
from gems_jax.data.text.general_text import read_lines
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.training.estimate.memory import by_batch_size
from gems_jax.training.estimate.shape import abstract_model
from gems_jax.training.proposal import fit
from gems_jax.training.proposal.data import find_data
from gems_jax.training.proposal.keep import PROTECTIONS
from gems_jax.training.proposal.proposal import propose

DECODER = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "base"
    tokenizer = train_tokenizer(read_lines("pydoc", "train")[:300], vocab_size=400, num_sentinels=2)
    values = DECODER | {"vocab_size": len(tokenizer)}
    gj.models.save(gj.models.from_config(values, jax.random.key(0)), tokenizer, folder)
    return folder


def shop(folder, header="visitor,sku,at,typed,event"):
    folder.mkdir(exist_ok=True)
    rows = [
        f"u{user},p{(7 * user + 3 * step) % 40},2024-05-{step + 1:02},{step % 2 * f'lamp {7 * user + step}'},click"
        for user in range(12)
        for step in range(8)
    ]
    (folder / "log.csv").write_text("\n".join([header, *rows]) + "\n")
    items = [f'{{"sku": "p{number}", "name": "lamp number {number}", "colour": "red"}}' for number in range(40)]
    (folder / "products.jsonl").write_text("\n".join(items) + "\n")
    return folder


def test_a_proposed_configuration_trains_as_it_is(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    out = tmp_path / "shop.yaml"
    assert gems_jax("init", "--model", model, "--data", shop(tmp_path / "shop"), "--out", out) == 0
    said = capsys.readouterr().out
    assert "log.csv: user_id is 'visitor', target is 'sku', timestamp is 'at', query is 'typed'" in said
    assert "log.csv: not read: event" in said
    assert "products.jsonl: not read: colour" in said
    assert "products.jsonl: item_id is 'sku', title is 'name'" in said
    assert re.search(r"^estimated from shapes, GiB a device: parameters ", said, re.MULTILINE)
    text = out.read_text()
    assert re.search(r"^  batch_size: 8  # fits in .* GiB a device", text, re.MULTILINE)
    assert re.search(r"^  num_negatives: 20  # the catalogue has 40 items$", text, re.MULTILINE)

    words = re.search(r"^# gems-jax (train .*)$", text, re.MULTILINE).group(1).split()
    small = {"train.steps": 1, "train.checkpoint_every": 0, "null_space.batches": 1, "null_space.batch_size": 4}
    words = [word.replace("runs/first", str(tmp_path / "run")) for word in words]
    assert gems_jax(*words, *(w for name, value in small.items() for w in (f"--{name}", value))) == 0
    kept = config_of(cli.parse(["train", "--config", str(tmp_path / "run" / "config.yaml"), "--workdir", "x"])[1])
    assert set(kept.items.prompts) == {"rec", "src"}
    assert (kept.gems.rank, kept.gems.task_rank, kept.null_space.unit_norm) == (8, 4, True)
    assert kept.data.dir == str(tmp_path / "runs" / "shop" / "data")
    assert f"--out {out} exists already" in fails(capsys, "init", "--model", model, "--data", tmp_path, "--out", out)


@pytest.mark.parametrize("keep", ["high", "medium", "low"])
def test_how_much_is_kept_decides_protection_and_rate_and_the_file_says_what_was_measured(model, tmp_path, keep):
    out = tmp_path / "shop.yaml"
    assert gems_jax("init", "--model", model, "--data", shop(tmp_path / "shop"), "--keep", keep, "--out", out) == 0
    config = config_of(cli.parse(["train", "--config", str(out), "--workdir", "x"])[1])
    protection = PROTECTIONS[keep]
    assert (config.null_space.energy, config.null_space.min_share) == (protection.energy, protection.min_share)
    assert config.train.learning_rate == protection.learning_rate
    assert f"--keep {keep} forgot {protection.measured} in docs/settings.md" in out.read_text()


def test_less_is_kept_by_higher_rates_and_fewer_directions_and_medium_is_the_default():
    high, medium, low = (PROTECTIONS[keep] for keep in ("high", "medium", "low"))
    assert high.learning_rate < medium.learning_rate < low.learning_rate
    assert high.min_share >= medium.min_share > low.min_share
    default = Config()
    assert (kernel_rate(default.train), default.null_space.energy) == (medium.learning_rate, medium.energy)
    assert default.null_space.min_share == medium.min_share


def test_what_was_measured_of_each_stands_in_the_table_of_settings():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    for protection in PROTECTIONS.values():
        forgetting, rec, src = re.fullmatch(r"(\S+) nats at (\S+) and (\S+)", protection.measured).groups()
        rate = f"{protection.learning_rate:.0e}".replace("e-0", "e-")
        row = rf"^\| GEMS \| {rate} .*\| {rec} \| \**{src}\** \| {re.escape(forgetting)} \|$"
        assert re.search(row, page, re.MULTILINE), protection


def test_columns_that_names_do_not_tell_are_asked_for_and_then_taken(model, tmp_path, capsys):
    folder = shop(tmp_path / "shop", header="who,what,at,typed,event")
    out = tmp_path / "new" / "c.yaml"
    words = ("init", "--model", model, "--data", folder, "--out", out)
    said = fails(capsys, *words)
    assert "no table has a column of users and one of items (log.csv has who, what, at, typed, event; products" in said
    assert not out.parent.exists()
    assert gems_jax(*words, "--columns", '{"user_id": "who", "target": "what", "query": ""}') == 0
    assert "columns: {" not in out.read_text()
    assert re.search(r"user_id: who\n +target: what\n", out.read_text())
    assert "--text and --heldout go together" in fails(capsys, *words[:-1], tmp_path / "d.yaml", "--text", "a.txt")


def test_columns_of_a_catalogue_are_taken_as_they_are_named_too(tmp_path):
    (tmp_path / "orders.csv").write_text("Customer E-Mail,SKU\n" + "".join(f"u,s{n}\n" for n in range(5)))
    catalogue = tmp_path / "Products Export.csv"
    catalogue.write_text("Product SKU,Product Name (localized)\n" + "".join(f"s{n},Gießkanne {n}\n" for n in range(5)))
    with pytest.raises(ValueError, match="like its title; name them as --columns"):
        find_data(str(tmp_path / "orders.csv"), str(catalogue), {})
    with pytest.raises(ValueError, match="no catalogue has the columns Name of --columns"):
        find_data(str(tmp_path / "orders.csv"), None, {"title": "Name"})
    for named in (str(catalogue), None):
        found = find_data(str(tmp_path), named, {"title": "Product Name (localized)"})
        assert found.fields["files"]["columns"] == {"user_id": "Customer E-Mail", "target": "SKU"}
        assert found.fields["files"]["item_columns"] == {
            "item_id": "Product SKU", "title": "Product Name (localized)",
        }  # fmt: skip
        assert found.titles[0] == "Gießkanne 0"


def test_titles_that_the_tokenizer_does_not_know_are_told_with_the_proposal(model, tmp_path):
    folder = shop(tmp_path / "shop")
    known = propose(str(model), find_data(str(folder), None, {}), None, "runs").notes
    assert not any("does not know" in note for note in known)
    items = [f'{{"sku": "p{number}", "name": "\u706f \u53f7"}}' for number in range(40)]
    (folder / "products.jsonl").write_text("\n".join(items) + "\n")
    (said,) = [note for note in propose(str(model), find_data(str(folder), None, {}), None, "runs").notes
               if "does not know" in note]  # fmt: skip
    assert said.startswith("the tokenizer does not know 100 % of the tokens of titles (such as '\u706f', '\u53f7'): ")


def test_logs_without_queries_and_catalogue_make_a_run_of_recommendation(tmp_path):
    (tmp_path / "plays.csv").write_text("user_id,song_id,ts\n" + "".join(f"u,s{n},{n}\n" for n in range(5)))
    found = find_data(str(tmp_path / "plays.csv"), None, {})
    assert found.has_queries is False
    assert found.fields["files"] == {
        "interactions": "plays.csv", "items": None, "columns": {"target": "song_id", "timestamp": "ts"},
    }  # fmt: skip
    assert any("no catalogue" in note for note in found.notes)
    with pytest.raises(FileNotFoundError, match="--data .*nowhere does not exist"):
        find_data(str(tmp_path / "nowhere"), None, {})


def test_a_folder_of_a_known_source_is_recognised(tmp_path):
    for name in ("Scientific.item.json", "Scientific.inter.json", "queries.tsv"):
        (tmp_path / name).write_text("{}")
    assert find_data(str(tmp_path), None, {}).fields == {"name": "amazon_scientific", "path": str(tmp_path.resolve())}


@pytest.mark.parametrize(
    ("rows", "headroom", "devices", "expected"),
    [
        (64, 1.26, 1, ("float32", 1, 32)),
        (8, 1.26, 1, ("float32", 1, 8)),
        (8, 1.26, 2, ("float32", 1, 16)),
        (1, 1.2, 4, ("float32", 4, 8)),
    ],
)
def test_batch_dtype_and_mesh_are_the_first_that_fit(model, monkeypatch, rows, headroom, devices, expected):
    config = Config(model=ModelConfig(path=str(model), from_text=False))
    # As much as so many rows of a task need on one device.
    memory = headroom * by_batch_size(config, abstract_model(config, 40).config)(rows).total
    monkeypatch.setattr(fit, "device_memory", lambda devices: memory)
    found = fit.fitting(config, 40, [SimpleNamespace(platform="gpu")] * devices)
    made = found.config
    assert (made.model.dtype, made.mesh.fsdp, made.train.batch_size) == expected
    assert made.train.compute_dtype == "bfloat16"
    assert 1.25 * found.needs.total <= memory


def test_a_model_that_does_not_fit_says_how_much_is_missing(model, monkeypatch):
    monkeypatch.setattr(fit, "device_memory", lambda devices: 1e5)
    config = Config(model=ModelConfig(path=str(model), from_text=False))
    with pytest.raises(ValueError, match=r"needs [\d.]+ GiB a device for one row of each task, and there are 0\.0"):
        fit.fitting(config, 40, [SimpleNamespace(platform="gpu")])
