"""The shape of a decoder, and how it computes."""

import dataclasses

from gems_jax.models.decoder_attention import IMPLEMENTATIONS
from gems_jax.models.remat import check_remat
from gems_jax.models.rope import LinearScaling, Llama3Scaling, YarnScaling

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
      rope_theta, rope_scaling: see `gems_jax.models.rope.rotation`.
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
      remat: what the backward pass computes again, see `gems_jax.models.remat.checkpointed`.
      attention: see ``implementation`` of `gems_jax.models.decoder_attention.causal_attention`.
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
    remat: str = "full"
    attention: str = "auto"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "d_ff", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        for name in (*sizes, "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"DecoderConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_added_tokens < 0:
            raise ValueError(f"DecoderConfig.num_added_tokens must not be negative, got {self.num_added_tokens}")
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
            if self.sliding_window < 1:
                raise ValueError(f"DecoderConfig.sliding_window must be at least 1, got {self.sliding_window}")
        if self.sliding_layers is not None:
            if self.sliding_window is None or self.model_type not in ("qwen2", "qwen3"):
                raise ValueError("DecoderConfig.sliding_layers needs a sliding_window and model type qwen2 or qwen3")
            if len(self.sliding_layers) != self.num_layers:
                raise ValueError(
                    f"DecoderConfig.sliding_layers has {len(self.sliding_layers)} entries for {self.num_layers} layers"
                )

    def _check_tokens(self) -> None:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"DecoderConfig.{name}={token} is outside of the vocabulary of {self.vocab_size}")

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
