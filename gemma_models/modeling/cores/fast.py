"""What the cores share that never hold the matrix of scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from gemma_models.modeling.cores.local import LocalAttention
from gemma_models.modeling.packed import PackedRow


class FastAttention(LocalAttention, ABC):
    """Attention whose queries are the last ones of the keys. With hidden keys, plain torch computes it."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        packed_seq_params: PackedRow | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As `LocalAttention` has it."""
        if attention_mask is not None:
            return super().forward(query, key, value, attention_mask, packed_seq_params, **kwargs)
        return self.attend(query, key, value, packed_seq_params)

    @abstractmethod
    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow | None
    ) -> torch.Tensor:
        """The same, without a mask."""

    @property
    def sees(self) -> tuple[int, int]:
        """Keys before and after a query that it sees besides its own; -1 for all."""
        return (-1 if self.window is None else self.window - 1, 0)
