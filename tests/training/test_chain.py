"""From nothing to a report, by the commands; resuming; what is refused on a work directory."""

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import threading
import warnings
from html.parser import HTMLParser

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from serving_client import Client
from tiny import Made, documented_program, everything_in, fails, gems_jax, metrics, options, say

import gems_jax as gj
from gems_jax import cli
from gems_jax.arguments import config_of
from gems_jax.data.dataset import storage
from gems_jax.data.dataset.tables import Item
from gems_jax.serving.engine import Engine
from gems_jax.serving.http import server
from gems_jax.serving.prompts import padded
from gems_jax.serving.recommender import config_of_run, load_engine
from gems_jax.serving.requests import Request
from gems_jax.training.distributed.signals import EXIT_CODES
from gems_jax.training.run_assets import run_assets
from gems_jax.training.stages import assemble, ensure_data
from gems_jax.training.tuned import load_tuned
from gems_jax.training.workdir.files import Log


class CompilationLog(logging.Handler):
    """Counts compilations by function name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        text = record.getMessage()
        if text.startswith("Compiling "):
            self.names.append(text.split()[1])


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A run of eight steps in ``root / "run"``, evaluated and exported to ``root / "exported"``."""
    root, said = prepared.root, dict(prepared.said)
    log, logger = CompilationLog(), logging.getLogger("jax")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        logger.addHandler(log)
        with jax.log_compiles(True):
            say(said, "train", *options(root), "--workdir", root / "run")
        logger.removeHandler(log)
        said["compiled"] = log.names
        say(said, "evaluate", *options(root), "--workdir", root / "run")
        say(said, "export", "--workdir", root / "run", "--out", root / "exported")
    return Made(root, said)


def resolved(argv):
    return config_of(cli.parse([str(word) for word in argv])[1])


def test_each_command_leaves_what_it_promises(trained):
    root = trained.root
    assert (root / "data" / "card.json").is_file()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(everything_in(root / "base"))
    assert (root / "null_space" / "null_space.json").is_file()
    kept = {"config.yaml", "metrics.jsonl", "checkpoints", "eval.json", "report.html"}
    assert kept <= {path.name for path in (root / "run").iterdir()}
    unknown = json.loads((root / "run" / "eval.json").read_text())["unknown_tokens"]
    assert unknown == {"titles": 0.0, "queries": 0.0}
    assert not [name for name in trained.said if "does not know" in trained.said[name]]
    assert not [name for name in everything_in(root) if re.search(r"tmp|(^|/)\.", name)]


def test_every_step_is_logged_with_its_figures(trained):
    lines = metrics(trained.root / "run")
    assert [line["step"] for line in lines] == list(range(1, 9))
    wanted = {f"{kind}/{task}" for kind in ("loss", "gate", "grad_norm") for task in ("rec", "src")}
    wanted |= {"conflict/rec-src", "null_space/leak", "tokens_per_second"}
    for line in lines:
        assert wanted <= set(line)
        assert all(np.isfinite(value) for value in line.values())
        assert line["gate/rec"] + line["gate/src"] == pytest.approx(1)
        assert -1 <= line["conflict/rec-src"] <= 1


def test_updates_stay_in_the_null_space(trained):
    leaks = [line["null_space/leak"] for line in metrics(trained.root / "run")]
    assert 0 < max(leaks) <= 1e-5


def test_the_step_is_compiled_once(trained):
    assert [name for name in trained.said["compiled"] if "step" in name] == ["jit(step)"]


def test_evaluation_has_both_tasks_drift_and_simple_rankers(trained):
    found = json.loads((trained.root / "run" / "eval.json").read_text())
    for task in ("rec", "src"):
        assert {"hit@5", "hit@10", "ndcg@10", "mrr@10", "hit@10_ci"} <= set(found[task])
        low, high = found[task]["hit@10_ci"]
        assert 0 <= low <= found[task]["hit@10"] <= high <= 1
    assert {"loss", "base_loss", "loss_full", "base_loss_full"} <= set(found["general"])
    for name, tasks in {
        "popularity": {"rec", "src"},
        "popularity, same task": {"rec", "src"},
        "co-occurrence": {"rec"},
        "BM25": {"src"},
        "BM25, stemmed": {"src"},
        "BM25, titles and queries": {"src"},
        "BM25, titles and queries, popularity": {"src"},
    }.items():
        measured = found["baselines"].pop(name)
        assert {task for task, entry in measured.items() if "hit@10" in entry} == tasks
    assert not found["baselines"]
    example = found["examples"][0]
    assert {"task", "history", "query", "top", "target"} <= set(example)
    assert all(entry["title"] for entry in example["top"])


