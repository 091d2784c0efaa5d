"""The shape of a decoder, and how it computes."""

import dataclasses
import math

from gems_jax.models import config_checks as checks
from gems_jax.models.decoder.attention import IMPLEMENTATIONS
from gems_jax.models.decoder.rope import LinearScaling, Llama3Scaling, YarnScaling
from gems_jax.models.remat import check_remat

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder-only transformer and how it computes; the defaults are those of Llama.

    Args:
      vocab_size: V, rows of the pretrained embedding.
      d_model, d_ff, head_dim: widths of the residual stream, of the feed-forward layer and of one attention head.
      num_layers: layers.
      num_heads, num_kv_heads: attention heads of the queries, and of the keys and values they share in groups.
      model_type: ``"llama"``, ``"mistral"``, ``"qwen2"`` (biases of q, k and v) or ``"qwen3"`` (norms of q and k).
      num_added_tokens: N, rows added for items behind the pretrained ones (see `gems_jax.items.grow`).
      attention_bias: biases of q, k, v and o (Llama, Qwen3).
      mlp_bias: biases of the feed-forward layer (Llama).
      rope_theta, rope_scaling: see `gems_jax.models.decoder.rope.rotation`.
      max_positions: longest text the model is meant for; written for those who serve it.
      sliding_window: how many tokens a token sees, itself included; ``None``: all before it.
      sliding_layers: one truth value a layer, whether ``sliding_window`` holds in it; ``None``: in all.
      tie_word_embeddings: whether the embedding is also the output layer.
      norm_epsilon: of the RMS norms.
      initializer_range: standard deviation of random weights.
      dtype: of the matrix products, ``"float32"`` or ``"bfloat16"``; norms, softmax and logits are float32.
      param_dtype: of the parameters.
      pad_token_id, bos_token_id, eos_token_id: token ids with a role; ``None``: the model has no such token.
      more_stop_ids: tokens that end a text as ``eos_token_id`` does.
      has_pad_token: whether ``config.json`` names ``pad_token_id``; where it does not, ``eos_token_id`` pads.
      remat: what the backward pass computes again, see `gems_jax.models.remat.checkpointed`.
      attention: see ``implementation`` of `gems_jax.models.decoder.attention.causal_attention`.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    model_type: str = "llama"
    num_added_tokens: int = 0
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None
    max_positions: int = 2048
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] | None = None
    tie_word_embeddings: bool = False
    norm_epsilon: float = 1e-6
    initializer_range: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    more_stop_ids: tuple[int, ...] = ()
    has_pad_token: bool = True
    remat: str = "full"
    attention: str = "auto"

    def __post_init__(self) -> None:
        limits = {
            "vocab_size": checks.MAX_ROWS,
            **dict.fromkeys(("d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim"), checks.MAX_WIDTH),
            "num_layers": checks.MAX_LAYERS,
            "max_positions": checks.MAX_POSITIONS,
        }
        for name, most in limits.items():
            checks.check_whole(f"DecoderConfig.{name}", getattr(self, name), 1, most)
        checks.check_added_tokens("DecoderConfig", self.num_added_tokens)
        for name in ("attention_bias", "mlp_bias", "tie_word_embeddings", "has_pad_token"):
            checks.check_truth(f"DecoderConfig.{name}", getattr(self, name))
        checks.check_number("DecoderConfig.norm_epsilon", self.norm_epsilon, 0.0, checks.MAX_EPSILON)
        checks.check_number("DecoderConfig.initializer_range", self.initializer_range, 0.0, math.inf)
        if not checks.is_number(self.rope_theta) or self.rope_theta <= 0:
            raise ValueError(f"DecoderConfig.rope_theta must be a number above 0, got {checks.shown(self.rope_theta)}")
        choices = {
            "model_type": MODEL_TYPES,
            "dtype": ("float32", "bfloat16"),
            "param_dtype": ("float32", "bfloat16"),
            "attention": IMPLEMENTATIONS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"DecoderConfig.{name} must be one of {known}, got {getattr(self, name)!r}")
        check_remat(self.remat, "DecoderConfig.remat")
        self._check_attention()
        self._check_tokens()

    def _check_attention(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"DecoderConfig.num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"DecoderConfig.head_dim must be even for rotary positions, got {self.head_dim}")
        for name, having in (("attention_bias", ("llama", "qwen3")), ("mlp_bias", ("llama",))):
            if getattr(self, name) and self.model_type not in having:
                raise ValueError(f"DecoderConfig.{name} is for model types {having}, not for {self.model_type!r}")
        if self.sliding_window is not None:
            if self.model_type == "llama":
                raise ValueError("DecoderConfig.sliding_window is not for model type 'llama'")
            checks.check_whole("DecoderConfig.sliding_window", self.sliding_window, 1, checks.MAX_POSITIONS)
        if self.sliding_layers is not None:
            if self.sliding_window is None or self.model_type not in ("qwen2", "qwen3"):
                raise ValueError("DecoderConfig.sliding_layers needs a sliding_window and model type qwen2 or qwen3")
            if len(self.sliding_layers) != self.num_layers:
                raise ValueError(
                    f"DecoderConfig.sliding_layers has {len(self.sliding_layers)} entries for {self.num_layers} layers"
                )

    def _check_tokens(self) -> None:
        checks.check_token("DecoderConfig.pad_token_id", self.pad_token_id, self.vocab_size)
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) is not None:
                checks.check_token(f"DecoderConfig.{name}", getattr(self, name), self.vocab_size)
        for token in self.more_stop_ids:
            checks.check_token("DecoderConfig.more_stop_ids", token, self.vocab_size)

    @property
    def windows(self) -> int | None | tuple[int | None, ...]:
        """How many tokens a token sees: one number or ``None`` if the same in all layers, else one a layer."""
        if self.sliding_layers is None or all(self.sliding_layers):
            return self.sliding_window
        if not any(self.sliding_layers):
            return None
        return tuple(self.sliding_window if sliding else None for sliding in self.sliding_layers)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return (() if self.eos_token_id is None else (self.eos_token_id,)) + self.more_stop_ids
