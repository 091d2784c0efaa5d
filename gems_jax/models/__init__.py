"""Models in Flax NNX, and their way to and from Hugging Face folders."""

from gems_jax.models.decoder.config import DecoderConfig
from gems_jax.models.decoder.model import Decoder
from gems_jax.models.generate import greedy
from gems_jax.models.hf.load_save import from_config, load, save
from gems_jax.models.layer_stack import unstacked
from gems_jax.models.losses import chunked_token_losses, token_losses
from gems_jax.models.positions import position_buckets
from gems_jax.models.t5 import T5
from gems_jax.models.t5_config import T5Config

__all__ = [
    "T5",
    "Decoder",
    "DecoderConfig",
    "T5Config",
    "chunked_token_losses",
    "from_config",
    "greedy",
    "load",
    "position_buckets",
    "save",
    "token_losses",
    "unstacked",
]
