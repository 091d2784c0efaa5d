"""The pipeline: sampling, length groups, families, workers, devices, files of tokens; against plain loops."""

import dataclasses
import json
import pickle
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from tokenizers import AddedToken

import gems_jax.data.batching.token_cache as token_cache
from gems_jax.data.batching.batches import make_batch
from gems_jax.data.batching.device_batches import DeviceBatches
from gems_jax.data.batching.encoded_table import EncodedTable, map_encoded, open_encoded
from gems_jax.data.batching.pipeline import TaskBatchSource, task_batches
from gems_jax.data.batching.prompts import encode_table
from gems_jax.data.batching.sampling import CYCLE, RowPlan, sampling_weights
from gems_jax.data.batching.token_cache import encode_once
from gems_jax.data.dataset.tables import Row, Table
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.items.tokens import ItemIndex

# Items of three, two and one tokens.
ITEMS = np.array([[40, 50, 60], [40, 51, 60], [41, 50, -1], [42, -1, -1]])


def encoded(task, lengths, first_token=100, **more):
    """A made-up encoded table whose tokens are all different."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(offsets[-1], dtype=np.int32) + first_token
    return EncodedTable(task, tokens, offsets, np.arange(len(lengths), dtype=np.int32) + 10_000, **more)


def lengths_of(count, seed=0, low=1, high=33):
    return np.random.default_rng(seed).integers(low, high, count)


@pytest.fixture(scope="module")
def words():
    """A tokenizer with the tokens of ten items, three each, and their identifiers."""
    tokenizer = train_tokenizer(["history: the user searches for: green tea kettle, next item?"] * 3, 400)
    tokens = [f"<{letter}_{n}>" for letter in "abc" for n in range(10)]
    tokenizer.add_tokens([AddedToken(token, lstrip=True, normalized=False) for token in tokens])
    ids = np.asarray(tokenizer.convert_tokens_to_ids(tokens)).reshape(3, 10)
    index = np.stack([ids[0], ids[1, ::-1], ids[2]], axis=1)
    index[::2, 2] = -1
    return tokenizer, ItemIndex(index)


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


# Sampling


def test_equal_sampling_gives_every_task_whole_batches():
    source = TaskBatchSource({"a": encoded("a", [3] * 50), "b": encoded("b", [2] * 7)}, 5, 8, seed=0)
    assert all((source[step]["row_index"] >= 0).all() for step in range(30))


def test_ratio_shows_every_row_of_every_task_equally_often():
    sizes = {"a": 300, "b": 120, "c": 7}
    tables = {task: encoded(task, [2] * size) for task, size in sizes.items()}
    source = TaskBatchSource(tables, 10, 8, seed=0, sampling="ratio")
    steps = 427 * 3 // 14
    index = np.stack([source[step]["row_index"] for step in range(steps)])
    assert set((index >= 0).sum(axis=(1, 2)).tolist()) == {14}
    for number, size in enumerate(sizes.values()):
        rows = index[:, number][index[:, number] >= 0]
        assert abs(len(rows) - 3 * size) <= 8
        assert set(np.bincount(rows, minlength=size).tolist()) <= {2, 3, 4}


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_temperature_gives_rows_by_powers_of_the_sizes(temperature):
    sizes = [1000, 200, 30]
    plan = RowPlan(sizes, 64, "temperature", temperature)
    wanted = np.array([size ** (1 / temperature) for size in sizes])
    found = plan.before(CYCLE) / CYCLE
    assert plan.rows_per_step == int(64 * wanted.sum() / wanted.max())
    np.testing.assert_allclose(found, plan.rows_per_step * wanted / wanted.sum(), atol=1 / CYCLE)
    ratio = RowPlan(sizes, 64, "ratio")
    if temperature == 1.0:
        np.testing.assert_array_equal(plan.before(1000), ratio.before(1000))
    else:
        assert plan.before(1000)[2] > ratio.before(1000)[2]


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
    st.integers(1, 40),
    st.sampled_from([("equal", 1.0), ("ratio", 1.0), ("temperature", 3.0)]),
    st.integers(0, 3 * CYCLE),
)
def test_every_step_has_the_same_number_of_rows_and_no_task_more_than_a_batch(sizes, batch_size, how, step):
    try:
        plan = RowPlan(sizes, batch_size, *how)
    except ValueError:
        # A task would have less than a row in a cycle.
        assert max(sizes) > 1000 * batch_size * min(sizes)
        return
    counts = plan.counts(step)
    assert counts.sum() == plan.rows_per_step
    assert 0 <= counts.min() <= counts.max() <= batch_size
    np.testing.assert_array_equal(plan.before(step) + counts, plan.before(step + 1))
    share = plan.rows_per_step * sampling_weights(sizes, *how)
    assert np.abs(plan.before(step) - step * share).max() < 10


def test_rows_that_are_not_there_count_nowhere():
    tables = {"a": encoded("a", [3] * 50), "b": encoded("b", [2] * 5)}
    batch = TaskBatchSource(tables, 10, 8, seed=0, sampling="ratio", pad_token_id=99)[0]
    missing = batch["row_index"] < 0
    assert missing.sum() == 9
    assert batch["label_mask"].sum() == 2 * 11
    for name in ("attention_mask", "label_mask"):
        assert not batch[name][missing].any()
    assert (batch["input_ids"][missing] == 99).all()


def test_sampling_options_without_sense_are_errors():
    tables = {"a": encoded("a", [3] * 50), "b": encoded("b", [2] * 5)}
    with pytest.raises(ValueError, match="sampling must be one of equal, ratio, temperature, got 'random'"):
        task_batches(tables, 4, 8, 0, sampling="random")
    with pytest.raises(ValueError, match=r"temperature 2.0 has no effect on sampling='ratio'"):
        task_batches(tables, 4, 8, 0, sampling="ratio", temperature=2.0)
    with pytest.raises(ValueError, match=r"from 1 on, got 0.5"):
        task_batches(tables, 4, 8, 0, sampling="temperature", temperature=0.5)
    with pytest.raises(ValueError, match="less than a row in 65,536 steps"):
        RowPlan([10**9, 1], 8, "ratio")


# Lengths


def test_length_groups_save_padding_and_keep_every_row():
    tables = {"a": encoded("a", lengths_of(640)), "b": encoded("b", lengths_of(320, seed=1))}
    tokens = {}
    for window in (1, 20):
        source = TaskBatchSource(tables, 16, 32, 0, length_buckets=(8, 16, 24), length_window=window)
        batches = [source[step] for step in range(40)]
        for number, size in enumerate((640, 320)):
            rows = np.concatenate([batch["row_index"][number] for batch in batches])
            assert (np.bincount(rows, minlength=size) == 640 // size).all()
        real = sum(batch["attention_mask"].sum() for batch in batches)
        tokens[window] = real / sum(batch["input_ids"].size for batch in batches)
    assert tokens[1] < 0.55
    assert tokens[20] > 0.75


def test_grouped_batches_come_in_no_order_of_length():
    tables = {"a": encoded("a", lengths_of(3200))}
    source = TaskBatchSource(tables, 16, 32, 0, length_window=50)
    longest = [int(source[step]["attention_mask"].sum(axis=2).max()) for step in range(100)]
    assert abs(np.corrcoef(np.arange(50), longest[:50])[0, 1]) < 0.5
    assert longest[:50] != longest[50:]


def test_a_handful_of_lengths_is_a_handful_of_compilations():
    tables = {"a": encoded("a", lengths_of(640)), "b": encoded("b", lengths_of(320, seed=1))}
    compiled = []

    @jax.jit
    def step(batch):
        compiled.append(batch["input_ids"].shape)
        return batch["attention_mask"].sum()

    batches = task_batches(tables, 16, 32, 0, length_buckets=(8, 16, 24), length_window=10, sampling="ratio")
    for _ in range(60):
        step(next(batches))
    assert sorted(compiled) == [(2, 16, 8), (2, 16, 16), (2, 16, 24), (2, 16, 32)]


@settings(max_examples=25)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 40), st.integers(0, 50), st.sampled_from(["equal", "ratio"])
)
def test_slices_of_all_processes_make_the_global_batch_in_any_window(processes, window, size, step, sampling):
    tables = {"a": encoded("a", lengths_of(size, high=9)), "b": encoded("b", lengths_of(10, high=9))}
    options = {"length_buckets": (4,), "length_window": window, "sampling": sampling}
    whole = TaskBatchSource(tables, processes * 2, 9, 0, **options)[step]
    parts = [TaskBatchSource(tables, processes * 2, 9, 0, p, processes, **options)[step] for p in range(processes)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], axis=1), whole[name])


# Families and identifiers of several tokens


def plain_batch(table, rows, length, pad, end, start):
    """What `make_batch` says, row by row."""
    result = {name: [] for name in ("input_ids", "attention_mask", "decoder_input_ids", "labels", "label_mask")}
    width = table.target_tokens.shape[1] + 1

    def put(name, values, size, fill):
        result[name].append(values + [fill] * (size - len(values)))

    for row in rows:
        prompt = table.tokens_of(row).tolist() if row >= 0 else []
        answer = [*(t for t in table.target_tokens[row].tolist() if t >= 0), end] if row >= 0 else []
        if table.layout == "decoder":
            tokens = prompt + answer
            put("input_ids", tokens, length, pad)
            put("attention_mask", [1] * len(tokens), length, 0)
            put("labels", tokens[1:], length, pad)
            put("label_mask", [0] * (len(prompt) - 1) + [1] * len(answer), length, 0)
        else:
            put("input_ids", prompt, length, pad)
            put("attention_mask", [1] * len(prompt), length, 0)
            put("decoder_input_ids", [start, *answer[:-1]], width, pad)
            put("labels", answer, width, pad)
            put("label_mask", [1] * len(answer), width, 0)
    result["row_index"] = rows
    return {name: np.asarray(values) for name, values in result.items() if len(values)}


@pytest.mark.parametrize("layout", ["encoder_decoder", "decoder"])
@pytest.mark.parametrize("width", [1, 3])
def test_batches_of_both_layouts_are_those_of_a_loop_over_rows(layout, width):
    lengths = lengths_of(30, high=9)
    rng = np.random.default_rng(0)
    targets = rng.integers(200, 300, (30, width))
    targets[np.arange(width) >= rng.integers(1, width + 1, (30, 1))] = -1
    base = encoded("a", lengths, layout=layout)
    table = EncodedTable("a", base.tokens, base.offsets, targets.astype(np.int32), layout=layout)
    rows = np.array([3, -1, 29, 0, 7, -1, 3])
    found = make_batch(table, rows, 14, pad_token_id=7, eos_token_id=8, decoder_start_token_id=9)
    same(plain_batch(table, rows, 14, 7, 8, 9), found)
    assert {array.dtype for array in found.values()} == {np.dtype(np.int32)}


def test_a_decoders_labels_are_the_tokens_that_follow(words):
    tokenizer, items = words
    table = Table.from_rows("rec", [Row("a", [1, 2], 3), Row("b", [4], 5)])
    result = encode_table(table, tokenizer, items, "history: {history} next:", 24, layout="decoder")
    batch = make_batch(result, np.arange(2), 24, eos_token_id=tokenizer.eos_token_id)
    for row in range(2):
        ids = batch["input_ids"][row]
        text = [t for item in table.history_of(row) for t in items.token_ids[item] if t >= 0]
        answer = [*(t for t in items.token_ids[table.target[row]] if t >= 0), tokenizer.eos_token_id]
        places = np.flatnonzero(batch["label_mask"][row])
        assert ids[places + 1].tolist() == answer == batch["labels"][row, places].tolist()
        assert [t for t in ids.tolist() if t >= items.token_ids[0, 0]] == text + answer[:-1]
        end = places[-1] + 2
        assert batch["attention_mask"][row].tolist() == [1] * end + [0] * (24 - end)


def test_a_decoders_prompt_begins_as_its_tokenizer_begins_texts(words):
    tokenizer, items = words
    table = Table.from_rows("rec", [Row("a", [1, 2], 3)])

    class Beginning:
        """Puts a token before every text, as Llama's tokenizer does."""

        eos_token_id = tokenizer.eos_token_id

        def __call__(self, texts, add_special_tokens=True, split_special_tokens=False):
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            return {"input_ids": [2, *ids] if add_special_tokens else ids}

    plain = encode_table(table, tokenizer, items, "next: {history}", 24, layout="decoder")
    begun = encode_table(table, Beginning(), items, "next: {history}", 24, layout="decoder")
    assert begun.tokens_of(0).tolist() == [2, *plain.tokens_of(0).tolist()]
    encoder = encode_table(table, Beginning(), items, "next: {history}", 24)
    assert encoder.tokens_of(0).tolist() == [*plain.tokens_of(0).tolist(), tokenizer.eos_token_id]


