"""The service under load over loopback, beside the same rankings without it.

    OPENBLAS_NUM_THREADS=1 python benchmarks/serve.py --workdir runs/demo/gems --out benchmarks/results/serve.json

A process serves a tuned run, or without ``--workdir`` a T5 with random weights, which take no time away from a ranking,
over the made-up shop of the demo. The load comes from this process: ``--users`` threads, each with a connection of its
own, ask one request after the other, searches and recommendations in turn. Of each number of users the times of all
calls are kept, how many a second were answered, calls that were not answered, and the memory of the server. What is
compared with is `rank_items`, called with batches of the same prompts, of as many rows as a batch of the service and of
the same length, when the server has ended.
"""

import argparse
import contextlib
import dataclasses
import http.client
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from result_file import circumstances, write

from gems_jax.config.data import DataConfig
from gems_jax.config.items import ItemsConfig
from gems_jax.config.run import Config
from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.models import from_config
from gems_jax.ranking.rank_items import rank_items
from gems_jax.serving.engine import Engine
from gems_jax.serving.http.limits import Limits
from gems_jax.serving.http.server import Server
from gems_jax.serving.prompts import PromptMaker, padded
from gems_jax.serving.recommender import config_of_run
from gems_jax.serving.requests import Request
from gems_jax.training.run_assets import run_assets
from gems_jax.training.stages import Assets, assemble, ensure_data
from gems_jax.training.tuned import load_tuned

BEAMS = 20
PATHS = {"rec": "/v1/recommend", "src": "/v1/search"}


def made(root: Path, width: int, layers: int) -> tuple[Config, Assets]:
    """A shop and a model for its items."""
    config = Config(data=DataConfig(dir=str(root / "data"), num_users=200), items=ItemsConfig(max_length=64))
    dataset = ensure_data(config)
    tokenizer = train_tokenizer([item.search_text for item in dataset.items], vocab_size=1500, num_sentinels=2)
    values = {"model_type": "t5", "vocab_size": len(tokenizer), "d_model": width, "d_kv": 32, "d_ff": 4 * width}
    values |= {"num_layers": layers, "num_heads": width // 32}
    model = from_config(values, jax.random.key(0))
    return config, assemble(config, dataset, (model, tokenizer), tuned=True)


def of_run(workdir: Path) -> tuple[Config, Assets]:
    """What a tuned run is served with."""
    config = config_of_run(workdir)
    assets = run_assets(config, workdir, tuned=True).assets
    return config, dataclasses.replace(assets, model=load_tuned(config, assets, workdir))


def engine_of(config: Config, assets: Assets, batch_size: int, beams: int = BEAMS) -> Engine:
    return Engine(
        assets.model,
        assets.tokenizer,
        assets.dataset,
        assets.items,
        assets.templates(config),
        config.items.max_length,
        beams=beams,
        vocabulary=config.train.loss_vocabulary,
        batch_size=batch_size,
    )


def requests_of(assets: Assets, count: int) -> list[dict[str, Any]]:
    """Recommendations and searches in turn, for users and queries of the test rows."""
    searched = assets.dataset.table("test", "src")
    rows = itertools.islice(itertools.cycle(range(len(searched))), count)
    return [
        {"user": searched.user_ids[row]} | ({"query": searched.queries[row]} if number % 2 else {})
        for number, row in enumerate(rows)
    ]


def task_of(request: dict[str, Any]) -> str:
    return "src" if "query" in request else "rec"


def load(url: str, requests: list[dict[str, Any]], users: int) -> tuple[list[float], int, float]:
    """Seconds of each call, calls that were not answered, and seconds of all."""
    host, port = url.removeprefix("http://").split(":")
    waiting, lock = iter(requests), threading.Lock()
    seconds: list[float] = []
    errors: list[str] = []

    def ask() -> None:
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=600)) as connection:
            while True:
                with lock:
                    request = next(waiting, None)
                if request is None:
                    return
                begin = time.perf_counter()
                try:
                    connection.request(
                        "POST", PATHS[task_of(request)], json.dumps(request), {"Content-Type": "application/json"}
                    )
                    answer = connection.getresponse()
                    content = answer.read()
                    if answer.status != 200:
                        errors.append(content.decode())
                except OSError as error:
                    errors.append(str(error))
                seconds.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=ask) for _ in range(users)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, len(errors), time.perf_counter() - begin


