"""Memory for time: what is kept for the backward pass is computed again there (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.utils.checkpoint import checkpoint


def recomputed(module: torch.nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What this function of the module returns for these arguments, which alone are kept.

    By torch's checkpoint and not by Megatron's: that one takes no gradient where no input has one, as under adapters
    on a frozen embedding, and asks CUDA for random numbers on a CPU.
    """
    names = tuple(kwargs)

    def called(*values: Any) -> Any:
        return function(*values[: len(args)], **dict(zip(names, values[len(args) :], strict=True)))

    # The state of random numbers cannot be read while a CUDA graph is recorded; only dropout, an adapter's, needs it.
    drops = any(isinstance(part, torch.nn.Dropout) and part.p > 0.0 for part in module.modules())
    # All by position: torch looks there alone for the GPU whose random numbers are to come once more.
    return checkpoint(called, *args, *kwargs.values(), use_reentrant=False, preserve_rng_state=drops)


class GemmaLayer(TransformerLayer):
    """Megatron's layer, of which only the input is kept in training where ``config.recompute_layers`` says so."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.config.recompute_layers and self.training and torch.is_grad_enabled():
            return recomputed(self, super().forward, *args, **kwargs)
        return super().forward(*args, **kwargs)
