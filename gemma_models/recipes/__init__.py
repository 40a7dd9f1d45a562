"""Ready-made ways to train each size of Gemma, from one table. Light: no torch, no network, no token.

The names are known without fiddle, so that a command line can list and complete them at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_models.recipes.recipes import Recipes as Recipes
    from gemma_models.recipes.recipes import gemma2_2b as gemma2_2b
    from gemma_models.recipes.recipes import gemma3_1b as gemma3_1b
    from gemma_models.recipes.recipes import gemma3_270m as gemma3_270m
    from gemma_models.recipes.recipes import validation_of as validation_of
    from gemma_models.recipes.table import FINETUNE as FINETUNE
    from gemma_models.recipes.table import LORA as LORA
    from gemma_models.recipes.table import PRETRAIN as PRETRAIN

SIZES = ("gemma2_2b", "gemma3_270m", "gemma3_1b")
"""The sizes that have recipes: `gemma_models.recipes.gemma3_1b.finetune_recipe()` and so on."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in (*SIZES, "Recipes", "validation_of"):
        return getattr(import_module("gemma_models.recipes.recipes"), name)
    if name in ("FINETUNE", "LORA", "PRETRAIN"):
        return getattr(import_module("gemma_models.recipes.table"), name)
    raise AttributeError(f"gemma_models.recipes has no {name!r}; it has {', '.join(SIZES)}")
