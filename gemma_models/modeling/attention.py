"""Gemma's attention: which rotary table a layer turns with."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention

from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.recompute import recomputed
from gemma_models.modeling.rotary import GLOBAL, LOCAL


class GemmaSelfAttention(SelfAttention):
    """Megatron's self attention, turned by the rotary table of its own layer."""

    config: GemmaTransformerConfig

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, rotary_pos_emb: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        table = LOCAL if self.config.gemma.is_local(self.layer_number) else GLOBAL
        return super().forward(hidden_states, *args, rotary_pos_emb=rotary_pos_emb[table], **kwargs)

    def _checkpointed_attention_forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return recomputed(self.core_attention, self.core_attention, *args, **kwargs)
