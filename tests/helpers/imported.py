"""The slow imports of a run, for programs that fork: their processes need not each repeat them."""


def import_all():
    import grain.python  # noqa: F401
    import jsonargparse  # noqa: F401
    import scipy.sparse  # noqa: F401
    import tensorflow_datasets  # noqa: F401
    from transformers import PreTrainedTokenizerFast  # noqa: F401

    from gems_jax import cli  # noqa: F401
    from gems_jax.training import tune  # noqa: F401
