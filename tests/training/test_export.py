"""An exported tokenizer puts around a prompt what training did, whatever the tokenizer did by itself."""

import json
import os
import re
import stat
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shop
from flax import nnx
from kinds_of_tokenizers import tokenizer_of
from shared import SHARED, needs_shared
from tiny import documented_program
from tokenizers import processors
from transformers import AutoTokenizer

from gems_jax.config.base_model import ModelConfig
from gems_jax.config.items import ItemsConfig
from gems_jax.config.run import Config
from gems_jax.data.dataset.tables import Dataset, Item, Row, Table
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.items.tokens import add_identifier_tokens
from gems_jax.models import from_config, load, save
from gems_jax.models.hf.tokenizer import load_tokenizer
from gems_jax.models.params import params_of
from gems_jax.ranking.rank_items import rank_items
from gems_jax.ranking.trie import as_csr, build_trie
from gems_jax.serving.prompts import padded
from gems_jax.training.export import asking_tokenizer, compare_prompts, export
from gems_jax.training.export_folder import MARK, check_folder, mark_of
from gems_jax.training.export_readme import readme
from gems_jax.training.stages import assemble

CONFIG = types.SimpleNamespace(pad_token_id=0)


def own(around=None):
    tokenizer = train_tokenizer(["search history next found green tea kettle"] * 3, 400)
    if around:
        names = {"<pad>": 0, "</s>": 1}
        template = processors.TemplateProcessing(single=around, pair=f"{around} $B", special_tokens=list(names.items()))
        tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


@pytest.mark.parametrize(
    ("around", "family", "first", "last"),
    [
        (None, "encoder_decoder", [], [1]),
        ("$A </s>", "encoder_decoder", [], [1]),
        ("<pad> $A </s>", "encoder_decoder", [], [1]),
        (None, "decoder", [], []),
        ("<pad> $A", "decoder", [0], []),
        ("<pad> $A </s>", "decoder", [0], []),
    ],
)
def test_what_stands_around_a_prompt_is_what_stood_there_in_training(around, family, first, last, tmp_path):
    tokenizer = own(around)
    before = tokenizer("green tea")["input_ids"]
    asking = asking_tokenizer(tokenizer, CONFIG, family)
    asking.save_pretrained(tmp_path)
    for each in (asking, AutoTokenizer.from_pretrained(tmp_path)):
        plain = each("green tea", add_special_tokens=False)["input_ids"]
        assert each("green tea")["input_ids"] == [*first, *plain, *last]
        assert each.padding_side == ("right" if family == "encoder_decoder" else "left")
    assert tokenizer("green tea")["input_ids"] == before


@needs_shared
@pytest.mark.parametrize("name", ["t5_small", "qwen3", "llama2"])
@pytest.mark.parametrize("family", ["encoder_decoder", "decoder"])
def test_published_tokenizers_are_told_so_too(name, family, tmp_path):
    tokenizer = load_tokenizer(SHARED / "data" / "tokenizers" / name)
    items = add_identifier_tokens(tokenizer, [("<a_1>", "<b_1>"), ("<a_1>",), ("<a_2>", "<b_1>")])
    rows = [Row("ann", [0, 1], 2, "green tea"), Row("bob", [], 1, "kettle"), Row("cy", [2] * 30, 1, "too long")]
    dataset = Dataset(
        "shop",
        [Item(name, f"thing {name}") for name in "xyz"],
        {("test", "src"): Table.from_rows("src", rows), ("valid", "rec"): Table.from_rows("rec", [Row("ann", [0], 2)])},
    )
    asking_tokenizer(tokenizer, CONFIG, family).save_pretrained(tmp_path)
    asking = AutoTokenizer.from_pretrained(tmp_path)
    # The third row's history is cut, so that no text stands for it.
    assert compare_prompts(Config(), dataset, items, asking, family) == (3, 3, "")
    if family == "encoder_decoder":
        assert tokenizer.eos_token_id == asking("tea")["input_ids"][-1]
        without = tokenizer if name != "t5_small" else asking_tokenizer(tokenizer, CONFIG, "decoder")
        alike, tried, other = compare_prompts(Config(), dataset, items, without, family)
        assert (alike, tried) == (0, 3)
        assert "<a_1><b_1>" in other
    assert asking.pad_token is not None
    assert np.asarray(asking(["tea", "green tea and more"], padding=True)["input_ids"]).ndim == 2


