"""Documents in one row: what each comes to is what it comes to alone."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from gemma_runs import GEMMA2, GEMMA3, VOCABULARY, WINDOW

from gemma_models.architectures import GemmaConfig
from gemma_models.data import Batch
from gemma_models.data.batching import collate
from gemma_models.data.chat import Example
from gemma_models.data.packing import collate_packed
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.cores import flex
from gemma_models.modeling.cores.local import LocalAttention
from gemma_models.modeling.model import GemmaModel, build_model
from gemma_models.modeling.packed import packed_row
from gemma_models.settings import MegatronStrategy
from gemma_models.training.parallel import parallel_context
from gemma_models.training.recorded import output_of
from tests.gemma_models.tiny import tiny

LENGTH = 48


def batches() -> tuple[Batch, Batch]:
    """The same documents, a row each and packed into one row of two stretches, with padding at both ends."""
    draw = random.Random(1)  # noqa: S311
    stretches = [
        [
            Example([draw.randrange(VOCABULARY) for _ in range(size + 1)], [n > size // 3 for n in range(size + 1)])
            for size in sizes
        ]
        for sizes in ([37, 9], [WINDOW + 3, 1, 20])
    ]
    alone = collate([example for stretch in stretches for example in stretch], 5, LENGTH)
    return alone, collate_packed(stretches, 2, LENGTH, documents=5)


def learnt(model: GemmaModel, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """The losses' sum, and the gradient of every parameter."""
    model.zero_grad()
    total = output_of(model, batch, LENGTH)
    total.backward()
    return float(total.detach()), {name: weight.grad.clone() for name, weight in model.named_parameters()}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference, where 1 is a gradient's own size."""
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)


@pytest.mark.parametrize("gemma", [GEMMA2, GEMMA3], ids=["gemma2", "gemma3"])
def test_a_packed_row_has_the_loss_and_the_gradients_of_its_documents(gemma: GemmaConfig) -> None:
    alone, packed = batches()
    config = transformer_config(gemma, MegatronStrategy(), precision="fp32", accelerator="cpu")
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        model = build_model(config)
        loss, gradients = learnt(model, alone)
        ours, our_gradients = learnt(model, packed)
        assert ours == pytest.approx(loss, rel=1e-5)
        assert packed["loss_mask"].sum() == alone["loss_mask"].sum()
        assert apart(gradients, our_gradients) < 1e-4

        # Controls: documents that see each other; a bound one token off; below, a window one too wide.
        seeing = {name: tensor for name, tensor in packed.items() if name != "cu_seqlens"}
        going_on = packed | {"position_ids": torch.arange(2 * LENGTH)[None] % LENGTH}
        moved = packed | {"cu_seqlens": packed["cu_seqlens"] + torch.tensor([0, 1] + [0] * 9, dtype=torch.int32)}
        for broken in (seeing, moved):
            wrong, wrong_gradients = learnt(model, broken)
            assert abs(wrong - loss) > 1e-3
            assert apart(gradients, wrong_gradients) > 1e-2
        # Rotary positions are relative: going on is no mistake, but for the rounding of large angles.
        assert apart(gradients, learnt(model, going_on)[1]) < 1e-3
        for module in model.modules():
            if isinstance(module, LocalAttention) and module.window is not None:
                module.window += 1
        assert apart(gradients, learnt(model, packed)[1]) > 1e-2


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
