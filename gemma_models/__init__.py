"""Gemma on Megatron-Core. What stands here is light: torch is imported when something is trained or converted."""

import warnings
from typing import TYPE_CHECKING, Any

# Megatron-Core says when it is imported, in a line a module, that it does without Apex and Transformer Engine.
warnings.filterwarnings("ignore", module=r"megatron\.")
# torch 2.13 has new names for collectives that Megatron-Core calls by their old ones.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")

if TYPE_CHECKING:
    from gemma_models.api import export_checkpoint as export_checkpoint
    from gemma_models.api import export_ckpt as export_ckpt
    from gemma_models.api import finetune as finetune
    from gemma_models.api import generate as generate
    from gemma_models.api import import_checkpoint as import_checkpoint
    from gemma_models.api import import_ckpt as import_ckpt
    from gemma_models.api import preprocess as preprocess
    from gemma_models.api import pretrain as pretrain
    from gemma_models.api import train as train
    from gemma_models.api import validate as validate
    from gemma_models.architectures import GemmaConfig as GemmaConfig
    from gemma_models.bridge import AutoBridge as AutoBridge
    from gemma_models.data import DataModule as DataModule
    from gemma_models.data import HuggingFaceData as HuggingFaceData
    from gemma_models.data import IndexedData as IndexedData
    from gemma_models.data import InstructionData as InstructionData
    from gemma_models.data import MockData as MockData
    from gemma_models.recipes import Recipes
    from gemma_models.settings import AutoResume as AutoResume
    from gemma_models.settings import CosineAnnealing as CosineAnnealing
    from gemma_models.settings import DoRA as DoRA
    from gemma_models.settings import Logger as Logger
    from gemma_models.settings import LoRA as LoRA
    from gemma_models.settings import MegatronOptimizer as MegatronOptimizer
    from gemma_models.settings import MegatronStrategy as MegatronStrategy
    from gemma_models.settings import ModelCheckpoint as ModelCheckpoint
    from gemma_models.settings import OptimizerConfig as OptimizerConfig
    from gemma_models.settings import Profile as Profile
    from gemma_models.settings import RestoreConfig as RestoreConfig
    from gemma_models.settings import Trainer as Trainer
    from gemma_models.settings import Wandb as Wandb

    gemma2_2b: Recipes
    gemma2_9b: Recipes
    gemma2_27b: Recipes
    gemma3_270m: Recipes
    gemma3_1b: Recipes
    gemma2_2b_8k: Recipes
    gemma2_9b_8k: Recipes
    gemma2_27b_8k: Recipes
    gemma3_270m_32k: Recipes
    gemma3_1b_32k: Recipes

_HOMES = {
    "api": (
        "export_checkpoint",
        "export_ckpt",
        "finetune",
        "generate",
        "import_checkpoint",
        "import_ckpt",
        "preprocess",
        "pretrain",
        "train",
        "validate",
    ),
    "architectures": ("GemmaConfig",),
    "bridge": ("AutoBridge",),
    "data": ("DataModule", "HuggingFaceData", "IndexedData", "InstructionData", "MockData"),
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
        "Profile",
        "RestoreConfig",
        "Trainer",
        "Wandb",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME_OF:
        return getattr(import_module(f"gemma_models.{_HOME_OF[name]}"), name)
    if name.startswith("gemma"):
        recipes = import_module("gemma_models.recipes")
        if name in recipes.NAMES or name in recipes.CONFIGS:
            return getattr(recipes, name)
    raise AttributeError(f"gemma_models has no {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    from gemma_models.recipes import CONFIGS, NAMES

    return sorted([*_HOME_OF, *NAMES, *CONFIGS])
