"""Tiny runs that several tests look at."""

import contextlib
import io
import logging
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from tiny import gems_jax, options


class Made(NamedTuple):
    """A folder with what commands made in it, and what they said."""

    root: Path
    said: dict[str, str]


@pytest.fixture(autouse=True)
def _one_lapack_thread(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


def _say(said, name, *argv):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = gems_jax(name, *argv)
    said[name] = out.getvalue()
    assert code == 0, f"gems-jax {name}: {said[name]}"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Data, base model and null space, each by its command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        root, said = tmp_path_factory.mktemp("tiny"), {}
        for name in ("prepare", "pretrain", "calibrate"):
            _say(said, name, *options(root))
        return Made(root, said)


class CompilationLog(logging.Handler):
    """Counts compilations by function name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        text = record.getMessage()
        if text.startswith("Compiling "):
            self.names.append(text.split()[1])


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory):
    """A run of eight steps in ``root / "run"``, evaluated and exported to ``root / "exported"``."""
    root, said = prepared.root, dict(prepared.said)
    log, logger = CompilationLog(), logging.getLogger("jax")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        logger.addHandler(log)
        with jax.log_compiles(True):
            _say(said, "train", *options(root), "--workdir", root / "run")
        logger.removeHandler(log)
        said["compiled"] = log.names
        _say(said, "evaluate", *options(root), "--workdir", root / "run")
        _say(said, "export", "--workdir", root / "run", "--out", root / "exported")
    return Made(root, said)
