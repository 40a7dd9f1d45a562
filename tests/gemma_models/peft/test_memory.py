"""What adapters save: a frozen weight has neither a gradient nor a master copy nor moments."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from gemma_runs import LENGTH, SMALLEST, UnevenData, recipe

from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.model import build_model
from gemma_models.peft.adapters import apply_adapters
from gemma_models.settings import DoRA, LoRA, MegatronStrategy
from gemma_models.training.optimizer import build_optimizer
from gemma_models.training.parallel import parallel_context
from gemma_models.training.steps import Stepper, wrap
from launcher.config import build
from tests.gemma_models.held import Held

# bfloat16 weights; of those that train float32 gradients, master weights and two moments, too.
FROZEN, TRAINED = 2, 2 + 4 + 4 + 4 + 4
GEMMA = replace(SMALLEST, hidden_size=128, ffn_hidden_size=512, vocab_size=2048)


def held(peft: LoRA | None) -> tuple[int, int, int]:
    """Bytes held after a step, the model's own parameters, and the adapters'."""
    settings = recipe("", "run", precision="bf16")  # type: ignore[arg-type]
    with parallel_context(MegatronStrategy(), accelerator="cpu") as device, Held() as made:
        model = build_model(transformer_config(GEMMA, MegatronStrategy(), precision="bf16", accelerator="cpu"))
        if peft is not None:
            apply_adapters([model], peft)
        ddp = wrap([model], MegatronStrategy())
        optimizer, _ = build_optimizer(ddp, build(settings.optim), build(settings.trainer))
        batches = next(UnevenData().train_batches(start_step=0, dp_rank=0, dp_size=1, seed=0))
        Stepper(ddp, optimizer, device, LENGTH).train(batches)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        adapters = sum(size for name, size in sizes.items() if ".adapter_" in name)
        trained = sum(sizes.values()) if peft is None else adapters
        # Only what trains is in the buffers in which gradients are summed over replicas.
        assert sum(buffer.numel for buffer in ddp[0].buffers) == pytest.approx(trained, rel=0.01)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        gc.collect()
        return made.bytes(), sum(sizes.values()) - adapters, adapters


def adapter_parameters(gemma: GemmaConfig, peft: LoRA) -> int:
    """On every linear layer: A and B, and of DoRA a length for each row."""
    heads = gemma.num_attention_heads * gemma.kv_channels
    qkv = heads + 2 * gemma.num_query_groups * gemma.kv_channels
    shapes = [
        (gemma.hidden_size, qkv),
        (heads, gemma.hidden_size),
        (gemma.hidden_size, 2 * gemma.ffn_hidden_size),
        (gemma.ffn_hidden_size, gemma.hidden_size),
    ]
    lengths = sum(rows for _, rows in shapes) if isinstance(peft, DoRA) else 0
    return gemma.num_layers * (peft.dim * sum(map(sum, shapes)) + lengths)


@pytest.mark.parametrize("peft", [LoRA(dim=4), DoRA(dim=4)], ids=["lora", "dora"])
def test_under_a_sixth_of_full_fine_tuning(peft: LoRA) -> None:
    full, parameters, _ = held(None)
    assert full == pytest.approx(TRAINED * parameters, rel=0.02)
    found, parameters, adapters = held(peft)
    assert adapters == adapter_parameters(GEMMA, peft)
    assert found == pytest.approx(FROZEN * parameters + TRAINED * adapters, rel=0.04)
    # So much for each kind of parameter, of real sizes and of the ranks that recipes have:
    for name, size in (("gemma3_1b", 999_885_952), ("gemma2_2b", 2_614_341_888)):
        for dim in (8, 32):
            adapters = adapter_parameters(ARCHITECTURES[name], replace(peft, dim=dim))
            assert FROZEN * size + TRAINED * adapters < TRAINED * size / 6
