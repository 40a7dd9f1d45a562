"""What the cores share that never hold the matrix of scores."""

from __future__ import annotations

from typing import Any

import torch

from gemma_models.modeling.config import GemmaTransformerConfig
from gemma_models.modeling.cores.local import LocalAttention


class FastAttention(torch.nn.Module):
    """Attention of whole sequences to themselves. With cached keys, or hidden ones, plain torch computes it."""

    def __init__(
        self,
        config: GemmaTransformerConfig,
        layer_number: int,
        *args: Any,
        softmax_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.plain = LocalAttention(config, layer_number, softmax_scale=softmax_scale)
        self.window, self.cap, self.scale = self.plain.window, self.plain.cap, self.plain.scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As `LocalAttention` has it."""
        if attention_mask is not None or query.shape[0] != key.shape[0]:
            out: torch.Tensor = self.plain(query, key, value, attention_mask, **kwargs)
            return out
        return self.attend(query, key, value)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    @property
    def sees(self) -> tuple[int, int]:
        """Keys before and after a query that it sees besides its own; -1 for all."""
        return (-1 if self.window is None else self.window - 1, 0)