@settings(max_examples=40)
@given(st.data())
def test_prompts_of_any_items_and_lengths_are_those_of_a_loop(words, data):
    tokenizer, items = words
    histories = st.lists(st.integers(0, 9), max_size=6)
    queries = st.sampled_from(["", "tea", "green tea kettle"])
    rows = [Row("u", data.draw(histories), 3, data.draw(queries)) for _ in range(data.draw(st.integers(1, 6)))]
    rows.append(Row("u", [1], 2, "tea"))
    table = Table.from_rows("src", rows)
    layout = data.draw(st.sampled_from(["encoder_decoder", "decoder"]))
    fixed = tokenizer("for:", add_special_tokens=False)["input_ids"]
    room = data.draw(st.integers(3, 20))
    found = encode_table(
        table, tokenizer, items, "{query} {history} for:", len(fixed) + room + (1 if layout[0] == "e" else 4), layout
    )
    dropped = clipped = 0
    for row, (_, history, _, query, _) in enumerate(rows):
        tokens = [[int(t) for t in items.token_ids[item] if t >= 0] for item in history]
        query = tokenizer(query, add_special_tokens=False)["input_ids"]
        fits = query[: room - (len(tokens[-1]) if tokens else 0)]
        clipped += fits != query
        while len(fits) + sum(map(len, tokens)) > room:
            tokens.pop(0)
            dropped += 1
        end = [tokenizer.eos_token_id] if layout[0] == "e" else []
        assert found.tokens_of(row).tolist() == fits + sum(tokens, []) + fixed + end
    assert (found.dropped_items, found.clipped_queries) == (dropped, clipped)
    assert found.lengths_in_batch().max() <= len(fixed) + room + (1 if layout[0] == "e" else 4)


