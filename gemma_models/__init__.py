"""Gemma on Megatron-Core. What stands here is light: torch is imported when something is trained or converted."""

import warnings
from typing import TYPE_CHECKING, Any

# Megatron-Core says when it is imported, in a line a module, that it does without Apex and Transformer Engine.
warnings.filterwarnings("ignore", module=r"megatron\.")

if TYPE_CHECKING:
    from gemma_models.api import export_checkpoint as export_checkpoint
    from gemma_models.api import finetune as finetune
    from gemma_models.api import generate as generate
    from gemma_models.api import import_checkpoint as import_checkpoint
    from gemma_models.api import pretrain as pretrain
    from gemma_models.api import train as train
    from gemma_models.api import validate as validate
    from gemma_models.architectures import GemmaConfig as GemmaConfig
    from gemma_models.data import DataModule as DataModule
    from gemma_models.data import InstructionData as InstructionData
    from gemma_models.data import MockData as MockData
    from gemma_models.recipes import gemma2_2b as gemma2_2b
    from gemma_models.recipes import gemma3_1b as gemma3_1b
    from gemma_models.recipes import gemma3_270m as gemma3_270m
    from gemma_models.settings import AutoResume as AutoResume
    from gemma_models.settings import CosineAnnealing as CosineAnnealing
    from gemma_models.settings import DoRA as DoRA
    from gemma_models.settings import Logger as Logger
    from gemma_models.settings import LoRA as LoRA
    from gemma_models.settings import MegatronOptimizer as MegatronOptimizer
    from gemma_models.settings import MegatronStrategy as MegatronStrategy
    from gemma_models.settings import ModelCheckpoint as ModelCheckpoint
    from gemma_models.settings import OptimizerConfig as OptimizerConfig
    from gemma_models.settings import RestoreConfig as RestoreConfig
    from gemma_models.settings import Trainer as Trainer

_HOMES = {
    "api": ("export_checkpoint", "finetune", "generate", "import_checkpoint", "pretrain", "train", "validate"),
    "architectures": ("GemmaConfig",),
    "data": ("DataModule", "InstructionData", "MockData"),
    "recipes": ("gemma2_2b", "gemma3_1b", "gemma3_270m"),
    "settings": (
        "AutoResume",
        "CosineAnnealing",
        "DoRA",
        "LoRA",
        "Logger",
        "MegatronOptimizer",
        "MegatronStrategy",
        "ModelCheckpoint",
        "OptimizerConfig",
        "RestoreConfig",
        "Trainer",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"gemma_models has no {name!r}; it has {', '.join(__dir__())}")
    from importlib import import_module

    return getattr(import_module(f"gemma_models.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
