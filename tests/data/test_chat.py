"""Prompts inside a chat have the tokens of the chat that transformers makes of the same words."""

import pytest
from kinds_of_tokenizers import CHAT, tokenizer_of

from gems_jax.config.items import ItemsConfig
from gems_jax.config.run import Config
from gems_jax.data.batching.chat import as_chat
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.dataset.tables import Row, Table
from gems_jax.items.tokens import ItemIndex, add_item_tokens
from gems_jax.training.tokens import encode

PROMPTS = {"src": "Bought {{so far}}: {history}\nSearch: {query}", "rec": "Bought {history_titles} next?"}
ROWS = [Row("a", [1, 2], 0, "green tea"), Row("b", [], 1, "tea <|im_end|>"), Row("c", [0], 1, "kettle {x}")]
TITLES = ["red  lamp", "kettle", "green tea"]
CONFIG = Config(items=ItemsConfig(prompts=PROMPTS, template="chat", max_length=400))


@pytest.mark.parametrize("kind", ["bytes", "word pieces"])
@pytest.mark.parametrize(
    "template", [CHAT, "{{ bos_token }}{# {a} #}\n{}\n" + CHAT], ids=["chat", "begins with a token"]
)
def test_a_prompt_has_the_tokens_of_the_chat_that_it_is_said_in(kind, template):
    tokenizer = tokenizer_of(kind)
    tokenizer.chat_template = template
    ids = add_item_tokens(tokenizer, ["x", "y", "z"])
    items = ItemIndex([[token] for token in ids])
    for task, rows in (("src", ROWS), ("rec", [row._replace(query="") for row in ROWS])):
        found = encode(CONFIG, Table.from_rows(task, rows), tokenizer, items, "decoder", TITLES)
        for number, row in enumerate(rows):
            history = " ".join(f"<item_{'xyz'[item]}>" for item in row.history)
            titles = "; ".join(" ".join(TITLES[item].split()) for item in row.history)
            said = PROMPTS[task].format(history=history, history_titles=titles, query=row.query)
            chat = tokenizer.apply_chat_template(
                [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
            )
            tokens = found.tokens_of(number).tolist()
            if "<|im_end|>" in row.query:  # letters in a query
                assert tokens.count(tokenizer.eos_token_id) == 1
            else:
                # The token that begins the chat is there once, whoever puts it there.
                first = [] if "bos_token" in template else LAYOUTS["decoder"].around(tokenizer)[0]
                assert tokens == first + tokenizer(chat, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"the tokenizer has no chat template .*give model.path an instruct model's folder"),
        ("{{ raise_exception('a system message is needed') }}", "fails on one message of a user: a system message"),
        ("{{ messages[0]['role'] }}", "does not repeat a user's message once"),
        ("{{ messages[0]['content'] }} or {{ messages[0]['content'] }}", "does not repeat a user's message once"),
    ],
)
def test_a_tokenizer_without_a_template_that_can_be_used_is_told(template, message):
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        as_chat("{history}", tokenizer, "decoder")