CHAT = "<|im_start|>user\nBought: {history_titles} {history}\nSearch: {query}<|im_end|>\n<|im_start|>assistant\n"
SIZES = {
    "t5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
    "qwen3": {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4,
        "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 4, "pad_token_id": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "words", "template"),
    [("t5", "own", "plain"), ("qwen3", "bytes", "plain"), ("qwen3", "word pieces", "chat")],
)
def test_the_documented_program_makes_the_tokens_of_training_and_special_tokens_are_the_bases(
    kind, words, template, tmp_path
):
    tokenizer = tokenizer_of(words)
    values = {"model_type": kind, "vocab_size": len(tokenizer), **SIZES[kind]}
    base, out = tmp_path / "base", tmp_path / "out"
    generation = {"_from_model_config": True, "eos_token_id": [4, 3], "temperature": 0.6, "do_sample": True}
    kept = json.dumps(generation)
    save(from_config(values, jax.random.key(0)), tokenizer, base, files={"generation_config.json": kept})
    rows = [Row("ann", [0, 1], 2, "green tea "), Row("bob", [], 1, "kettle"), Row("cy", [2, 1, 0] * 9, 1, "too long")]
    dataset = Dataset(
        "shop",
        [Item(name, f"{name}  thing") for name in ("red", "old", "new")],
        {
            ("train", "src"): Table.from_rows("src", rows),
            ("train", "rec"): Table.from_rows("rec", [Row("ann", [0], 2)]),
        },
    )
    prompts = {
        "src": CHAT if template == "plain" else "{query}: {history_titles} {history}",
        "rec": "Bought: {history} ",
    }
    config = Config(
        model=ModelConfig(path=str(base)), items=ItemsConfig(prompts=prompts, template=template, max_length=140)
    )
    model, assets_tokenizer = load(base)
    assets = assemble(config, dataset, (model, assets_tokenizer))
    agreement = export(config, assets, assets.model, out)
    assert (agreement.alike, agreement.other) == (agreement.tried, "")
    asked = documented_program(out)
    prompts = json.loads((out / "prompts.json").read_text())
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    theirs = AutoTokenizer.from_pretrained(out)
    for (_, task), table in dataset.tables.items():
        encoded = assets.encode(config, table)
        assert encoded.clipped_queries == 0
        for row in range(len(table)):
            history = [dataset.items[item].item_id for item in table.history_of(row)]
            text = asked["fitting"](theirs, prompts, items, task, history, table.queries[row])
            assert theirs(text)["input_ids"] == encoded.tokens_of(row).tolist()
            assert text.endswith("\n" if task == "src" or template == "chat" else " ")
    assert encoded.dropped_items + assets.encode(config, dataset.table("train", "src")).dropped_items > 0
    with np.load(out / "trie.npz") as trie:
        assert trie["token"].tolist() == sorted(item["token_ids"][0] for item in items)
        assert trie["item"][trie["next_state"]].tolist() == list(range(len(items)))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, out))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert after.get(name) == before.get(name) == SIZES[kind].get(name, before.get(name))
        assert getattr(theirs, name) == getattr(tokenizer, name)
    found = json.loads((out / "generation_config.json").read_text())
    assert (found["temperature"], found["do_sample"], found["max_new_tokens"]) == (0.6, True, 2)
    assert found["eos_token_id"] == ([1, 4, 3] if kind == "t5" else [4, 3])
    (base / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config\.json must hold a JSON object, found list"):
        export(config, assets, assets.model, out)


def test_the_documented_decoder_finds_our_items_and_scores_along_the_trie():
    text = readme(Config(), Config().items.prompts, "encoder_decoder", 0, 1)
    defined = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1], defined)  # noqa: S102
    made = shop.Shop()
    prompt = padded([made.prompt([3], [4, 1, 0], True)], 1, 20, 0)

    @nnx.jit
    def logits(model, given):
        inputs = {name: jnp.repeat(array, len(given), axis=0) for name, array in prompt.items()}
        return jax.nn.log_softmax(model(**inputs, decoder_input_ids=given), axis=-1)

    def log_probs(given):
        """Of one shape, whatever is given: behind it stands what is not looked at."""
        asked = np.zeros((6, 4), int)
        asked[: len(given), 1 : given.shape[1] + 1] = given
        return np.asarray(logits(made.model, asked))[: len(given), given.shape[1]]

    for beams, k in ((6, 6), (3, 2)):
        ids, scores = rank_items(made.model, prompt, made.items, k=k, beams=beams)
        found = defined["decode"](as_csr(build_trie(made.items)), log_probs, 1, k, beams)
        assert [number for _, number in found] == np.asarray(ids)[0].tolist()
        np.testing.assert_allclose([score for score, _ in found], np.asarray(scores)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "qwen3"])
