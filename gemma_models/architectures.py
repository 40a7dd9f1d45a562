"""The numbers of every Gemma size, in one table.

Sources: the configuration files of the checkpoints as Hugging Face transformers 5.23 reads them
(models/gemma2, models/gemma3), the Gemma 2 report (arXiv:2408.00118) and the Gemma 3 report (arXiv:2503.19786).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.errors import ConfigError


@dataclass(kw_only=True)
class GemmaConfig:
    """The architecture of a Gemma text model. Sizes are counts of elements, positions are tokens.

    ``sliding_window`` counts tokens including the current one, as Hugging Face does. Layer ``n`` (from 1) is global
    when ``n % sliding_window_pattern == 0`` and sees the window otherwise. ``rope_theta`` and ``rope_scaling_factor``
    (linear; frequencies are divided by it) belong to the global layers, ``rope_local_base_freq`` to the local ones.
    """

    family: Literal["gemma2", "gemma3"]
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int = 256
    vocab_size: int
    max_position_embeddings: int
    query_pre_attn_scalar: int = 256
    sliding_window: int
    sliding_window_pattern: int
    rope_theta: float
    rope_local_base_freq: float = 10_000.0
    rope_scaling_factor: float = 1.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    qk_layernorm: bool
    layernorm_epsilon: float = 1e-6
    init_method_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups",
                     "kv_channels", "vocab_size", "max_position_embeddings", "sliding_window",
                     "sliding_window_pattern"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_attention_heads % self.num_query_groups:
            raise ConfigError(
                f"model.num_attention_heads = {self.num_attention_heads} is not a multiple of "
                f"model.num_query_groups = {self.num_query_groups}"
            )
        if self.kv_channels % 2:
            raise ConfigError(f"model.kv_channels = {self.kv_channels} is odd; rotary embeddings turn pairs")

    def is_local(self, layer_number: int) -> bool:
        """Whether this layer (its global number, from 1) attends through the sliding window."""
        return layer_number % self.sliding_window_pattern != 0

    def parameter_count(self) -> int:
        """Parameters of the text model; the output layer is the embedding and counts once."""
        attention = (2 * self.num_attention_heads + 2 * self.num_query_groups) * self.kv_channels * self.hidden_size
        norms = 4 * self.hidden_size + (2 * self.kv_channels if self.qk_layernorm else 0)
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + norms
        return self.vocab_size * self.hidden_size + self.num_layers * layer + self.hidden_size


def _gemma2(**size: int | float) -> GemmaConfig:
    return GemmaConfig(
        family="gemma2",
        vocab_size=256_000,
        max_position_embeddings=8192,
        sliding_window=4096,
        sliding_window_pattern=2,
        rope_theta=10_000.0,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        qk_layernorm=False,
        **size,  # type: ignore[arg-type]
    )


def _gemma3(**size: int | float) -> GemmaConfig:
    return GemmaConfig(
        family="gemma3",
        sliding_window_pattern=6,
        rope_theta=1_000_000.0,
        qk_layernorm=True,
        **size,  # type: ignore[arg-type]
    )


# The text tower of a vision-language checkpoint: a longer context, reached by scaling the global frequencies by 8.
_TOWER = {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "sliding_window": 1024,
    "rope_scaling_factor": 8.0,
}
_TEXT = {"vocab_size": 262_144, "max_position_embeddings": 32_768, "sliding_window": 512}

ARCHITECTURES: dict[str, GemmaConfig] = {
    "gemma2_2b": _gemma2(
        num_layers=26, hidden_size=2304, ffn_hidden_size=9216, num_attention_heads=8, num_query_groups=4
    ),
    "gemma2_9b": _gemma2(
        num_layers=42, hidden_size=3584, ffn_hidden_size=14336, num_attention_heads=16, num_query_groups=8
    ),
    # 27B attends with heads of 128 and scales queries by hidden_size / heads, unlike every smaller size.
    "gemma2_27b": _gemma2(
        num_layers=46, hidden_size=4608, ffn_hidden_size=36864, num_attention_heads=32, num_query_groups=16,
        kv_channels=128, query_pre_attn_scalar=4608 // 32,
    ),
    "gemma3_270m": _gemma3(
        num_layers=18, hidden_size=640, ffn_hidden_size=2048, num_attention_heads=4, num_query_groups=1, **_TEXT
    ),
    "gemma3_1b": _gemma3(
        num_layers=26, hidden_size=1152, ffn_hidden_size=6912, num_attention_heads=4, num_query_groups=1, **_TEXT
    ),
    "gemma3_4b": _gemma3(
        num_layers=34, hidden_size=2560, ffn_hidden_size=10240, num_attention_heads=8, num_query_groups=4, **_TOWER
    ),
    "gemma3_12b": _gemma3(
        num_layers=48, hidden_size=3840, ffn_hidden_size=15360, num_attention_heads=16, num_query_groups=8, **_TOWER
    ),
    "gemma3_27b": _gemma3(
        num_layers=62, hidden_size=5376, ffn_hidden_size=21504, num_attention_heads=32, num_query_groups=16,
        kv_channels=128, query_pre_attn_scalar=5376 // 32, **_TOWER,
    ),
}  # fmt: skip
