"""``gems-jax serve``."""

import signal
from typing import Any

from gems_jax.arguments import Command, Options
from gems_jax.commands.shared import quiet, tuned_run

PORT = 8080


def _add_options(options: Options) -> None:
    add = options.add
    add("--host", str, "address of this machine to listen at", default="127.0.0.1")
    add("--port", int, "port to listen at; 0: one that is free", default=PORT)
    add("--token_file", str, "file with a token that calls must bear", default=None)
    add("--batch_size", int, "requests that are ranked at once", default=16)
    add("--max_wait", float, "seconds that a request waits for others to be ranked with", default=0.005)
    add("--max_queue", int, "requests that wait; more are told to come again", default=1024)
    add("--timeout", float, "seconds until a call is given up", default=30.0)
    add("--max_k", int, "most results, and width of the search; default: evaluate.beams", default=None)
    options.flag("--base_model", "also ask the untuned base model, for the page: the weights are in memory twice")


def _run(options: Any) -> int:
    quiet()
    from gems_jax.serving.http.limits import Limits
    from gems_jax.serving.http.server import Server, read_token
    from gems_jax.serving.recommender import load_engine
    from gems_jax.training.distributed.signals import EXIT_CODES
    from gems_jax.training.workdir.files import check_config

    token = read_token(options.token_file)
    config, _ = tuned_run(options, check_config)
    limits = Limits(
        batch_size=options.batch_size,
        max_wait=options.max_wait,
        max_queue=options.max_queue,
        timeout=options.timeout,
        max_k=options.max_k or config.evaluate.beams,
    )

    def load() -> Any:
        # Of the history of someone unknown, and what is denied.
        listed = 2 * limits.max_items
        return load_engine(
            config,
            options.workdir,
            batch_size=limits.batch_size,
            beams=limits.max_k,
            listed=listed,
            base=options.base_model,
        )

    stopped: list[int] = []
    # What uses signals in between leaves this one behind: an end that was asked for has an exit code of its own.
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    server = Server(load, limits, options.host, options.port, token)
    print(f"serve: {server.url}", flush=True)
    server.run()
    return EXIT_CODES[signal.SIGTERM] if stopped else 0


SERVE = Command("answer requests over HTTP until SIGTERM", _run, _add_options, config="of a run")
