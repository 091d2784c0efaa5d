"""Tiny runs that several tests look at."""

import pytest
from hypothesis import HealthCheck, settings
from tiny import Made, cheap_compilation, options, say

# How long an example takes says nothing where workers share the cores.
settings.register_profile("shared cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared cores")


@pytest.fixture(autouse=True)
def _one_lapack_thread(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Data, base model and null space, each by its command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        root, said = tmp_path_factory.mktemp("tiny"), {}
        for name in ("prepare", "pretrain", "calibrate"):
            say(said, name, *options(root))
        return Made(root, said)


@pytest.fixture(scope="module")
def cheap_programs():
    """For files of many small programs, each of which runs a few times."""
    with cheap_compilation():
        yield
