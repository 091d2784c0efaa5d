"""Facts by templates: what the base is sure of, what of it a tuned model keeps, and when nothing is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gems_jax as gj
from gems_jax.evaluation.fact_prompts import FactPrompt, fact_prompts
from gems_jax.evaluation.fact_summary import LEAST, fact_lines
from gems_jax.evaluation.facts import kept_facts, known_facts
from gems_jax.report.ability_table import ability_table
from gems_jax.report.results import ResultRow

WORDS = [f"w{number}" for number in range(40)]
SENTINEL = "<extra_id_0>"
VOCABULARY = ["<pad>", "</s>", *WORDS, SENTINEL]
SIZE, ITEMS = len(VOCABULARY), 3
PROMPTS = [FactPrompt("even" if i % 2 == 0 else "odd", f"w1 w2 w{i}") for i in range(40)]


class Words:
    """A tokenizer of whole words."""

    bos_token_id, eos_token_id = None, 1

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [VOCABULARY.index(word if word in VOCABULARY else "w0") for word in text.split()]}

    def decode(self, ids):
        return " ".join([*VOCABULARY, "<item>", "<item>", "<item>"][one] for one in ids)

    def get_vocab(self):
        return {word: place for place, word in enumerate(VOCABULARY)}


class Config:
    vocab_size, num_added_tokens, pad_token_id, eos_token_id, decoder_start_token_id = SIZE, ITEMS, 0, 1, 0


class Lookup(nnx.Module):
    """A model whose logits are the row of a table for the prompt's last word: closed form, in either layout."""

    config = Config()

    def __init__(self, table, layout):
        self.table, self.layout = nnx.Param(jnp.asarray(table, jnp.float32)), layout

    def batch_hidden(self, batch):
        if self.layout == "decoder":
            return self.table[...][batch["input_ids"]]
        # The word before the sentinel; where the decoder has just read the sentinel.
        ids, decoded = batch["input_ids"], batch["decoder_input_ids"]
        place = (ids == VOCABULARY.index(SENTINEL)).argmax(axis=1) - 1
        answer = self.table[...][ids[jnp.arange(len(ids)), place]][:, None]
        return jnp.where((decoded == VOCABULARY.index(SENTINEL))[..., None], answer, 0.0)

    def logits(self, hidden, vocabulary):
        return hidden[..., :SIZE] if vocabulary == "base" else hidden


def table_of(probabilities, answers):
    """Logits that give word ``i`` its answer with a probability; the base's other tokens share the rest."""
    table = np.zeros((SIZE, SIZE + ITEMS))
    table[:, SIZE:] = -30.0
    for i, (probability, answer) in enumerate(zip(probabilities, answers, strict=True)):
        table[VOCABULARY.index(f"w{i}"), VOCABULARY.index(answer)] = np.log(
            probability / (1 - probability) * (SIZE - 1)
        )
    return table


SURE = np.where(np.arange(40) < 30, 0.51, 0.49)
NEXT = [f"w{(i + 1) % 40}" for i in range(40)]