def direct(config: Config, assets: Assets, requests: list[dict[str, Any]], batch_size: int) -> float:
    """Requests a second of `rank_items` alone, in batches of the service's shape."""
    engine = engine_of(config, assets, batch_size)
    maker = PromptMaker(assets.tokenizer, assets.dataset, assets.items, config.items.max_length, assets.model.layout)
    templates = assets.templates(config)
    rankings = [engine.catalogue.look_up(Request.of(request)) for request in requests]
    prompts = [maker.encode(templates[one.task], [one]).tokens_of(0) for one in rankings]
    batches = [
        padded(prompts[first : first + batch_size], batch_size, config.items.max_length, 0)
        for first in range(0, len(prompts), batch_size)
    ]

    def rank(batch: dict[str, np.ndarray]) -> None:
        ids, _ = rank_items(
            assets.model, batch, assets.items, k=BEAMS, beams=BEAMS, vocabulary=config.train.loss_vocabulary
        )
        np.asarray(ids)

    rank(batches[0])
    begin = time.perf_counter()
    for batch in batches:
        rank(batch)
    return len(prompts) / (time.perf_counter() - begin)


def memory(pid: int) -> int:
    """Bytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def serve(root: Path, args: argparse.Namespace) -> None:
    config, assets = of_run(args.workdir) if args.workdir else made(root, args.width, args.layers)
    limits = Limits(batch_size=args.batch_size, max_k=BEAMS, timeout=600.0)
    server = Server(lambda: engine_of(config, assets, args.batch_size), limits, port=0)
    print(server.url, flush=True)
    server.run()


def get(url: str, path: str) -> tuple[int, str]:
    host, port = url.removeprefix("http://").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=600)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def compilations(url: str) -> float:
    lines = get(url, "/metrics")[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("gems_jax_compilations_total "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="of a tuned run")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=1000, help="of each number of users")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args)
        return
    root = Path(tempfile.mkdtemp())
    config, assets = of_run(args.workdir) if args.workdir else made(root, args.width, args.layers)
    requests = requests_of(assets, args.requests)
    options = ["--width", args.width, "--layers", args.layers, "--batch-size", args.batch_size, "--serve", root]
    options += ["--workdir", args.workdir] if args.workdir else []
    levels = []
    with subprocess.Popen([sys.executable, __file__, *map(str, options)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = next(line.strip() for line in process.stdout if line.startswith("http"))
            while get(url, "/readyz")[0] != 200:
                time.sleep(0.2)
            compiled = compilations(url)
            load(url, requests[:64], 8)  # what Python and the system make once
            begun = memory(process.pid)
            for users in args.users:
                seconds, errors, whole = load(url, requests, users)
                cut = statistics.quantiles(seconds, n=100, method="inclusive")
                level = {
                    "users": users,
                    "milliseconds": {f"p{share}": 1e3 * cut[share - 1] for share in (50, 95, 99)},
                    "requests_per_second": len(seconds) / whole,
                    "errors": errors,
                    "memory_bytes": memory(process.pid),
                }
                levels.append(level)
                print(json.dumps(level), flush=True)
            compiled = compilations(url) - compiled
        finally:
            process.terminate()
    alone = direct(config, assets, requests, args.batch_size)
    best = max(level["requests_per_second"] for level in levels)
    grown = levels[-1]["memory_bytes"] - begun
    print(f"rank_items alone: {alone:.1f} requests a second; the service at best {best:.1f}, {best / alone:.2f} of it")
    print(f"{compiled:.0f} programs compiled under load; memory grew by {grown / 2**20:.1f} MiB")
    result = {
        **circumstances("jax", "jaxlib", "starlette", "uvicorn", device=jax.devices()[0].device_kind),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(assets.model)),
        "items": assets.items.num_items,
        "settings": {name: str(value) for name, value in vars(args).items() if name not in ("out", "serve", "workdir")},
        "levels": levels,
        "rank_items_requests_per_second": alone,
        "compiled_under_load": compiled,
        "memory_bytes_before": begun,
    }
    write(result, args.out)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