def test_items_and_families_that_do_not_fit_are_errors(words):
    tokenizer, items = words
    table = Table.from_rows("rec", [Row("a", [1, 2], 3)])
    with pytest.raises(ValueError, match="layout must be one of encoder_decoder, decoder, got 'llama'"):
        encode_table(table, tokenizer, items, "{history}", 24, layout="llama")
    with pytest.raises(ValueError, match=r"item 0 has tokens \[-1, 3\]"):
        encode_table(table, tokenizer, np.array([[-1, 3]]), "{history}", 24)
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\)"):
        encode_table(table, tokenizer, np.zeros((2, 2, 2), int), "{history}", 24)
    with pytest.raises(ValueError, match="one item must fit"):
        encode_table(table, tokenizer, items, "{history}", 3)
    with pytest.raises(ValueError, match="a prompt and its answer have 5 tokens, more than the batch's 4"):
        make_batch(encoded("a", [3], layout="decoder"), np.array([0]), 4)
    mixed = {"a": encoded("a", [3]), "b": encoded("b", [3], layout="decoder")}
    with pytest.raises(ValueError, match="different layouts, \\['decoder', 'encoder_decoder'\\]"):
        task_batches(mixed, 1, 8, 0)
    with pytest.raises(ValueError, match=r"target_tokens has shape \(2,\)|expected \[R, L\]"):
        EncodedTable("a", np.zeros(3, np.int32), np.array([0, 3]), np.zeros(2, np.int32))


