"""Parts of a recipe by name, for a command line: `model=gemma3_270m`, `data=mock_data`, `peft=lora`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from gemma_models.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from launcher.config import Config

_CLASSES: Final = {
    "mock_data": "gemma_models.data.MockData",
    "instruction_data": "gemma_models.data.InstructionData",
    "indexed_data": "gemma_models.data.IndexedData",
    "huggingface_data": "gemma_models.data.HuggingFaceData",
    "lora": "gemma_models.settings.LoRA",
    "dora": "gemma_models.settings.DoRA",
    "cosine_annealing": "gemma_models.settings.CosineAnnealing",
}


def names() -> dict[str, str]:
    """Every name, and what it makes. Known without fiddle, so that a command line can list them at once."""
    return {**_CLASSES, **{size: "gemma_models.architectures.GemmaConfig" for size in ARCHITECTURES}}


def factories() -> dict[str, Callable[..., Config[Any]]]:
    """What makes each, by name: a Config with the arguments that it is given."""
    from launcher.config import Config

    found: dict[str, Callable[..., Config[Any]]] = {}
    for name, made in names().items():
        module, _, kind = made.rpartition(".")
        numbers = asdict(ARCHITECTURES[name]) if name in ARCHITECTURES else {}
        found[name] = partial(Config, getattr(import_module(module), kind), **numbers)
    return found
