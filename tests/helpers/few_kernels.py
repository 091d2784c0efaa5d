"""GEMS with subspaces for few kernels, which makes small programs of its steps: those of many kernels are like them."""

import contextlib
import re
from unittest import mock

# Of T5 and of a decoder.
USUAL = r"encoder/block/mlp/wo|decoder/block/cross_attention/k|^block/attention/q|^block/mlp/down"


@contextlib.contextmanager
def few_kernels(pattern=USUAL):
    """Kernels whose path matches have subspaces in what is built inside; all others take Adam's steps, projected.

    The innermost of several counts.
    """
    from gems_jax.training.optimiser import methods

    rule = getattr(methods.stacked_matrix_dims, "of_all", methods.stacked_matrix_dims)

    def some(path, leaf):
        return rule(path, leaf) if re.search(pattern, path) else None

    some.of_all = rule
    with mock.patch.object(methods, "stacked_matrix_dims", some):
        yield
