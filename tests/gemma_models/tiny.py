"""Small Gemmas with every size's own shape where it matters: heads, head dimension, scales, patterns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from gemma_models.conversion.hf_config import hf_config, read_hf_config
from gemma_models.conversion.weights import load_hf_weights
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.kernels import PLAIN, Kernels
from gemma_models.modeling.model import GemmaModel, build_model
from gemma_models.settings import MegatronStrategy
from gemma_models.training.parallel import parallel_context

WINDOW = 16


def tiny(size: str) -> GemmaConfig:
    """The architecture of ``size`` with its own heads, scales and pattern; narrow, and one layer longer than that."""
    full = ARCHITECTURES[size]
    return replace(
        full,
        num_layers=full.sliding_window_pattern + 1,
        hidden_size=96,
        vocab_size=256,
        ffn_hidden_size=64,
        sliding_window=WINDOW,
        max_position_embeddings=512,
    )


def hf_model(gemma: GemmaConfig, seed: int = 0) -> Any:
    """Hugging Face's own model of this architecture, random weights in float32, norms not trivial."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(hf_config(gemma), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(std=0.3)
            else:  # scores and logits large enough that softcaps, masks and scales show
                parameter.mul_(10.0)
    return model


@contextlib.contextmanager
def our_model(
    folder: Path,
    precision: Literal["bf16", "fp32"] = "fp32",
    accelerator: Literal["gpu", "cpu"] = "cpu",
    kernels: Kernels = PLAIN,
) -> Iterator[GemmaModel]:
    """The Hugging Face folder as our model, inside its parallel context."""
    strategy = MegatronStrategy()
    config = transformer_config(
        read_hf_config(folder), strategy, precision=precision, accelerator=accelerator, kernels=kernels
    )
    with parallel_context(strategy, accelerator=accelerator) as device, torch.no_grad():
        model = build_model(config).to(device)
        load_hf_weights([model], folder)
        yield model.eval()


def logits(model: GemmaModel, ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    out: torch.Tensor = model(ids, positions, None)
    return out
