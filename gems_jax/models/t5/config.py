"""The shape of a T5 model."""

import dataclasses

from gems_jax.models import config_checks as checks
from gems_jax.models.remat import check_remat

MODEL_TYPES = ("t5", "mt5", "umt5")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The shape of a T5 model and how it computes; the defaults are those of T5 1.1.

    ``model_type`` names the variant as Hugging Face does. ``"t5"``: T5 and T5 1.1 (arXiv 1910.10683), Flan-T5
    (arXiv 2210.11416). ``"mt5"``: the same, multilingual (arXiv 2010.11934). ``"umt5"``: each layer has relative
    positions of its own (arXiv 2304.09151), where the others share those of the first.

    Args:
      vocab_size: V, rows of the pretrained embedding.
      d_model, d_kv, d_ff: widths of the residual stream, of one attention head and of the feed-forward layer.
      num_layers, num_decoder_layers: layers of the encoder and of the decoder.
      num_heads: attention heads.
      num_added_tokens: N, rows added for items behind the pretrained ones (see `gems_jax.items.grow`).
      feed_forward: ``"gated-gelu"`` (T5 1.1) or ``"relu"`` (T5).
      relative_buckets, relative_max_distance: relative positions are learned per bucket, see `position_buckets`.
      dropout_rate: applied only in calls that are given a ``dropout_key``.
      tie_word_embeddings: whether the embedding is also the output layer (T5).
      scale_decoder_outputs: whether the output layer's input is scaled by ``d_model ** -0.5``; ``None``: for ``"t5"``
        and ``"umt5"`` if tied, for ``"mt5"`` never, as transformers 5.24 does.
      norm_epsilon: of the RMS norms.
      dtype: of the matrix products, ``"float32"`` or ``"bfloat16"``; norms, softmax and logits are float32.
      param_dtype: of the parameters.
      pad_token_id, eos_token_id, decoder_start_token_id: token ids with a role.
      remat: what the backward pass computes again instead of keeping it, by the name of a policy of
        `gems_jax.models.remat.checkpointed`. ``"full"`` needs far less memory than ``"none"``; on CPU, where writing
        values costs more than computing them, it is also 1.2 times as fast.
      model_type: ``"t5"``, ``"mt5"`` or ``"umt5"``.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    num_added_tokens: int = 0
    feed_forward: str = "gated-gelu"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    dropout_rate: float = 0.0
    tie_word_embeddings: bool = False
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    scale_decoder_outputs: bool | None = None
    remat: str = "full"
    model_type: str = "t5"

    def __post_init__(self) -> None:
        limits = {
            **dict.fromkeys(("vocab_size",), checks.MAX_ROWS),
            **dict.fromkeys(("d_model", "d_kv", "d_ff", "num_heads", "relative_buckets"), checks.MAX_WIDTH),
            **dict.fromkeys(("num_layers", "num_decoder_layers"), checks.MAX_LAYERS),
            "relative_max_distance": checks.MAX_POSITIONS,
        }
        for name, most in limits.items():
            checks.check_whole(f"T5Config.{name}", getattr(self, name), 1, most)
        checks.check_added_tokens("T5Config", self.num_added_tokens)
        if self.feed_forward not in ("gated-gelu", "relu"):
            raise ValueError(f"T5Config.feed_forward must be 'gated-gelu' or 'relu', got {self.feed_forward!r}")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"T5Config.{name} must be 'float32' or 'bfloat16', got {getattr(self, name)!r}")
        checks.check_number("T5Config.dropout_rate", self.dropout_rate, 0.0, 1.0)
        checks.check_number("T5Config.norm_epsilon", self.norm_epsilon, 0.0, checks.MAX_EPSILON)
        checks.check_truth("T5Config.tie_word_embeddings", self.tie_word_embeddings)
        if self.relative_buckets < 4 or self.relative_buckets % 2:
            raise ValueError(f"T5Config.relative_buckets must be even and at least 4, got {self.relative_buckets}")
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"T5Config.relative_max_distance must exceed half of relative_buckets={self.relative_buckets}, "
                f"got {self.relative_max_distance}"
            )
        check_remat(self.remat, "T5Config.remat")
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"T5Config.model_type must be one of {MODEL_TYPES}, got {self.model_type!r}")
        if self.scale_decoder_outputs is not None:
            checks.check_truth("T5Config.scale_decoder_outputs", self.scale_decoder_outputs)
            if self.scale_decoder_outputs and self.model_type == "mt5":
                raise ValueError("T5Config.scale_decoder_outputs must be False or None for 'mt5', got True")
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            checks.check_token(f"T5Config.{name}", getattr(self, name), self.vocab_size)

    @property
    def scales_outputs(self) -> bool:
        """Whether the output layer's input is scaled by ``d_model ** -0.5``."""
        if self.scale_decoder_outputs is not None:
            return self.scale_decoder_outputs
        return self.tie_word_embeddings and self.model_type != "mt5"

    @property
    def positions_per_layer(self) -> bool:
        """Whether each layer has relative positions of its own."""
        return self.model_type == "umt5"
