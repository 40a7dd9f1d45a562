"""Rotary positions with two bases: one for the layers that see a window, one for those that see everything."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from gemma_models.architectures import GemmaConfig

LOCAL, GLOBAL = 0, 1


class DualRotaryEmbedding(torch.nn.Module):
    """Both rotary tables at once, of shape (2, positions, 1, 1, kv_channels), in float32: ``[LOCAL]`` and ``[GLOBAL]``.

    Megatron passes one rotary tensor through all layers; each attention takes its own table out of this one. Linear
    scaling divides the frequencies of the global table alone (transformers, Gemma3RotaryEmbedding). In Gemma 2 both
    tables are the same.
    """

    def __init__(self, gemma: GemmaConfig, **options: Any) -> None:
        super().__init__()
        scale = None if gemma.rope_scaling_factor == 1.0 else gemma.rope_scaling_factor
        # A factor of None means no scaling to Megatron; positions divided by it are frequencies divided by it.
        self.local_table = RotaryEmbedding(gemma.kv_channels, 1.0, rotary_base=gemma.rope_local_base_freq, **options)
        self.global_table = RotaryEmbedding(
            gemma.kv_channels, 1.0, rotary_base=gemma.rope_theta, seq_len_interpolation_factor=scale, **options
        )
        self.get_rotary_seq_len = self.global_table.get_rotary_seq_len
        self._made: dict[int, torch.Tensor] = {}

    def forward(self, max_seq_len: int, **options: Any) -> torch.Tensor:
        # Kept here and not in the cache of Megatron's own forward, which keeps every model of a process alive.
        if max_seq_len not in self._made:
            tables = [self.local_table.get_emb(max_seq_len), self.global_table.get_emb(max_seq_len)]
            self._made = {max_seq_len: torch.stack(tables)}
        return self._made[max_seq_len]
