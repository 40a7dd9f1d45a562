"""What computes attention itself, by the name of `Trainer.attention`.

Every core takes query (s, b, heads, d), key and value (s, b, groups, d), and gives (s, b, heads * d).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gemma_models.settings import AttentionCore

if TYPE_CHECKING:
    import torch

_CORES = {
    "local": "LocalAttention",
    "te": "TransformerEngineAttention",
    "flash": "FlashAttention",
    "flex": "FlexAttention",
}


def core(name: AttentionCore) -> type[torch.nn.Module]:
    """The module of a core; the package that it stands on is imported now."""
    found: type[torch.nn.Module] = getattr(import_module(f"gemma_models.modeling.cores.{name}"), _CORES[name])
    return found