def test_an_export_in_bfloat16_holds_the_rounded_weights_and_says_so(kind, tmp_path):
    tokenizer = own()
    values = {"model_type": kind, "vocab_size": len(tokenizer), **SIZES[kind], "eos_token_id": 1}
    base = tmp_path / "base"
    save(from_config(values, jax.random.key(0)), tokenizer, base)
    tables = {("train", "rec"): Table.from_rows("rec", [Row("ann", [0], 1)])}
    dataset = Dataset("shop", [Item(name, f"green {name}") for name in ("tea", "kettle")], tables)
    config = Config(model=ModelConfig(path=str(base)), items=ItemsConfig(added_loss=None))
    assets = assemble(config, dataset, load(base))
    out = {dtype: tmp_path / str(dtype) for dtype in (None, "float32", "bfloat16")}
    for dtype, folder in out.items():
        export(config, assets, assets.model, folder, dtype=dtype)
    assert (out[None] / "README.md").read_text() == (out["float32"] / "README.md").read_text()
    assert (out[None] / "model.safetensors").read_bytes() == (out["float32"] / "model.safetensors").read_bytes()
    assert "The weights are written as bfloat16" in (out["bfloat16"] / "README.md").read_text()
    loaded, whole = load(out["bfloat16"])[0], params_of(assets.model)
    assert loaded.config.dtype == "bfloat16"
    for name, leaf in params_of(loaded).items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(whole[name].astype(jnp.bfloat16)))
    asked = documented_program(out["bfloat16"])["ask"](out["bfloat16"])[0]
    assert {str(leaf.dtype) for leaf in asked.parameters()} == {"torch.bfloat16"}


def test_only_an_export_of_the_same_run_is_replaced(tmp_path):
    run, base, out = tmp_path / "run", tmp_path / "base", tmp_path / "out"
    check_folder(out, run, base)
    out.mkdir()
    check_folder(out, run, base)
    (out / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds files and is no export of"):
        check_folder(out, run, base)
    (out / MARK).write_text(mark_of(run))
    check_folder(out, run, base)
    with pytest.raises(ValueError, match="is no export of"):
        check_folder(out, tmp_path / "other", base)
    (tmp_path / "link").symlink_to(base)
    for place in (base, tmp_path / "link"):
        with pytest.raises(ValueError, match="is the folder of the base model"):
            check_folder(place, run, base)
    with pytest.raises(ValueError, match="is a file"):
        check_folder(out / "config.json", run, base)
    (out / "model-00001-of-00002.safetensors").touch()
    check_folder(out, run, base)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"what no export wrote, beside an export \(notes.txt\): it would be lost"):
        check_folder(out, run, base)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("base/new", r"lies in the folder of the base model \(model.path\)"),
        ("link/new", r"lies in the folder of the base model \(model.path\)"),
        ("run/checkpoints/7", "lies in the folder of the run's checkpoints"),
        ("data/a/b", r"lies in the folder of the dataset"),
        ("file/new", r"cannot be written \(.*file: Not a directory\): choose another folder"),
    ],
)
def test_an_export_is_put_nowhere_where_it_is_read_as_something_else_or_cannot_be(place, message, tmp_path):
    for name in ("base", "run/checkpoints", "data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "base")
    with pytest.raises((ValueError, OSError), match=message):
        check_folder(tmp_path / place, tmp_path / "run", tmp_path / "base", {"the dataset": tmp_path / "data"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "data", "file", "link", "run"]


def test_a_saved_model_has_the_permissions_that_files_have(tmp_path):
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    tokenizer = own()
    model = from_config({"model_type": "t5", "vocab_size": len(tokenizer), **sizes}, jax.random.key(0))
    before = os.umask(0o027)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    try:
        for place in ("out", "link", "out/."):  # a new one, and over an earlier one
            save(model, tokenizer, tmp_path / place)
    finally:
        os.umask(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]
    assert (tmp_path / "link").is_symlink()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == 0o640
    assert set(modes.values()) == {0o640}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
