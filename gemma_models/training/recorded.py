"""Forward and backward of a micro-batch as one CUDA graph, so that the GPU does not wait for Python."""

from __future__ import annotations

from typing import Any

import torch

from gemma_models.data import Batch
from gemma_models.modeling.packed import packed_row


def output_of(model: Any, batch: Batch, seq_length: int) -> torch.Tensor:
    """The sum of a micro-batch's losses, or on another stage than the last what the next one takes."""
    bounds = batch.get("cu_seqlens")
    output: torch.Tensor = model(
        batch["tokens"],
        batch["position_ids"],
        None,
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
        packed_seq_params=None if bounds is None else packed_row(bounds, seq_length),
    )
    return output


class Recorded:
    """Recorded once, for batches of one shape. Gradients are added to those that are there, as without it.

    What is recorded must have run before, on the stream that is current now, which must not be the default one.
    """

    def __init__(self, model: Any, batch: Batch, device: torch.device, seq_length: int) -> None:
        self.inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            total = output_of(model, self.inputs, seq_length)
            total.backward()
            self.sums = torch.stack([total.detach(), self.inputs["loss_mask"].sum()])
        torch.cuda.synchronize()

    def fits(self, batch: Batch) -> bool:
        return {name: tensor.shape for name, tensor in batch.items()} == {
            name: tensor.shape for name, tensor in self.inputs.items()
        }

    def run(self, batch: Batch) -> torch.Tensor:
        """Float32 (2): the loss's sum and the number of tokens in it; overwritten by the next run."""
        for name, tensor in batch.items():
            self.inputs[name].copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.sums
