"""Parts of a recipe by name, for a command line: `model=gemma3_270m`, `data=mock_data`, `peft=lora`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from gemma_models.data import InstructionData, MockData
from gemma_models.settings import CosineAnnealing, LoRA
from launcher.config import Config


def architecture(size: str) -> Config[GemmaConfig]:
    """The numbers of one size of Gemma."""
    return Config(GemmaConfig, **asdict(ARCHITECTURES[size]))


FACTORIES: Final[dict[str, Callable[..., Config[Any]]]] = {
    **{size: partial(architecture, size) for size in ARCHITECTURES},
    "mock_data": partial(Config, MockData),
    "instruction_data": partial(Config, InstructionData),
    "lora": partial(Config, LoRA),
    "cosine_annealing": partial(Config, CosineAnnealing),
}
