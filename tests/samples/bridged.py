"""A user's own loop over a bridged model, in as many processes as it has ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_models import AutoBridge


def loop(source: Path, output: Path) -> list[float]:
    """Three steps of plain gradient descent; the losses, and the model in Hugging Face's format at ``output``."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.distributed import finalize_model_grads

    from gemma_models import AutoBridge

    torch.set_num_threads(1)
    bridge = AutoBridge.from_hf_pretrained(source)
    provider = bridge.to_megatron_provider()
    provider.accelerator, provider.precision = "cpu", "fp32"
    provider.tensor_model_parallel_size = 2
    provider.finalize()
    (model,) = provider.provide_distributed_model()
    assert parallel_state.get_tensor_model_parallel_world_size() == 2
    tokens = 1 + torch.arange(48)[None] * 5 % 255
    positions = torch.arange(48)[None]
    losses = []
    for _ in range(3):
        model.zero_grad_buffer()
        loss = model(tokens, positions, None, labels=tokens.roll(-1)).mean()
        loss.backward()
        finalize_model_grads([model])
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.main_grad
    bridge.save_hf_pretrained([model], output)
    assert refusals(bridge, model, output.with_name("taken")) == 2
    return losses


def refusals(bridge: AutoBridge, model: Any, output: Path) -> int:
    """How many ranks hear of it when the first one finds, at the very end, that it cannot write."""
    import torch.distributed as dist

    from gemma_models.conversion import checkpoints
    from launcher.errors import CheckpointError

    export = checkpoints.export_hf

    def taken(*arguments: Any) -> Path:
        output.mkdir()
        return export(*arguments)

    checkpoints.export_hf = taken
    said = [""] * dist.get_world_size()
    try:
        bridge.save_hf_pretrained([model], output)
    except CheckpointError as error:
        dist.all_gather_object(said, error.message)
    finally:
        checkpoints.export_hf = export
    return sum(f"{output} exists" in text for text in said)
