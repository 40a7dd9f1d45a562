"""The activation whose gradient is written by hand, against torch's own."""

from __future__ import annotations

import torch

from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.gelu import GatedGelu
from gemma_models.settings import MegatronStrategy
from tests.gemma_models.tiny import tiny


def test_the_value_and_its_gradient() -> None:
    gelu = GatedGelu(transformer_config(tiny("gemma3_1b"), MegatronStrategy(), precision="fp32", accelerator="cpu"))
    x = (3 * torch.randn(5, 2, 14, generator=torch.Generator().manual_seed(1))).requires_grad_()
    weights = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(2))
    gate, up = x.chunk(2, dim=-1)
    expected = torch.nn.functional.gelu(gate, approximate="tanh") * up
    (wanted,) = torch.autograd.grad((expected * weights).sum(), x)
    (gradient,) = torch.autograd.grad((gelu(x) * weights).sum(), x)
    torch.testing.assert_close(gelu(x), expected)
    torch.testing.assert_close(gradient, wanted)