# Workers, states, devices


@pytest.fixture(scope="module")
def two_tasks():
    return {"a": encoded("a", lengths_of(110)), "b": encoded("b", lengths_of(50, seed=1))}


GROUPED = {"length_buckets": (8, 16), "length_window": 4, "sampling": "ratio"}


def test_any_number_of_threads_and_processes_gives_the_same_batches(two_tasks):
    source = TaskBatchSource(two_tasks, 4, 32, 2, **GROUPED)
    wanted = [source[step] for step in range(3, 9)]
    for workers in ({"prefetch": 0}, {"threads": 1}, {"threads": 4, "prefetch": 8}, {"workers": 2}):
        batches = task_batches(two_tasks, 4, 32, 2, **GROUPED, **workers)
        batches.set_state({"step": 3, "order": source.order})
        for batch in wanted:
            same(next(batches), batch)
        batches.close()


def test_a_state_goes_on_anywhere_with_other_workers(two_tasks):
    batches = task_batches(two_tasks, 4, 32, 2, **GROUPED)
    for _ in range(6):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(5)]
    fresh = task_batches(two_tasks, 4, 32, 2, **GROUPED, prefetch=0)
    next(fresh)
    fresh.set_state(state)
    for batch in expected:
        same(batch, next(fresh))
    batches.set_state(state)
    same(next(batches), expected[0])


