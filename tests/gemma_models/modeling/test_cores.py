"""FlexAttention, which runs on a CPU as well, against plain torch; the other cores need a GPU (tests/gpu)."""

from __future__ import annotations

import pytest
import torch

from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.cores import flex
from gemma_models.modeling.cores.local import LocalAttention
from gemma_models.settings import MegatronStrategy
from tests.gemma_models.tiny import WINDOW, tiny


@pytest.mark.parametrize("size", ["gemma2_27b", "gemma3_1b"])
@pytest.mark.parametrize("layer", [1, 6])
def test_flex_sees_and_caps_as_plain_torch_does(size: str, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiled", lambda function: function)  # compiled, it has no gradient on a CPU
    gemma = tiny(size)
    config = transformer_config(gemma, MegatronStrategy(), precision="fp32", accelerator="cpu")
    draw = torch.Generator().manual_seed(1)
    heads = (gemma.num_attention_heads, gemma.num_query_groups, gemma.num_query_groups)
    given = [3 * torch.randn(3 * WINDOW, 2, count, gemma.kv_channels, generator=draw) for count in heads]
    core, plain = flex.FlexAttention(config, layer), LocalAttention(config, layer)
    expected = plain(*given, None)
    torch.testing.assert_close(core(*given, None), expected, atol=1e-4, rtol=1e-4)
    if core.window is not None:  # the control: one token too wide is seen
        core.window += 1
        assert (core(*given, None) - expected).abs().max() > 1e-2
    # The last query alone, with the keys before it kept, is plain torch's.
    last = core(given[0][-1:], *given[1:], None)
    core.window = plain.window
    torch.testing.assert_close(core(given[0][-1:], *given[1:], None), expected[-1:], atol=1e-4, rtol=1e-4)
    assert last.shape == expected[-1:].shape
