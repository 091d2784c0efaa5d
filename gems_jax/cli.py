"""The command ``gems-jax``."""

import os
import sys
from collections.abc import Callable
from typing import Any

from gems_jax.failures import explained
from gems_jax.version import __version__

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 bad input, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        # LAPACK's threads fight XLA's on CPU (an SVD of 256 x 256 takes 100 times as long), and the variable is
        # read when the library is loaded: start again with it.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "gems_jax.cli", *argv])
    # That there is no PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        if argv == ["--version"]:
            print(f"gems-jax {__version__}")
            return 0
        command, options = parse(argv)
        return command(options)
    except Exception as error:
        said = explained(error, argv[0] if argv else "")
        if said is None or os.environ.get("GEMS_JAX_TRACEBACK"):
            raise
        print(f"gems-jax: error: {said}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("gems-jax: left", file=sys.stderr)
        return EXIT_INTERRUPTED


def parse(argv: list[str]) -> tuple[Callable[[Any], int], Any]:
    """The command's function and its options.

    Raises:
      ValueError: an unknown option or field (with the nearest valid one), a value of the wrong type.
    """
    from gems_jax.arguments import parse_options
    from gems_jax.commands import COMMANDS

    for word in argv:
        _check_utf8(word)
    command, options = parse_options(argv, COMMANDS)
    return COMMANDS[command].run, options


def _check_utf8(word: str) -> None:
    """A word of the command line must be text: paths and queries go into files and messages."""
    from gems_jax.staging import escaped

    shown = escaped(word)
    if shown != word:
        raise ValueError(f"{shown!r} on the command line is no UTF-8: write it anew, or rename the folder")


if __name__ == "__main__":
    sys.exit(main())