def test_the_report_needs_no_other_file(trained):
    text = (trained.root / "run" / "report.html").read_text()
    links = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            links.extend(value for name, value in attrs if name in ("src", "href") and value)

    Links().feed(text)
    assert [link for link in links if not link.startswith(("data:", "#"))] == []
    assert "BM25" in text
    assert len(text) > 20_000  # pictures


def test_the_exported_folder_is_the_tuned_model(trained):
    config = resolved(["train", "--workdir", "-", *options(trained.root)])
    base = gj.models.load(trained.root / "base")
    assets = assemble(config, ensure_data(config), base)
    tuned = load_tuned(config, assets, trained.root / "run")
    loaded, tokenizer = gj.models.load(trained.root / "exported")
    text = tokenizer(["history: " + gj.items.item_token(assets.dataset.item_ids()[3]) + " next:"])
    batch = {
        "input_ids": np.asarray(text["input_ids"], np.int32),
        "decoder_input_ids": np.asarray([[0, assets.item_tokens[5]]], np.int32),
    }
    ours, theirs = (np.asarray(model(**batch)) for model in (tuned, loaded))
    np.testing.assert_array_equal(ours, theirs)
    assert np.any(ours != np.asarray(assets.model(**batch)))
    assert assets.item_tokens[3] in batch["input_ids"]


def test_transformers_asked_as_the_exported_folder_says_ranks_as_the_run_does(trained):
    folder = trained.root / "exported"
    config = resolved(["train", "--workdir", "-", *options(trained.root)])
    assets = assemble(config, ensure_data(config), gj.models.load(trained.root / "base"))
    tuned = load_tuned(config, assets, trained.root / "run")
    asked = documented_program(folder)
    model, tokenizer, prompts, items = asked["ask"](folder)
    assert [item["item_id"] for item in items] == assets.dataset.item_ids()
    ids = assets.dataset.item_ids()
    whole = 0
    for task in ("rec", "src"):
        table = assets.dataset.table("test", task)
        encoded = assets.encode(config, table)
        texts = [
            asked["prompt"](prompts, items, task, [ids[item] for item in table.history_of(row)], table.queries[row])
            for row in range(len(table))
        ]
        tokens = [tokenizer(text)["input_ids"] for text in texts]
        fitting = [row for row in range(len(table)) if len(tokens[row]) <= config.items.max_length]
        assert all(tokens[row] == encoded.tokens_of(row).tolist() for row in fitting)
        whole += len(fitting)
        some = [encoded.tokens_of(row) for row in fitting[:4]]
        ours, expected = gj.rank_items(
            tuned, padded(some, 4, config.items.max_length, tokenizer.pad_token_id), assets.items, k=20,
            beams=assets.items.num_items, vocabulary=config.train.loss_vocabulary,
        )  # fmt: skip
        for place, row in enumerate(fitting[:4]):
            scores = asked["scores"](model, tokenizer, prompts, items, texts[row]).numpy()
            np.testing.assert_allclose(np.sort(scores)[::-1][:20], expected[place], atol=1e-5)
            np.testing.assert_allclose(scores[np.asarray(ours[place])], expected[place], atol=1e-5)
    assert whole > 20
    assert f"export: {whole} of {whole} prompts tried have the tokens of training" in trained.said["export"]
    best = asked["rank"](folder, "rec", [ids[3]], k=5)
    assert len(set(best) & set(ids)) == 5
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 1


def checkpoint(workdir, step, part):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that arrays come as they were saved is what is wanted
        return ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / part).resolve())


def test_a_run_stopped_and_killed_on_the_way_ends_as_if_it_had_not_been(trained, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    command = ["train", *options(trained.root, train__checkpoint_every=5), "--workdir", workdir]
    write = Log.write

    # A step's line is written while the next step runs.
    def stop_at_4(log, line):
        write(log, line)
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def crash_at_7(log, line):
        write(log, line)
        if line["step"] == 6:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Log, "write", stop_at_4)
    assert gems_jax(*command) == EXIT_CODES[signal.SIGTERM]
    assert "stopped by a signal at step 4; saved in" in capsys.readouterr().err
    assert [line["step"] for line in metrics(workdir)] == [1, 2, 3, 4]

    monkeypatch.setattr(Log, "write", crash_at_7)
    with pytest.raises(RuntimeError, match="power cut"):
        gems_jax(*command)
    assert "resuming from step 4" in capsys.readouterr().out

    monkeypatch.setattr(Log, "write", write)
    assert gems_jax(*command) == 0
    assert "resuming from step 5" in capsys.readouterr().out

    for part in ("params", "optimiser"):
        whole, pieces = checkpoint(trained.root / "run", 8, part), checkpoint(workdir, 8, part)
        assert set(whole) == set(pieces)
        for name in whole:
            np.testing.assert_array_equal(np.asarray(whole[name]), np.asarray(pieces[name]), err_msg=name)
    timeless = lambda lines: [{k: v for k, v in x.items() if k != "tokens_per_second"} for x in lines]  # noqa: E731
    assert timeless(metrics(workdir)) == timeless(metrics(trained.root / "run"))


