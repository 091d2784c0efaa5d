"""Loads scripts, and runs those that are given words up to where they have read them: a fault ends it with a message.

Reads from standard input a JSON list of ``[script, words]``. The words are null where the script is loaded alone; the
script ``-m NAME`` is a module of the checkout, which is the first argument.
"""

import argparse
import contextlib
import json
import runpy
import sys

INSTALLED = [folder for folder in sys.path[1:] if folder]
_read_known = argparse.ArgumentParser.parse_known_args
_read_all = argparse.ArgumentParser.parse_args


class Taken(BaseException):
    """The words were read; those that are left belong to the configuration."""


def _stop_with_the_rest(self, args=None, namespace=None):
    raise Taken(_read_known(self, args, namespace)[1])


def _stop(self, args=None, namespace=None):
    _, rest = _read_known(self, args, namespace)
    if rest:
        self.error(f"unrecognized arguments: {' '.join(rest)}")
    raise Taken([])


@contextlib.contextmanager
def stopping():
    argparse.ArgumentParser.parse_known_args, argparse.ArgumentParser.parse_args = _stop_with_the_rest, _stop
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_known_args, argparse.ArgumentParser.parse_args = _read_known, _read_all


def tried(root, script, words):
    """Runs a script with what Python puts on its path: a script's folder, not the checkout."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "planning")]:
        del sys.modules[name]
    name = script.removeprefix("-m ")
    sys.path[:] = [root if name != script else script.rpartition("/")[0], *INSTALLED]
    sys.argv = [script, *(words or ())]
    run = runpy.run_module if name != script else runpy.run_path
    try:
        with stopping():
            run(name, run_name="loaded" if words is None else "__main__")
    except Taken as taken:
        (rest,) = taken.args
        if rest:
            from gems_jax.arguments import parse_config

            parse_config(rest)


def main(root):
    for script, words in json.load(sys.stdin):
        try:
            tried(root, script, words)
        except SystemExit as end:
            if end.code not in (None, 0):
                sys.exit(f"{script} {words} ends with {end.code}")


if __name__ == "__main__":
    main(sys.argv[1])
