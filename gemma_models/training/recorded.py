"""Forward and backward of a micro-batch as one CUDA graph, so that the GPU does not wait for Python."""

from __future__ import annotations

from typing import Any

import torch

from gemma_models.data import Batch


class Recorded:
    """Recorded once, for batches of one shape. Gradients are added to those that are there, as without it.

    What is recorded must have run before, on the stream that is current now, which must not be the default one.
    """

    def __init__(self, model: Any, batch: Batch, device: torch.device) -> None:
        self.inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            total = model(
                self.inputs["tokens"],
                self.inputs["position_ids"],
                None,
                labels=self.inputs["labels"],
                loss_mask=self.inputs["loss_mask"],
            )
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
