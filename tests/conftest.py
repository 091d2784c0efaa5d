"""How tests compile, and tiny runs that several of them look at."""

import gc
import os
import shutil
import tempfile
from importlib.metadata import version

import pytest
from hypothesis import HealthCheck, settings

# Small programs that run a few times: to optimise them takes longer than they do. Those of equal settings are compiled
# once for all processes of a session. Set before JAX is imported; processes that tests start inherit it.
_COMPILED = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Half the time that is left: a program as one piece and, before jaxlib 0.11, which ends a program that asks for it,
# fusions as one loop, whatever their kind.
_FUSIONS = "--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else ""
os.environ.setdefault("XLA_FLAGS", f"{_FUSIONS}--xla_cpu_parallel_codegen_split_count=1")

from tiny import Made, options, say  # noqa: E402

# Traces and programs live as long as the process: to look for garbage among all of them whenever there is more took
# a tenth of the time.
gc.set_threshold(200_000, 20, 100)

# How long an example takes says nothing where workers share the cores.
settings.register_profile("shared cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared cores")


def pytest_unconfigure():
    if _COMPILED is not None:
        shutil.rmtree(_COMPILED, ignore_errors=True)


@pytest.fixture(autouse=True)
def _one_lapack_thread(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_sought_in_what_a_module_has_made():
    yield
    gc.collect()
    gc.freeze()


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
def server():
    """What the next requests of a store of objects meet, and its bucket."""
    from store_server import store_server  # which needs packages that few tests do

    with store_server() as served:
        yield served


@pytest.fixture
def faults(server):
    yield server[0]
    server[0].next.clear()


@pytest.fixture
def bucket(server):
    return server[1]
