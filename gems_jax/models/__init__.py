"""Models in Flax NNX, and their way to and from Hugging Face folders."""

from gems_jax.models.hugging_face import from_config, load, save
from gems_jax.models.losses import token_losses
from gems_jax.models.t5 import T5, T5Config, position_buckets

__all__ = ["T5", "T5Config", "from_config", "load", "position_buckets", "save", "token_losses"]
