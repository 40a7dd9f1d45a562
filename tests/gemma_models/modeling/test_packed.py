"""Documents in one row: what each comes to is what it comes to alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from gemma_runs import GEMMA2, GEMMA3, VOCABULARY, WINDOW

from gemma_models.architectures import GemmaConfig
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.cores import flex
from gemma_models.modeling.cores.local import LocalAttention
from gemma_models.modeling.model import build_model
from gemma_models.modeling.packed import packed_row
from gemma_models.settings import MegatronStrategy
from gemma_models.training.parallel import parallel_context
from tests.gemma_models.packed_rows import alone_and_packed, apart, learnt
from tests.gemma_models.tiny import tiny

LENGTH = 48
DOCUMENTS = [[37, 9], [WINDOW + 3, 1, 20]]  # tokens of each, in two stretches of LENGTH with padding at their ends


@pytest.mark.parametrize("gemma", [GEMMA2, GEMMA3], ids=["gemma2", "gemma3"])
def test_a_packed_row_has_the_loss_and_the_gradients_of_its_documents(gemma: GemmaConfig) -> None:
    alone, packed = alone_and_packed(DOCUMENTS, LENGTH, VOCABULARY)
    config = transformer_config(gemma, MegatronStrategy(), precision="fp32", accelerator="cpu")
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        model = build_model(config)
        loss, gradients = learnt(model, alone, LENGTH)
        ours, our_gradients = learnt(model, packed, LENGTH)
        assert ours == pytest.approx(loss, rel=1e-5)
        assert packed["loss_mask"].sum() == alone["loss_mask"].sum()
        assert apart(gradients, our_gradients) < 1e-4

        # Controls: documents that see each other; a bound one token off; below, a window one too wide.
        seeing = {name: tensor for name, tensor in packed.items() if name != "cu_seqlens"}
        going_on = packed | {"position_ids": torch.arange(2 * LENGTH)[None] % LENGTH}
        moved = packed | {"cu_seqlens": packed["cu_seqlens"] + torch.tensor([0, 1] + [0] * 9, dtype=torch.int32)}
        for broken in (seeing, moved):
            wrong, wrong_gradients = learnt(model, broken, LENGTH)
            assert abs(wrong - loss) > 1e-3
            assert apart(gradients, wrong_gradients) > 1e-2
        # Rotary positions are relative: going on is no mistake, but for the rounding of large angles.
        assert apart(gradients, learnt(model, going_on, LENGTH)[1]) < 1e-3
        for module in model.modules():
            if isinstance(module, LocalAttention) and module.window is not None:
                module.window += 1
        assert apart(gradients, learnt(model, packed, LENGTH)[1]) > 1e-2


@pytest.mark.parametrize("name", ["local", "flex"])
@pytest.mark.parametrize("size", ["gemma2_27b", "gemma3_1b"])
@pytest.mark.parametrize("layer", [1, 6])
def test_every_core_keeps_documents_apart(name: str, size: str, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiled", lambda function: function)  # compiled, it has no gradient on a CPU
    gemma = replace(tiny(size), sliding_window=WINDOW)
    config = transformer_config(gemma, MegatronStrategy(), precision="fp32", accelerator="cpu")
    draw = torch.Generator().manual_seed(1)
    sizes = (gemma.num_attention_heads, gemma.num_query_groups, gemma.num_query_groups)
    bounds = torch.tensor([0, 40, 41, 70, 96, 96], dtype=torch.int32)
    query, key, value = (3 * torch.randn(96, 1, count, gemma.kv_channels, generator=draw) for count in sizes)
    plain = LocalAttention(config, layer)
    core = {"local": LocalAttention, "flex": flex.FlexAttention}[name](config, layer)
    alone = [plain(query[a:b], key[a:b], value[a:b], None) for a, b in pairwise(bounds.tolist()) if a < b]
    expected = torch.cat(alone)
    row = packed_row(bounds, 96)
    torch.testing.assert_close(core(query, key, value, None, packed_seq_params=row), expected, atol=1e-4, rtol=1e-4)
    # As two stretches of queries, each with the keys up to its own end: what context parallelism asks.
    for start, end in ((0, 48), (48, 96)):
        stretch = core(query[start:end], key[:end], value[:end], None, packed_seq_params=row.stretch(start, end))
        torch.testing.assert_close(stretch, expected[start:end], atol=1e-4, rtol=1e-4)
    # The control: a bound one token off.
    moved = packed_row(bounds + torch.tensor([0, 1, 1, 0, 0, 0], dtype=torch.int32), 96)
    assert (core(query, key, value, None, packed_seq_params=moved) - expected).abs().max() > 1e-2
