"""A source of data from outside the package is one like those inside."""

import numpy as np
import pyarrow as pa
import pytest
from house import MODULES, rooms
from raw_tables import rows_of

from gems_jax.arguments import config_of, parse_options
from gems_jax.commands import COMMANDS
from gems_jax.config.checks import check
from gems_jax.config.data import DataConfig
from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Item
from gems_jax.data.prepare import prepare
from gems_jax.data.raw.examples import Examples, Names
from gems_jax.data.raw.options import TableFiles
from gems_jax.data.raw.ragged import Ragged
from gems_jax.data.raw.source import Source
from gems_jax.data.sources import registry
from gems_jax.data.sources.entry import SourceEntry
from gems_jax.data.sources.synthetic import marketplace


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


def read_plays(options, quarantine, cache):
    """Lines of a listener and a song, in the order of time; `!` stands for a line that cannot be read."""
    names, users, songs = Names(), [], []
    for number, line in enumerate((options.folder / "plays.txt").read_text().splitlines(), start=1):
        if line == "!":
            quarantine.add("row", f"line {number}", "it is no play", line)
            continue
        user, song = line.split()
        users.append(user)
        songs.append(song)
    count = len(users)
    quarantine.check("row", count + len(quarantine.rows), options.folder)
    none = np.full(count, -1, np.int32)
    examples = Examples(
        names, names.users.encode(pa.array(users)), np.zeros(count, np.int32), none, np.arange(count, dtype=float),
        none.astype(np.int8), Ragged.of([[names.items.add(song)] for song in songs]),
        np.full(count, names.files.add("plays.txt"), np.int32), np.arange(count),
    )  # fmt: skip
    return Source("plays", str(options.folder), examples, [Item(song, f"song {song}") for song in dict.fromkeys(songs)])


PLAYS = SourceEntry(
    read=read_plays, raw_files=lambda options: [options.folder / "plays.txt"], defaults={"max_history": 2}
)


def write_plays(folder, more=""):
    folder.mkdir(exist_ok=True)
    lines = [f"{user} s{(index + step) % 9}" for step in range(5) for index, user in enumerate(("ann", "bob", "cal"))]
    (folder / "plays.txt").write_text("\n".join(lines) + "\n" + more)


def prepare_plays(folder, out="out", **options):
    return prepare(
        "plays", folder / out, path=folder, **{"num_negatives": 2, "progress": None, "max_bad_fraction": 0.1} | options
    )


def test_a_registered_source_is_prepared_like_those_of_the_package(tmp_path):
    registry.register("plays", PLAYS)
    write_plays(tmp_path, "!\n")
    dataset = prepare_plays(tmp_path)
    # By default histories have two songs, as the source says.
    assert rows_of(dataset)["test", "rec"][0][:3] == ("ann", ["s2", "s3"], "s4")
    assert dataset.card["quarantined"] == {"row: it is no play": 1}
    assert dataset.card["settings"]["raw"].keys() == {"plays.txt"}
    longer = prepare_plays(tmp_path, out="longer", preprocessing={"max_history": 3})
    assert rows_of(longer)["test", "rec"][0][1] == ["s1", "s2", "s3"]


def test_edited_files_of_a_registered_source_are_another_dataset(tmp_path):
    registry.register("plays", PLAYS)
    write_plays(tmp_path)
    prepare_plays(tmp_path)
    said = []
    prepare_plays(tmp_path, progress=said.append)
    assert "is prepared already" in said[0]
    write_plays(tmp_path, "ann s8\n")
    with pytest.raises(ValueError, match=r"the raw file plays\.txt has changed since"):
        prepare_plays(tmp_path)


def test_a_source_that_makes_its_own_splits_takes_no_steps(tmp_path):
    made = SourceEntry(load=lambda options: marketplace.load(options.seed, num_users=5, num_negatives=2))
    registry.register("small_market", made)
    dataset = prepare("small_market", tmp_path / "out", seed=3, num_negatives=2, progress=None)
    assert dataset.card["settings"] == {"name": "small_market", "seed": 3, "num_negatives": 2}
    with pytest.raises(ValueError, match=r"data\.preprocessing has no effect on small_market, only on amazon, qilin, "):
        prepare("small_market", tmp_path / "x", preprocessing={"core": 3})
    with pytest.raises(ValueError, match="the small_market is made from a seed and reads no files, but data.path"):
        prepare("small_market", tmp_path / "x", path=tmp_path)


def test_options_without_effect_name_the_registered_sources_that_take_them(tmp_path):
    described = SourceEntry(read=read_plays, raw_files=lambda options: [], files=TableFiles(), takes=("category",))
    registry.register("described", described)
    registry.register("plays", PLAYS)
    with pytest.raises(ValueError, match="data.files has no effect on plays, only on released, table, described; "):
        prepare_plays(tmp_path, files={"items": None})
    with pytest.raises(ValueError, match="data.category has no effect on plays, only on amazon, .*described; leave"):
        prepare_plays(tmp_path, category="Books")
    with pytest.raises(ValueError, match="plays needs data.path"):
        prepare("plays", tmp_path / "x")


def test_a_configuration_may_name_a_source_once_it_is_registered(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data: {name: plays, path: raw, dir: made}\n")
    words = ["prepare", "--config", str(file)]
    known = f"one of {', '.join(registry.names())}, got 'plays'"
    with pytest.raises(ValueError, match=f"line 1: data.name must be {known}"):
        parse_options(words, COMMANDS)
    with pytest.raises(ValueError, match=known):
        check(Config(data=DataConfig(name="plays")))
    with pytest.raises(ValueError, match="unknown data source 'plays'; use one of marketplace, "):
        prepare("plays", tmp_path / "out", path=tmp_path)
    registry.register("plays", PLAYS)
    assert config_of(parse_options(words, COMMANDS)[1]).data.name == "plays"
    check(Config(data=DataConfig(name="plays")))
    with pytest.raises(ValueError, match="got 'play'; did you mean 'plays'?"):
        parse_options(["prepare", "--data.name", "play"], COMMANDS)


def test_what_can_be_no_source_is_refused():
    with pytest.raises(ValueError, match="there is a data source 'table' already"):
        registry.register("table", PLAYS)
    with pytest.raises(ValueError, match="a source's name is of lower-case letters, digits and _, .* got 'My plays'"):
        registry.register("My plays", PLAYS)
    for both_or_none in ({}, {"read": read_plays, "load": marketplace.load}):
        with pytest.raises(ValueError, match="exactly one of read .* and load"):
            SourceEntry(**both_or_none)
    with pytest.raises(ValueError, match="takes is of category and num_users, got 'seed'"):
        SourceEntry(read=read_plays, takes=("seed",))


def test_naming_the_sources_loads_nothing_that_reads_files():
    reached, waiting = set(), ["gems_jax.data.sources.registry"]
    while waiting:
        names = rooms.imported(MODULES[waiting.pop()].read_text(), MODULES, when_loaded=True)
        waiting += [name for name in names - reached if name in MODULES]
        reached |= names
    assert not reached & {"pyarrow", "tensorflow_datasets", "scipy", "transformers", "tokenizers", "grain"}
    assert "gems_jax.data.raw.raw_table" in reached