def test_a_state_of_other_batches_is_refused(two_tasks):
    state = task_batches(two_tasks, 4, 32, 2).get_state()
    for other in ({"seed": 3}, {"batch_size": 2}, {"sampling": "ratio"}, {"length_window": 2}):
        options = {"batch_size": 4, "seed": 2} | other
        with pytest.raises(ValueError, match="batches in another order"):
            task_batches(two_tasks, max_length=32, **options).set_state(state)
    with pytest.raises(ValueError, match="is no state of these batches"):
        task_batches(two_tasks, 4, 32, 2).set_state({"next_index": 4})


def test_workers_that_cannot_be_are_errors(two_tasks):
    for options in ({"prefetch": -1}, {"threads": 0}, {"workers": -1}, {"workers": 1, "prefetch": 0}):
        with pytest.raises(ValueError, match="prefetch"):
            task_batches(two_tasks, 4, 32, 2, **options)
    with pytest.raises(ValueError, match="length_window must be at least 1"):
        task_batches(two_tasks, 4, 32, 2, length_window=0)
    with pytest.raises(ValueError, match="length_buckets must be positive"):
        task_batches(two_tasks, 4, 32, 2, length_buckets=(0,))


def test_batches_are_on_their_devices_ahead_of_time(two_tasks):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
    source = TaskBatchSource(two_tasks, 4, 32, 2)
    made = []

    class Counting(TaskBatchSource):
        def __getitem__(self, step):
            made.append(step)
            return super().__getitem__(step)

    batches = task_batches(two_tasks, 4, 32, 2, prefetch=0)
    batches._source = Counting(two_tasks, 4, 32, 2)
    placed = DeviceBatches(batches, sharding, ahead=2)
    for step in range(3):
        batch = next(placed)
        assert made == list(range(step + 3))
        same({**batch, "row_index": source[step]["row_index"]}, source[step])
        same(placed.host_batch, source[step])
        assert all(array.sharding == sharding for array in batch.values())
    state = json.loads(json.dumps(placed.get_state()))
    assert state["step"] == 3
    other = DeviceBatches(task_batches(two_tasks, 4, 32, 2), jax.devices()[0], ahead=0, drop=())
    other.set_state(state)
    same(next(other), source[3])
    placed.close()
    np.testing.assert_array_equal(next(placed)["labels"], source[3]["labels"])
    with pytest.raises(ValueError, match="no array 'rows' to drop"):
        next(DeviceBatches(task_batches(two_tasks, 4, 32, 2), sharding, drop=("rows",)))


# Files of tokens


SRC = Table.from_rows("src", [Row("a", [1, 2, 3], 4, "green tea"), Row("b", [5], 6, "kettle"), Row("c", [], 7, "tea")])


def test_a_table_is_encoded_once_and_mapped_from_files_then(words, tmp_path, monkeypatch):
    arguments = (*words, "{history} for: {query}", 24)
    wanted = encode_table(SRC, *arguments)
    first = encode_once(SRC, *arguments, tmp_path)
    monkeypatch.setattr(token_cache, "encode_table", None)
    again = encode_once(SRC, *arguments, tmp_path)
    for table in (first, again):
        assert not table.tokens.flags.owndata
        for name in ("tokens", "offsets", "target_tokens"):
            np.testing.assert_array_equal(getattr(table, name), getattr(wanted, name))
        assert (table.task, table.layout) == ("src", "encoder_decoder")
    assert len(list(tmp_path.iterdir())) == 1
    copy = pickle.loads(pickle.dumps(again))
    assert copy.folder == again.folder
    assert len(pickle.dumps(again)) < 500


