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
    from gemma_models.recipes import gemma2_2b as gemma2_2b
    from gemma_models.recipes import gemma3_1b as gemma3_1b
    from gemma_models.recipes import gemma3_270m as gemma3_270m

_API = ("export_checkpoint", "finetune", "generate", "import_checkpoint", "pretrain", "train", "validate")
_RECIPES = ("gemma2_2b", "gemma3_1b", "gemma3_270m")


def __getattr__(name: str) -> Any:
    if name in _API:
        from gemma_models import api

        return getattr(api, name)
    if name in _RECIPES:
        from gemma_models import recipes

        return getattr(recipes, name)
    raise AttributeError(f"gemma_models has no {name!r}; it has {', '.join(_API + _RECIPES)}")
