"""Which token comes next."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from launcher.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """``temperature`` 0 takes the likeliest token; above, one is drawn from the ``top_k`` likeliest (0: all), and of
    these from those that make up ``top_p`` of them.

    Top-p is nucleus sampling (arXiv:1904.09751). Raises ConfigError for values outside their range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; it must be 0 (all) or above")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0 and below 2**63")


def next_tokens(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """Choose from logits (b, vocab), of any float dtype; int64 (b,)."""
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    ordered, order = logits.topk(min(sampling.top_k or logits.shape[-1], logits.shape[-1]), dim=-1)
    ordered = ordered.float()
    # The likeliest token's is 0: however small the temperature is, it stays a number.
    ordered = torch.softmax((ordered - ordered[:, :1]) / sampling.temperature, dim=-1)
    # A token stays while the ones before it make up less than top_p, so the first always does.
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= sampling.top_p, 0.0)
    chosen = torch.multinomial(ordered, 1, generator=generator)
    return order.gather(-1, chosen).squeeze(-1)