def test_other_inputs_are_encoded_anew(words, tmp_path):
    tokenizer, items = words
    other = train_tokenizer(["history: the user searches for: tea"] * 3, 410)
    reversed_items = ItemIndex(items.token_ids[::-1])
    for number, arguments in enumerate(
        (
            (SRC, tokenizer, items, "{history} for: {query}", 24),
            (SRC.take([0, 1]), tokenizer, items, "{history} for: {query}", 24),
            (SRC.take([1, 0, 2]), tokenizer, items, "{history} for: {query}", 24),
            (SRC, other, items, "{history} for: {query}", 24),
            (SRC, tokenizer, reversed_items, "{history} for: {query}", 24),
            (SRC, tokenizer, items, "{history} {query}", 24),
            (SRC, tokenizer, items, "{history} for: {query}", 25),
        ),
        start=1,
    ):
        encode_once(*arguments, tmp_path)
        assert len(list(tmp_path.iterdir())) == number
    encode_once(SRC, tokenizer, items, "{history} for: {query}", 24, tmp_path, "decoder")
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("queries", [["tea", "kettle", "tea"], ["green tea", "kettle", ""]])
def test_rows_that_differ_in_their_queries_alone_are_encoded_anew(words, tmp_path, queries):
    arguments = (*words, "{history} for: {query}", 24)
    first = encode_once(SRC, *arguments, tmp_path)
    table = dataclasses.replace(SRC, queries=queries)
    found = encode_once(table, *arguments, tmp_path)
    assert found.folder != first.folder
    np.testing.assert_array_equal(found.tokens, encode_table(table, *arguments).tokens)


def test_encoding_that_fails_leaves_nothing(words, tmp_path):
    with pytest.raises(ValueError, match="alone fills"):
        encode_once(SRC, *words, "{history} for: {query}", 3, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_table_can_be_stored(words, tmp_path):
    empty = encode_once(SRC.take([]), *words, "{history}", 24, tmp_path)
    assert len(empty) == 0


@pytest.mark.parametrize("name", ["encoded.json", "tokens.npy", "offsets.npy", "target_tokens.npy"])
def test_damaged_files_of_tokens_are_named(words, tmp_path, name):
    place = encode_once(SRC, *words, "{history} for: {query}", 24, tmp_path).folder
    whole = (place / name).read_bytes()
    # The last one is a bracket that is never closed in the header of an array.
    for damage in (
        whole[: len(whole) // 2],
        b"",
        np.lib.format.magic(1, 0),
        whole.replace(b")", b"(").replace(b"}", b"{"),
    ):
        (place / name).write_bytes(damage)
        for read in (open_encoded, map_encoded):
            with pytest.raises(ValueError, match=rf"the encoded table .*{place.name} is damaged .*remove it"):
                read(place)
    if name != "encoded.json":
        np.save(place / name, np.zeros(2))
        with pytest.raises(ValueError, match=f"{name} has dtype float64"):
            map_encoded(place)
    shutil.rmtree(place)
    with pytest.raises(FileNotFoundError, match=r"holds no encoded table \(encoded.json is missing\)"):
        open_encoded(place)


@pytest.mark.parametrize("name", ["encoded.json", "tokens.npy", "offsets.npy", "target_tokens.npy", "checksums.json"])
def test_flipped_bits_in_files_of_tokens_are_found(words, tmp_path, name):
    arguments = (SRC, *words, "{history} for: {query}", 24, tmp_path)
    place = encode_once(*arguments).folder
    whole = (place / name).read_bytes()
    for byte in range(0, len(whole), max(1, len(whole) // 20)):
        (place / name).write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        with pytest.raises(ValueError, match=rf"the encoded table .*{place.name} is damaged .*remove it"):
            encode_once(*arguments)


def test_batches_of_mapped_tables_are_those_of_tables_in_memory(words, tmp_path):
    arguments = (*words, "{history} for: {query}", 24)
    memory = task_batches({"src": encode_table(SRC, *arguments)}, 2, 24, 0, prefetch=0)
    mapped = task_batches({"src": encode_once(SRC, *arguments, tmp_path)}, 2, 24, 0, workers=1)
    for _ in range(4):
        same(next(memory), next(mapped))
    mapped.close()
