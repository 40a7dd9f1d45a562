"""A task that says to be a training on GPUs, and tells what its environment is."""

from __future__ import annotations

import os

from gemma_models.settings import Trainer

VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "TORCH_NCCL_HIGH_PRIORITY",
    "NCCL_NVLS_ENABLE",
    "NCCL_GRAPH_REGISTER",
    "PYTORCH_ALLOC_CONF",
)


def environment(trainer: Trainer) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in VARIABLES}
