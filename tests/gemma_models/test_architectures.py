"""Every size is the one that was published."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from launcher.errors import ConfigError

# Of the text model, the output layer counted with the embedding that it is. Gemma 2: as Hugging Face counts.
PARAMETERS = {
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "gemma3_12b": 11_766_034_176,
    "gemma3_27b": 27_009_346_304,
}


def test_every_size_is_counted() -> None:
    assert {size: gemma.parameter_count() for size, gemma in ARCHITECTURES.items()} == PARAMETERS


# heads, groups, head dimension, query scale, window, positions, vocabulary, local and global base, scaling, caps
SHAPES = {
    "gemma2_2b": (8, 4, 256, 256, 4096, 8192, 256_000, 1e4, 1e4, 1.0, (50.0, 30.0)),
    "gemma2_9b": (16, 8, 256, 256, 4096, 8192, 256_000, 1e4, 1e4, 1.0, (50.0, 30.0)),
    "gemma2_27b": (32, 16, 128, 144, 4096, 8192, 256_000, 1e4, 1e4, 1.0, (50.0, 30.0)),
    "gemma3_270m": (4, 1, 256, 256, 512, 32_768, 262_144, 1e4, 1e6, 1.0, (None, None)),
    "gemma3_1b": (4, 1, 256, 256, 512, 32_768, 262_144, 1e4, 1e6, 1.0, (None, None)),
    "gemma3_4b": (8, 4, 256, 256, 1024, 131_072, 262_208, 1e4, 1e6, 8.0, (None, None)),
    "gemma3_12b": (16, 8, 256, 256, 1024, 131_072, 262_208, 1e4, 1e6, 8.0, (None, None)),
    "gemma3_27b": (32, 16, 128, 168, 1024, 131_072, 262_208, 1e4, 1e6, 8.0, (None, None)),
}


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_what_the_count_does_not_show(size: str) -> None:
    gemma = ARCHITECTURES[size]
    assert SHAPES[size] == (
        gemma.num_attention_heads,
        gemma.num_query_groups,
        gemma.kv_channels,
        gemma.query_pre_attn_scalar,
        gemma.sliding_window,
        gemma.max_position_embeddings,
        gemma.vocab_size,
        gemma.rope_local_base_freq,
        gemma.rope_theta,
        gemma.rope_scaling_factor,
        (gemma.attn_logit_softcapping, gemma.final_logit_softcapping),
    )
    assert (gemma.family, gemma.qk_layernorm) == (size[:6], size.startswith("gemma3"))
    assert gemma.layernorm_epsilon == 1e-6


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("gemma2_2b", list(range(2, 27, 2))),
        ("gemma3_270m", [6, 12, 18]),
        ("gemma3_1b", [6, 12, 18, 24]),
        ("gemma3_4b", [6, 12, 18, 24, 30]),
        ("gemma3_27b", [6, 12, 18, 24, 30, 36, 42, 48, 54, 60]),
    ],
)
def test_which_layers_see_everything(size: str, expected: list[int]) -> None:
    gemma = ARCHITECTURES[size]
    assert [layer for layer in range(1, gemma.num_layers + 1) if not gemma.is_local(layer)] == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_layers": 0}, "model.num_layers is 0; it must be at least 1"),
        ({"vocab_size": -5}, "model.vocab_size is -5; it must be at least 1"),
        ({"num_query_groups": 3}, "model.num_attention_heads = 4 is not a multiple of model.num_query_groups = 3"),
        ({"kv_channels": 255}, "model.kv_channels = 255 is odd"),
    ],
)
def test_shapes_that_no_model_has(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ARCHITECTURES["gemma3_1b"], **changed)  # type: ignore[arg-type]


def test_a_count_by_hand() -> None:
    """One layer of Gemma 3: norms, query, key and value, output, gate, up and down; embedding; final norm."""
    gemma = GemmaConfig(
        family="gemma3", num_layers=1, hidden_size=3, ffn_hidden_size=5, num_attention_heads=4, num_query_groups=2,
        kv_channels=2, vocab_size=7, max_position_embeddings=8, sliding_window=4, sliding_window_pattern=6,
        rope_theta=1e6, qk_layernorm=True,
    )  # fmt: skip
    attention = 3 * (8 + 4 + 4) + 8 * 3
    assert gemma.parameter_count() == 7 * 3 + (4 * 3 + 2 * 2 + attention + 3 * 3 * 5) + 3
