"""Identifiers made of items' texts, through a whole run: tuned, evaluated, searched, exported, found again, refused."""

import dataclasses
import json
import shutil
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from flax import nnx
from identified import identified_options
from tiny import Made, documented_program, fails, gems_jax, metrics, options, read, say

import gems_jax as gj
from gems_jax.data.dataset.tables import Dataset
from gems_jax.models import load
from gems_jax.training.identify import item_tokens_of
from gems_jax.training.stages import ensure_data


@pytest.fixture(scope="module")
def tuned(prepared, tmp_path_factory):
    """Identifiers, a run of two steps, its evaluation and export, each by its command."""
    root, said = tmp_path_factory.mktemp("identified"), {}
    argv = identified_options(prepared, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        say(said, "identify", *argv)
        say(said, "train", *argv, "--workdir", root / "run")
        say(said, "evaluate", *argv, "--workdir", root / "run")
        say(said, "export", *argv, "--workdir", root / "run", "--out", root / "out")
    return Made(root, said), argv


def known(argv):
    """Configuration, dataset, base model and its tokenizer."""
    config = read("train", *argv, "--workdir", "x")
    return config, ensure_data(config), *load(config.model.path)


def test_items_are_told_apart_and_the_card_says_what_that_took(tuned):
    made, argv = tuned
    card = json.loads((made.root / "identifiers" / "card.json").read_text())
    dataset = ensure_data(read("train", *argv, "--workdir", "x"))
    ids = gj.identifiers.load(made.root / "identifiers")
    embeddings = np.load(made.root / "identifiers" / "embeddings.npy", allow_pickle=False)
    assert ids.item_ids == tuple(dataset.item_ids())
    assert ids.codebooks.shape == (2, 24, embeddings.shape[1])
    before = gj.identifiers.rkmeans(embeddings, levels=2, size=24)
    assert (before.codebooks == ids.codebooks).all()
    assert card["before"] == before.report()
    assert card["before"]["in_collisions"] > 0
    assert card["after"]["in_collisions"] == 0
    assert card["reassigned"]["moved"] == (before.codes != ids.codes).any(1).sum()
    assert f"{card['before']['in_collisions']:,} of {len(dataset.items):,} items shared" in made.said["identify"]
    assert sum(prefix["items"] for prefix in card["prefixes"]) <= len(dataset.items)
    first = card["prefixes"][0]
    of_titles = zip(dataset.titles(), ids.tokens(), strict=True)
    members = [title for title, tokens in of_titles if tokens[0] == first["token"]]
    assert first["items"] == len(members)
    assert set(first["titles"]) <= set(members)
    page = (made.root / "identifiers" / "card.html").read_text()
    HTMLParser().feed(page)
    assert "<svg" in page
    assert 'src="http' not in page
    assert first["titles"][0].split()[0] in page


def test_a_run_uses_codes_in_its_prompts_and_finds_items_by_them(tuned, capsys):
    made, argv = tuned
    assert "identify: identifiers in" in made.said["train"]
    evaluation = json.loads((made.root / "run" / "eval.json").read_text())
    assert 0 <= evaluation["rec"]["hit@10"] <= 1
    config, dataset, *_ = known(argv)
    user = dataset.table("train", "rec").user_ids[0]
    capsys.readouterr()
    assert gems_jax("search", *argv, "--workdir", made.root / "run", "--user", user, "--k", "3", "lamp") == 0
    found = [line for line in capsys.readouterr().out.splitlines() if line.lstrip()[:2] in ("1.", "2.", "3.")]
    assert len(found) == 3
    assert len(set(found)) == 3
    assert config.items.levels == 2


def test_an_exported_folder_names_items_by_their_codes(tuned):
    made, _ = tuned
    ids = gj.identifiers.load(made.root / "identifiers")
    exported = gj.identifiers.load(made.root / "out" / "identifiers.json")
    assert exported.tokens() == ids.tokens()
    assert exported.item_ids == ids.item_ids
    asked = documented_program(made.root / "out")
    _, tokenizer, prompts, items = asked["ask"](made.root / "out")
    history = [item["item_id"] for item in items[:2]]
    text = asked["prompt"](prompts, items, "rec", history)
    assert "".join(ids.tokens()[0]) + " " + "".join(ids.tokens()[1]) in text
    codes = [items[n]["token_ids"] for n in (0, 1)]
    found = tokenizer(text)["input_ids"]
    assert any(found[start : start + 4] == codes[0] + codes[1] for start in range(len(found)))


def test_a_stopped_run_goes_on_with_the_same_codes_to_the_same_losses(tuned, tmp_path):
    made, argv = tuned
    shutil.copytree(made.root / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    assert gems_jax("train", *argv, "--workdir", tmp_path / "run") == 0
    kept, again = ([line["loss/rec"] for line in metrics(root / "run")] for root in (made.root, tmp_path))
    assert kept == again
    assert len(kept) == 2


def test_other_texts_another_model_or_other_sizes_are_noticed(tuned, tmp_path, capsys):
    made, argv = tuned
    config, dataset, model, tokenizer = known(argv)
    tokens = gj.identifiers.load(made.root / "identifiers").tokens()
    assert item_tokens_of(config, dataset, model, tokenizer) == tokens
    assert item_tokens_of(config, dataset, None, tokenizer) == tokens
    nowhere = dataclasses.replace(config, items=dataclasses.replace(config.items, path=str(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match="make them by gems-jax identify"):
        item_tokens_of(nowhere, dataset, None, tokenizer)
    backwards = Dataset(dataset.name, dataset.items[::-1], {})
    assert item_tokens_of(config, backwards, model, tokenizer) == tokens[::-1]
    with pytest.raises(ValueError, match="the items' texts differ"):
        item_tokens_of(config, Dataset(dataset.name, dataset.items[1:], {}), model, tokenizer)
    graphdef, state = nnx.split(model)
    other = nnx.merge(graphdef, jax.tree.map(lambda leaf: 2 * leaf, state))
    with pytest.raises(ValueError, match="the base model differ"):
        item_tokens_of(config, dataset, other, tokenizer)
    said = fails(capsys, "train", *argv, "--items.levels", "3", "--workdir", tmp_path / "run")
    assert "items.levels differ; make the identifiers again by gems-jax identify" in said
    folder = tmp_path / "identifiers"
    shutil.copytree(made.root / "identifiers", folder)
    (folder / "identifiers.json").write_text("{}")
    said = fails(capsys, "train", *argv, "--items.path", folder, "--workdir", tmp_path / "run")
    assert "identifiers.json is damaged" in said


def test_embeddings_are_kept_and_the_folder_of_something_else_is_not_replaced(tuned, tmp_path, capsys, monkeypatch):
    made, argv = tuned
    folder = tmp_path / "identifiers"
    shutil.copytree(made.root / "identifiers", folder)
    monkeypatch.setattr("gems_jax.training.identify.text_embeddings", lambda *a, **k: pytest.fail("made again"))
    said = fails(capsys, "identify", *argv, "--items.path", folder, "--items.codebook_size", "16")
    assert "items.levels 2 and items.codebook_size 16 make 256" in said
    assert gems_jax("identify", *argv, "--items.path", folder, "--items.codebook_size", "32") == 0
    assert "/ 32 " in capsys.readouterr().out
    assert gj.identifiers.load(folder).codebooks.shape[1] == 32
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "holds files but no identifiers" in fails(capsys, "identify", *argv, "--items.path", tmp_path / "mine")
    assert "nothing is to be made" in fails(capsys, "identify", *options(tmp_path))


def test_codes_within_a_capacity_stand_beside_those_without_and_other_capacities_are_noticed(tuned, tmp_path, capsys):
    made, argv = tuned
    folder = tmp_path / "identifiers"
    shutil.copytree(made.root / "identifiers", folder)
    before = json.loads((folder / "card.json").read_text())
    place = ("--items.path", folder, "--items.capacity_factor", "1.0")
    said = fails(capsys, "train", *argv, *place, "--workdir", tmp_path / "run")
    assert "items.capacity_factor differ; make the identifiers again by gems-jax identify" in said
    assert gems_jax("identify", *argv, *place) == 0
    said = capsys.readouterr().out
    card = json.loads((folder / "card.json").read_text())
    assert card["without_capacity"] == before["before"]
    assert max(card["before"]["largest"]) <= -(-card["before"]["items"] // 24)
    assert max(before["before"]["largest"]) > max(card["before"]["largest"])
    assert card["after"]["in_collisions"] == 0
    for line in ("as quantised: at most ", "without items.capacity_factor: at most "):
        assert line in said
        assert line in (folder / "card.html").read_text()


def test_a_file_with_collisions_is_refused_with_their_number_or_separated(tuned, tmp_path):
    _, argv = tuned
    _, dataset, model, tokenizer = known(argv)
    path, count = tmp_path / "published.json", len(dataset.items)

    def tokens_with(*words):
        config = read("train", *options(tmp_path), "--items.identifiers", path, *words, "--workdir", "x")
        return item_tokens_of(config, dataset, model, tokenizer)

    rows = {item_id: [f"<a_{n // 3}>", f"<b_{n % 3 // 2}>"] for n, item_id in enumerate(dataset.item_ids())}
    path.write_text(json.dumps(rows))
    shared = count - count // 3 - (count % 3 == 1)
    with pytest.raises(ValueError, match=f"{shared:,} items share their identifier.*collisions to reassign"):
        tokens_with()
    tokens = tokens_with("--items.collisions", "reassign", "--items.path", tmp_path / "apart")
    assert len(set(tokens)) == count
    assert {token[:3] for item in tokens for token in item} == {"<a_", "<b_"}
    assert tokens_with("--items.collisions", "group") == [tuple(tokens) for tokens in rows.values()]
    path.write_text(json.dumps(dict(list(rows.items())[1:])))
    with pytest.raises(ValueError, match="which has none"):
        tokens_with("--items.collisions", "reassign", "--items.path", tmp_path / "fewer")


def test_fields_without_an_effect_are_named(tmp_path, capsys):
    argv = options(tmp_path)
    assert read("train", *argv, "--items.identifiers", "tokens", "--workdir", "x").items.identifiers is None
    assert "items.collisions has no effect" in fails(capsys, "prepare", *argv, "--items.collisions", "reassign")
    assert "leave them out" in fails(capsys, "prepare", *argv, "--items.levels", "4")
    for made in ("tokens", "rqvae"):
        said = fails(capsys, "prepare", *argv, "--items.identifiers", made, "--items.capacity_factor", "1.5")
        assert "items.capacity_factor needs items.identifiers rkmeans" in said
    of = ("--items.identifiers", "rkmeans", "--items.capacity_factor")
    assert "items.capacity_factor must be a number from 1 on" in fails(capsys, "prepare", *argv, *of, "0.5")
