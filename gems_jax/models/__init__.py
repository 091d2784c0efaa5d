"""Models in Flax NNX, and their way to and from Hugging Face folders."""

from gems_jax.models.decoder.config import DecoderConfig
from gems_jax.models.decoder.model import Decoder
from gems_jax.models.generate import greedy
from gems_jax.models.hf.load_save import from_config, load, save
from gems_jax.models.layer_stack import unstacked
from gems_jax.models.losses import chunked_token_losses, token_losses
from gems_jax.models.t5.config import T5Config
from gems_jax.models.t5.model import T5
from gems_jax.models.t5.relative_positions import position_buckets

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
