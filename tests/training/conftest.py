"""Runs of these tests have small programs."""

import pytest
from few_kernels import few_kernels


@pytest.fixture(scope="module", autouse=True)
def _subspaces_for_few_kernels(request):
    """For all kernels in a module that says so: tracing and compiling a step takes twice as long then."""
    if getattr(request.module, "ALL_KERNELS", False):
        yield
    else:
        with few_kernels():
            yield
