"""How the configuration's options of reading reach the batches of a run, and what they change there."""

import dataclasses

import numpy as np
import pytest
from tiny import options

import gems_jax.data.batching.token_cache as token_cache
from gems_jax import cli
from gems_jax.arguments import config_of
from gems_jax.models import load
from gems_jax.training.build import build
from gems_jax.training.stages import assemble, ensure_data

BUCKETS = (16, 20, 24, 28)


@pytest.fixture(scope="module")
def run_of(prepared):
    """A run of the tiny marketplace with some fields changed, before its first step."""
    changed = {"train__method": "adamw", "train__batch_size": 8}
    config = config_of(cli.parse(["prepare", *options(prepared.root, **changed)])[1])
    dataset = ensure_data(config)
    assets = assemble(config, dataset, load(config.model.path, config.model.dtype))

    def build_with(**sections):
        altered = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
        return build(dataclasses.replace(config, **altered), assets, None)

    return build_with


def batches_of(run, count=12):
    found = []
    for _ in range(count):
        next(run.batches)
        found.append(run.batches.host_batch)
    run.batches.close()
    return found


def padding(batches):
    return 1 - sum(b["attention_mask"].sum() for b in batches) / sum(b["input_ids"].size for b in batches)


def test_a_window_puts_rows_of_like_length_together_and_saves_padding(run_of):
    plain = batches_of(run_of(items={"length_buckets": BUCKETS}))
    grouped = batches_of(run_of(items={"length_buckets": BUCKETS, "length_window": 12}))
    assert padding(grouped) < padding(plain) - 0.01
    rows = [np.sort(np.concatenate([b["row_index"] for b in batches], axis=1)) for batches in (plain, grouped)]
    np.testing.assert_array_equal(*rows)


def test_batches_made_ahead_by_several_threads_are_the_same(run_of, monkeypatch):
    import grain

    asked = []
    kept = grain.ReadOptions
    monkeypatch.setattr(grain, "ReadOptions", lambda **given: asked.append(given) or kept(**given))
    found = [batches_of(run_of(data={"prefetch": p, "threads": t}), 4) for p, t in ((4, 1), (0, 1), (6, 3))]
    assert asked == [
        {"num_threads": 1, "prefetch_buffer_size": 4},
        {"num_threads": 0, "prefetch_buffer_size": 0},
        {"num_threads": 3, "prefetch_buffer_size": 6},
    ]
    for other in found[1:]:
        for batch, same in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(batch["input_ids"], same["input_ids"])
    with pytest.raises(ValueError, match="data.prefetch must be a whole number from 0 on, got -1"):
        run_of(data={"prefetch": -1})


def test_tables_are_encoded_into_the_folder_of_tokens_once(run_of, tmp_path, monkeypatch):
    memory = batches_of(run_of(), 3)
    first = run_of(data={"tokens": str(tmp_path / "tokens")})
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "tokens").iterdir()) == ["rec", "src"]
    monkeypatch.setattr(token_cache, "encode_table", None)
    second = run_of(data={"tokens": str(tmp_path / "tokens")})
    for run in (first, second):
        assert all(table.folder is not None for table in run.encoded.values())
        for batch, same in zip(batches_of(run, 3), memory, strict=True):
            np.testing.assert_array_equal(batch["input_ids"], same["input_ids"])


def test_a_task_without_a_prompt_is_named(run_of):
    with pytest.raises(ValueError, match=r"items\.prompts has no template for task 'src'; it has rec"):
        run_of(items={"prompts": {"rec": "{history}"}})


def test_what_does_not_fit_an_input_is_said(prepared, capsys):
    config = config_of(cli.parse(["prepare", *options(prepared.root)])[1])
    dataset = ensure_data(config)
    assets = assemble(config, dataset, load(config.model.path, config.model.dtype))
    short = dataclasses.replace(config, items=dataclasses.replace(config.items, max_length=14))
    capsys.readouterr()
    assets.encode(short, dataset.table("train", "rec"))
    assert "items of histories, the oldest, are dropped to fit items.max_length 14" in capsys.readouterr().out
