"""An exported tokenizer puts around a prompt what training did, whatever the tokenizer did by itself."""

import types

import numpy as np
import pytest
from shared import SHARED, needs_shared
from tokenizers import processors
from transformers import AutoTokenizer

from gems_jax.data.tables import Dataset, Item, Row, Table
from gems_jax.data.tokenizer import train_tokenizer
from gems_jax.items import add_identifier_tokens
from gems_jax.models.tokenizer_folder import load_tokenizer
from gems_jax.training.config import Config
from gems_jax.training.export import asking_tokenizer, compare_prompts

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