def test_training_what_is_trained_does_nothing(trained, capsys):
    run = trained.root / "run"
    saved = run / "checkpoints"
    times = lambda: {name: (saved / name).stat().st_mtime_ns for name in everything_in(saved)}  # noqa: E731
    before, lines = times(), metrics(run)
    assert gems_jax("train", *options(trained.root), "--workdir", run) == 0
    assert "is trained already (8 steps)" in capsys.readouterr().out
    assert metrics(run) == lines
    assert times() == before


def test_a_work_directory_of_another_configuration_is_refused(trained, tmp_path, capsys):
    run = trained.root / "run"
    before = (run / "config.yaml").read_text()
    for command in ("train", "evaluate"):
        argv = options(trained.root, train__learning_rate=0.5, model__path=tmp_path / "base")
        said = fails(capsys, command, *argv, "--workdir", run)
        assert "train.learning_rate: 0.003 there, 0.5 now" in said
        assert "choose another --workdir" in said
    assert (run / "config.yaml").read_text() == before
    assert everything_in(tmp_path) == []


def test_a_catalogue_in_another_order_gives_the_same_items_and_another_catalogue_is_refused(trained, tmp_path, capsys):
    command = ["recommend", "--workdir", trained.root / "run", "--user", "user0003", "--k", "5"]
    assert gems_jax(*command) == 0
    wanted = capsys.readouterr().out.splitlines()[-5:]
    dataset = storage.load(trained.root / "data")
    storage.save(dataset.in_order(dataset.item_ids()[::-1]), tmp_path / "data")
    assert gems_jax(*command, "--data.dir", tmp_path / "data") == 0
    said = capsys.readouterr().out
    assert "the catalogue is in another order" in said
    assert said.splitlines()[-5:] == wanted
    # Served is still the run's own configuration: its data stay where they are.
    more = dataclasses.replace(dataset, items=[*dataset.items, Item("new", "a new thing")])
    storage.save(more, tmp_path / "more")
    place = ["--workdir", trained.root / "run", "--data.dir", tmp_path / "more"]
    for argv in (
        ["train", *options(trained.root)],
        ["evaluate"],
        ["export", "--out", tmp_path / "out"],
        ["search", "--user", "user0003", "red lamp"],
    ):
        said = fails(capsys, *argv, *place)
        assert "was tuned on something else: the catalogue has 1 item more ('new')" in said
    assert not (tmp_path / "out").exists()
    assert str(tmp_path) not in (trained.root / "run" / "config.yaml").read_text()


def test_a_damaged_work_directory_is_refused(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained.root / "run", run)
    for path in sorted((run / "checkpoints" / "8" / "params").rglob("*")):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    said = fails(capsys, "evaluate", *options(trained.root), "--workdir", run)
    assert str(run / "checkpoints" / "8") in said
    shutil.rmtree(run / "checkpoints" / "8")
    assert "holds no checkpoint yet" in fails(capsys, "evaluate", *options(trained.root), "--workdir", run)
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml" in fails(capsys, "train", *options(trained.root), "--workdir", run)


def test_evaluation_without_a_configuration_takes_the_runs_own(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained.root / "run", run)
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert gems_jax("evaluate", "--workdir", run, "--evaluate.rows", 8) == 0
    kept["evaluate"]["rows"] = 8
    assert yaml.safe_load((run / "config.yaml").read_text()) == kept


