"""GEMS with subspaces for few kernels, which makes small programs of its steps: those of many kernels are like them."""

import contextlib
import re
from unittest import mock


@contextlib.contextmanager
def few_kernels(pattern=r"encoder/block/mlp/wo|decoder/block/cross_attention/k"):
    """Kernels whose path matches have subspaces in what is built inside; all others take Adam's steps, projected."""
    from gems_jax.training.optimiser import methods

    rule = methods.stacked_matrix_dims
    some = lambda path, leaf: rule(path, leaf) if re.search(pattern, path) else None  # noqa: E731
    with mock.patch.object(methods, "stacked_matrix_dims", some):
        yield
