"""What computes attention itself, by the name of `Trainer.attention`.

Every core takes query (sq, b, heads, d), key and value (sk, b, groups, d), and gives (sq, b, heads * d); the queries
are the last of the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


def core(name: AttentionCore, *, context_parallel: bool = False) -> Callable[..., torch.nn.Module]:
    """What makes a core; the package that it stands on is imported now."""
    found: type[torch.nn.Module] = getattr(import_module(f"gemma_models.modeling.cores.{name}"), _CORES[name])
    if not context_parallel:
        return found
    from gemma_models.modeling.cores.context import ContextParallelAttention

    return partial(ContextParallelAttention, core=found)
