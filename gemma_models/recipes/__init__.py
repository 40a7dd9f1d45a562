"""Ready-made ways to train each size of Gemma, from one table. Light: no torch, no network, no token.

The names are known without fiddle, so that a command line can list and complete them at once.
"""

from typing import TYPE_CHECKING, Any

from gemma_models.recipes.table import RECIPES

if TYPE_CHECKING:
    from gemma_models.recipes.recipes import Recipes as Recipes
    from gemma_models.recipes.recipes import validation_of as validation_of

NAMES = tuple(RECIPES)
"""What has recipes: `gemma_models.gemma3_1b.finetune_recipe()`, `gemma_models.gemma3_1b_32k.pretrain_recipe()`."""
CONFIGS = tuple(f"{name}_{kind}_config" for name in NAMES for kind in ("pretrain", "finetune", "sft", "peft"))
"""The same under Megatron-Bridge's names, as functions: `gemma_models.gemma3_1b_pretrain_config()`."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in NAMES:
        return import_module("gemma_models.recipes.recipes").BY_NAME[name]
    if name in CONFIGS:
        return import_module("gemma_models.recipes.bridge").config_function(name)
    if name in ("Recipes", "validation_of"):
        return getattr(import_module("gemma_models.recipes.recipes"), name)
    raise AttributeError(f"gemma_models.recipes has no {name!r}; it has {', '.join(NAMES)}")
