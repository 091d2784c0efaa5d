"""A family of models that the package does not know: an update, ranking, general text, its folder."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gems_jax as gj
from gems_jax.config.optimiser import GemsConfig
from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig
from gems_jax.data.batching.batches import make_batch
from gems_jax.data.batching.layouts import LAYOUTS
from gems_jax.data.batching.prompts import encode_table
from gems_jax.data.dataset.tables import Row, Table
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.evaluation.drift import general_loss
from gems_jax.items import ItemIndex, add_item_tokens, grow
from gems_jax.models.family import Family, Weight
from gems_jax.models.layers import Embedding, Linear
from gems_jax.models.params import params_of
from gems_jax.models.registry import FAMILIES, register_family
from gems_jax.models.vocabulary import VocabularyModel
from gems_jax.ranking.rank_items import rank_items
from gems_jax.training.build import token_roles, training_model
from gems_jax.training.losses import task_loss
from gems_jax.training.optimiser.chain import make_optimiser
from gems_jax.training.optimiser.rates import peak_rates
from gems_jax.training.step import Control, make_step
from gems_jax.training.trainable import split_model

WORDS = ["red", "blue", "green", "lamp", "chair", "desk", "shelf"]


@dataclasses.dataclass(frozen=True)
class BagConfig:
    """The shape of a `Bag`."""

    vocab_size: int
    d_model: int = 8
    num_added_tokens: int = 0
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    dtype: str = "float32"
    param_dtype: str = "float32"
    norm_epsilon: float = 1e-6
    model_type: str = "bag"


class Bag(VocabularyModel):
    """The next token from the mean of the rows of all tokens so far, through one kernel."""

    layout = "decoder"

    def __init__(self, config: BagConfig, key: jax.Array):
        super().__init__(config, key)
        self.token_embedding = Embedding((config.vocab_size, config.d_model), 1.0, config, key)
        self.mix = Linear((1, config.d_model, config.d_model), 1.0, config, jax.random.fold_in(key, 1))
        if config.num_added_tokens:
            self.item_embedding = Embedding((config.num_added_tokens, config.d_model), 1.0, config, key)

    @classmethod
    def create(cls, config: BagConfig, key: jax.Array) -> "Bag":
        return cls(config, key)

    def mixed(self, means: jax.Array) -> jax.Array:
        rows = means.reshape(-1, means.shape[-1]) @ self.mix.kernel[...][0]
        return rows.reshape(means.shape)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        return self.logits(self.batch_hidden({"input_ids": input_ids}))

    def batch_hidden(self, batch: Any, dropout_key: jax.Array | None = None) -> jax.Array:
        rows = self.embed(batch["input_ids"])
        return self.mixed(jnp.cumsum(rows, axis=1) / jnp.arange(1, rows.shape[1] + 1)[:, None])

    def start_beams(self, inputs: Any) -> tuple[jax.Array, "BagBeams"]:
        mask = inputs["attention_mask"][..., None]
        sums, counts = (self.embed(inputs["input_ids"]) * mask).sum(1, keepdims=True), mask.sum(1)
        return self.logits(self.mixed(sums / counts[..., None]))[:, 0], BagBeams(sums, counts)

    def flops(self, input_tokens: float, answer_tokens: float, input_length: float) -> float:
        return 6 * (self.config.d_model**2 * input_tokens + self.output_size * answer_tokens)


class BagBeams(NamedTuple):
    """Sums ``[B, n, d]`` and numbers ``[B, n]`` of the tokens so far."""

    sums: jax.Array
    counts: jax.Array

    def take(self, parents: jax.Array) -> "BagBeams":
        sums = jnp.take_along_axis(self.sums, parents[..., None], axis=1)
        return BagBeams(sums, jnp.take_along_axis(self.counts, parents, axis=1))

    def step(self, model: Bag, ids: jax.Array) -> tuple[jax.Array, "BagBeams"]:
        sums = self.sums[:, :, None] + jnp.cumsum(model.embed(ids), axis=2)
        counts = self.counts[..., None] + jnp.arange(1, ids.shape[2] + 1)
        return model.mixed(sums / counts[..., None]), BagBeams(sums[:, :, -1], counts[..., -1])


BAG = Family(
    model_types=("bag",),
    config=BagConfig,
    model=Bag,
    read_config=lambda values, place: BagConfig(values["vocab_size"]),
    config_values=lambda config: {"model_type": "bag", "vocab_size": config.vocab_size},
    weights=lambda config: {
        "token_embedding/embedding": Weight("rows.weight"),
        "mix/kernel": Weight("mix.{}.weight", 1, transposed=True),
    },
    honoured=frozenset(("model_type", "vocab_size")),
    no_effect=frozenset(),
)


class Shop(NamedTuple):
    """A base model, the same with items, and what goes in."""

    base: Any
    model: Any
    tokenizer: Any
    items: ItemIndex
    batch: dict[str, np.ndarray]
    text: list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def shop():
    with pytest.raises(ValueError, match="config: model_type is 'bag', known are .*'t5'"):
        gj.models.from_config({"model_type": "bag", "vocab_size": 20}, jax.random.key(0))
    register_family(BAG)
    yield made_shop()
    del FAMILIES["bag"]


def made_shop():
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 8)) for _ in range(30)]
    tokenizer = train_tokenizer(lines, vocab_size=400, num_sentinels=2)
    base = gj.models.from_config({"model_type": "bag", "vocab_size": len(tokenizer)}, jax.random.key(0))
    tokens = np.concatenate([tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines])
    text = list(LAYOUTS[base.layout].text_batches(tokens, tokenizer, 4, 8, 2))
    titles = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
    items = ItemIndex(np.array(add_item_tokens(tokenizer, WORDS, len(tokenizer)), np.int32)[:, None])
    table = Table.from_rows("rec", [Row("ann", [0, 1], 2), Row("bob", [3], 4)])
    encoded = encode_table(table, tokenizer, items, "{history} next:", 16, base.layout)
    model = grow(base, titles)
    return Shop(base, model, tokenizer, items, make_batch(encoded, np.array([0, 1]), 16, **token_roles(model)), text)


def means_of(table, ids):
    """Of the rows of all tokens so far, what the kernel is given, ``[B, S, d]``."""
    return np.cumsum(table[ids], axis=1) / np.arange(1, ids.shape[1] + 1)[:, None]


def log_probabilities(model, ids):
    """Of every token behind each of ``ids``, float64 ``[B, S, V + N]``, from the weights alone."""
    params = {path: np.asarray(leaf, np.float64) for path, leaf in params_of(model).items()}
    tables = [params[name] for name in ("token_embedding/embedding", "item_embedding/embedding") if name in params]
    table = np.concatenate(tables)
    logits = means_of(table, ids) @ params["mix/kernel"][0] @ table.T
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def mean_loss(model, batch):
    picked = np.take_along_axis(log_probabilities(model, batch["input_ids"]), batch["labels"][..., None], axis=2)
    return -(picked[..., 0] * batch["label_mask"]).sum() / batch["label_mask"].sum()


def test_it_is_tuned_by_gems_inside_the_null_space_of_its_text(shop):
    space = gj.estimate_null_space(shop.base, shop.text, rank=4, progress=False)
    config = Config(
        train=TrainConfig(method="gems", dropout=0.0, loss_vocabulary="full", warmup=0),
        gems=GemsConfig(rank=2, task_rank=1, gate="equal"),
    )
    graph, params, rest = split_model(training_model(shop.model, config), config)
    tx = make_optimiser(config, 2, space)
    step = jax.jit(make_step(task_loss(graph, "full", answer_length=2), config.train, tx, ("rec", "src"), None))
    batch = {name: np.stack([x, x[::-1]]) for name, x in shop.batch.items() if name != "row_index"}
    control = Control(0, 0, False, np.zeros(1, np.int32), peak_rates(config.train), np.uint32(0))
    moved, _, metrics = step(params, jax.jit(tx.init)(params), rest, batch, control)
    np.testing.assert_allclose(metrics["losses"], [mean_loss(shop.model, shop.batch)] * 2, rtol=1e-5)
    change = np.asarray(moved["mix"]["kernel"][...] - params["mix"]["kernel"][...])[0]
    table = np.asarray(shop.base.token_embedding.embedding[...], np.float64)
    inputs = np.concatenate([means_of(table, batch["input_ids"])[batch["attention_mask"] > 0] for batch in shop.text])
    protected = np.linalg.svd(inputs)[2][:4]
    assert np.linalg.norm(change) > 1e-3
    assert np.linalg.norm(protected @ change) < 1e-3 * np.linalg.norm(change)


def test_a_model_that_cannot_compute_layers_again_says_so_where_a_run_asks_for_it(shop):
    with pytest.raises(ValueError, match="train.remat='none': the configuration of a Bag has no field remat"):
        training_model(shop.model, Config(train=TrainConfig(remat="none")))


def test_its_items_are_ranked_as_by_the_probabilities_of_each(shop):
    prompt = np.array([[5, 6, 9]])
    ids, scores = rank_items(shop.model, {"input_ids": prompt}, shop.items, k=len(WORDS), beams=len(WORDS))
    first = shop.items.token_ids[:, 0]
    answers = np.concatenate([np.repeat(prompt, len(WORDS), axis=0), first[:, None]], axis=1)
    found = log_probabilities(shop.model, answers)
    wanted = (found[np.arange(len(WORDS)), 2, first] + found[:, 3, 1]) / 2
    assert ids[0].tolist() == np.argsort(-wanted).tolist()
    np.testing.assert_allclose(scores[0], np.sort(wanted)[::-1], rtol=1e-5)


def test_its_loss_on_general_text_is_that_of_the_next_tokens(shop):
    wanted = np.average(
        [mean_loss(shop.base, batch) for batch in shop.text], weights=[b["label_mask"].sum() for b in shop.text]
    )
    assert general_loss(shop.model, shop.text)["loss"] == pytest.approx(wanted, rel=1e-5)


def test_its_folder_is_written_and_read(shop, tmp_path):
    gj.models.save(shop.model, shop.tokenizer, tmp_path / "model")
    model, _ = gj.models.load(tmp_path / "model")
    assert isinstance(model, Bag)
    assert model.config == shop.model.config
    for path, leaf in params_of(shop.model).items():
        np.testing.assert_array_equal(params_of(model)[path], leaf)