def test_a_tuned_model_recommends_and_searches(trained, tmp_path, capsys):
    run = trained.root / "run"
    user = next(iter(ensure_data(config_of(cli.parse(["prepare", *map(str, options(trained.root))])[1])).table(
        "test", "src").user_ids))  # fmt: skip
    capsys.readouterr()
    recommender = gj.Recommender(run)
    assert recommender.tasks == ("rec", "src")
    assert gems_jax("recommend", "--workdir", run, "--user", user, "--k", 3) == 0
    recommended = capsys.readouterr().out.splitlines()[-3:]
    assert [line[:3] for line in recommended] == [" 1.", " 2.", " 3."]
    items = recommender.recommend(user=user, k=3).items
    assert [line.split("  (")[0][4:] for line in recommended] == [item.title for item in items]
    assert gems_jax("search", "red lamp", "--workdir", run, "--user", user, "--k", 2) == 0
    assert [line[:3] for line in capsys.readouterr().out.splitlines()[-2:]] == [" 1.", " 2."]
    known = [item.item_id for item in items[:2]]
    assert gems_jax("recommend", "--workdir", run, "--history", ", ".join(known), "--k", 2) == 0
    titles = [item.title for item in recommender.recommend(history=known, k=2).items]
    assert [line.split("  (")[0][4:] for line in capsys.readouterr().out.splitlines()[-2:]] == titles
    assert "has no user 'nobody'" in fails(capsys, "recommend", "--workdir", run, "--user", "nobody")
    assert "query is empty" in fails(capsys, "search", " \u200b", "--workdir", run, "--user", user)
    # A file of requests has the answers of the same requests one by one.
    requests = [{"user": user, "k": 3}, {"user": "nobody"}, {"user": user, "query": "red lamp", "k": 2}]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    files = ["--requests", tmp_path / "requests.jsonl", "--out", tmp_path / "answers.jsonl"]
    assert gems_jax("predict", "--workdir", run, *files) == 0
    assert "2 requests answered" in capsys.readouterr().out
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    searched = recommender.search("red lamp", user=user, k=2).items
    assert [answer["row"] for answer in answers] == [1, 3]
    for answer, wanted in zip(answers, (items, searched), strict=True):
        assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in wanted]
        scores = [item["score"] for item in answer["items"]]
        np.testing.assert_allclose(scores, [item.score for item in wanted], atol=1e-5)


def test_a_tuned_run_is_served_until_sigterm(trained, monkeypatch, tmp_path, capsys):
    wanted = gj.Recommender(trained.root / "run").recommend(user="user0003", k=3).items
    answers = []

    class Asked(server.Server):
        def run(self):
            thread = threading.Thread(target=self.ask)
            thread.start()
            try:
                super().run()
            finally:
                thread.join()

        def ask(self):
            client = Client(self)
            try:
                client.until(lambda: client("GET", "/readyz")[0] == 200, seconds=600)
                answers.append(client("POST", "/v1/recommend", {"user": "user0003", "k": 3})[2])
                answers.append(client("POST", "/v1/beside", {"task": "rec", "user": "user0003", "k": 3})[2])
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(server, "Server", Asked)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = gems_jax("serve", "--workdir", trained.root / "run", "--port", 0, "--batch_size", 1, "--base_model")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == EXIT_CODES[signal.SIGTERM]
    assert re.search(r"^serve: http://127\.0\.0\.1:\d+$", capsys.readouterr().out, re.MULTILINE)
    answer, beside = answers
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in wanted]
    assert list(beside) == ["base model", "popularity"]
    config = config_of_run(trained.root / "run")
    _, assets, _ = run_assets(config, trained.root / "run")
    untuned = Engine(
        assets.model, assets.tokenizer, assets.dataset, assets.items, assets.templates(config), config.items.max_length,
        vocabulary=config.train.loss_vocabulary, beams=config.evaluate.beams,
    )  # fmt: skip
    (wanted,) = untuned.rank([Request("rec", user="user0003", k=3)])
    for item, other in zip(beside["base model"], wanted.items, strict=True):
        assert (item["item_id"], item["score"]) == (other.item_id, pytest.approx(other.score, abs=1e-5))
    missing = ["serve", "--workdir", trained.root / "run", "--token_file", tmp_path / "token"]
    assert f"--token_file {tmp_path / 'token'} does not exist" in fails(capsys, *missing)


def test_a_run_is_served_without_its_base_model_where_that_cannot_be_made_and_says_so(trained, tmp_path, capsys):
    config = config_of_run(trained.root / "run")
    gone = dataclasses.replace(config, text=dataclasses.replace(config.text, train=str(tmp_path / "gone.txt")))
    engine = load_engine(gone, trained.root / "run", base=True)
    assert engine.base is None
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("serve: ")]
    assert "without the base model beside them, which cannot be made" in said
    assert str(tmp_path / "gone.txt") in said
    # Without the base model's folder, which has the run's tokenizer, there is no tuned model, either.
    served = ["serve", "--workdir", trained.root / "run", "--base_model", "--model.path", tmp_path / "base"]
    assert f"was tuned with model.path {tmp_path / 'base'}, where there is nothing now" in fails(capsys, *served)


def test_comparing_with_a_run_that_is_not_evaluated_is_refused(trained, tmp_path, capsys):
    said = fails(capsys, "evaluate", "--workdir", trained.root / "run", "--evaluate.compare", f'{{"x": "{tmp_path}"}}')
    assert f"{tmp_path / 'eval.json'} does not exist" in said
    assert "compare: {}" in (trained.root / "run" / "config.yaml").read_text()
