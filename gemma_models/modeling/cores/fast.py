"""What the cores share that never hold the matrix of scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from gemma_models.modeling.cores.local import LocalAttention


class FastAttention(LocalAttention, ABC):
    """Attention of whole sequences to themselves. With cached keys, or hidden ones, plain torch computes it."""

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
            return super().forward(query, key, value, attention_mask, **kwargs)
        return self.attend(query, key, value)

    @abstractmethod
    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The same, with neither."""

    @property
    def sees(self) -> tuple[int, int]:
        """Keys before and after a query that it sees besides its own; -1 for all."""
        return (-1 if self.window is None else self.window - 1, 0)