@pytest.mark.parametrize("layout", ["decoder", "encoder_decoder"])
def test_what_the_base_is_sure_of_is_kept_where_the_same_token_is_the_likeliest_of_all(layout):
    base = Lookup(table_of(SURE, NEXT), layout)
    facts = known_facts(base, Words(), PROMPTS)
    np.testing.assert_array_equal(facts.known, SURE > 0.5)
    assert [VOCABULARY[one] for one in facts.answers] == NEXT
    tuned = table_of(SURE, NEXT)
    tuned[VOCABULARY.index("w0")] = np.roll(tuned[VOCABULARY.index("w0")], 1)  # another word
    tuned[VOCABULARY.index("w1"), SIZE + 2] = 30.0  # an item
    tuned[VOCABULARY.index("w2")] *= 0.1  # less sure, the same
    tuned[VOCABULARY.index("w39")] *= -1.0  # was not known
    numbers, details = kept_facts(facts, Lookup(tuned, layout), Words())
    assert numbers["facts_asked"] == 40
    assert (numbers["facts_known"], numbers["facts_kept"]) == (30, 28 / 30)
    low, high = numbers["facts_kept_ci"]
    # Of 30 draws with replacement the number kept is binomial.
    draws = np.random.default_rng(5).binomial(30, 28 / 30, 100_000) / 30
    np.testing.assert_allclose([low, high], np.quantile(draws, [0.025, 0.975]), atol=1 / 30 + 1e-9)
    assert details["kinds"] == {
        "even": {"asked": 20, "known": 15, "kept": 14},
        "odd": {"asked": 20, "known": 15, "kept": 14},
    }
    assert [(one["prompt"], one["base"], one["tuned"]) for one in details["lost"]] == [
        ("w1 w2 w0", "w1", "w2"), ("w1 w2 w1", "w2", "<item>")
    ]  # fmt: skip
    again, _ = kept_facts(facts, Lookup(tuned, layout), Words())
    assert again == numbers


def test_of_a_base_that_is_sure_of_few_nothing_is_said_but_that():
    few = np.where(np.arange(40) < LEAST - 1, 0.9, 0.1)
    facts = known_facts(Lookup(table_of(few, NEXT), "decoder"), Words(), PROMPTS)
    numbers, details = kept_facts(facts, None, Words())  # a tuned model is not even asked
    assert numbers == {"facts_asked": 40, "facts_known": LEAST - 1}
    assert details["lost"] == []
    assert fact_lines(numbers) == [
        f"facts: the base model is sure of {LEAST - 1} answers to 40 prompts, too few to say what is kept ({LEAST})"
    ]
    run = ResultRow("mine", "run", {"general": {"kl": 0.1} | numbers})
    table = ability_table([run, ResultRow("other", "method", {"general": {"kl": 0.2, "facts_kept": 0.25}})])
    assert "too few to say what is kept (20).</p>" in table
    assert table.count('<td class="none">–</td>') == 1 + 3 + 3  # of facts, and of what is not given here
    assert "<td><b>25.0%</b></td>" in table


SHAPES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
CONFIGS = {
    "llama": SHAPES | {"model_type": "llama", "num_key_value_heads": 1, "eos_token_id": 1, "pad_token_id": 0},
    "t5": T5 | {"model_type": "t5", "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0},
}


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_batches_give_what_the_model_says_of_each_prompt_alone(family):
    model = gj.models.from_config(CONFIGS[family] | {"vocab_size": SIZE}, jax.random.key(0))
    texts = [" ".join(WORDS[i : i + 1 + i % 5]) for i in range(35)]  # of several lengths, in two batches
    facts = known_facts(model, Words(), [FactPrompt("all", text) for text in texts], least=0.01)
    for place in (0, 3, 4, 31, 34):
        ids = Words()(texts[place])["input_ids"]
        if family == "t5":
            ids = [*ids, VOCABULARY.index(SENTINEL), 1]
            asked = {"decoder_input_ids": jnp.array([[0, VOCABULARY.index(SENTINEL)]])}
        else:
            asked = {}
        logits = model(jnp.array([ids]), **asked)[0, -1]
        assert int(facts.answers[place]) == int(logits.argmax())
        assert bool(facts.known[place]) == bool(jax.nn.softmax(logits).max() >= 0.01)


def test_prompts_are_several_hundred_each_once_and_end_where_a_word_is_to_come():
    prompts = fact_prompts()
    texts = [prompt.text for prompt in prompts]
    assert len(set(texts)) == len(texts) > 300
    assert all(text == text.strip() and "{" not in text for text in texts)
    # An example of what is asked is never the answer that is asked for.
    assert not any(text.startswith("The capital of Portugal is Lisbon. The capital of Portugal") for text in texts)
    assert fact_prompts() == prompts
