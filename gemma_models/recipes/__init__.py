"""Ready-made ways to train each size of Gemma, from one table. Light: no torch, no network, no token."""

from gemma_models.recipes.recipes import Recipes
from gemma_models.recipes.table import FINETUNE, LORA, PRETRAIN

gemma3_270m = Recipes("gemma3_270m", pretrain=PRETRAIN, finetune=FINETUNE, lora=LORA)
gemma3_1b = Recipes("gemma3_1b", pretrain=PRETRAIN, finetune=FINETUNE, lora=LORA)

__all__ = ["Recipes", "gemma3_1b", "gemma3_270m"]
