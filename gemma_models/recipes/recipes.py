"""The recipes of one size."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gemma_models import api
from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from gemma_models.data import InstructionData, MockData
from gemma_models.recipes.table import FINETUNE, GEMMA2_FINETUNE, GEMMA2_LORA, GEMMA2_PRETRAIN, LORA, PRETRAIN, Defaults
from gemma_models.settings import (
    AutoResume,
    CosineAnnealing,
    Logger,
    LoRA,
    MegatronOptimizer,
    ModelCheckpoint,
    OptimizerConfig,
    RestoreConfig,
    Trainer,
)
from launcher.config import Config, Partial, arguments, task_name
from launcher.errors import ConfigError
from launcher.lazy_fiddle import history

history.add_exclude_location(__file__)  # a value's line is the user's, who called the recipe


@dataclass(frozen=True)
class Recipes:
    """What `gemma_models` offers under the name of a size: its recipes, each a Partial that can be changed and run."""

    size: str
    pretrain: Defaults
    finetune: Defaults
    lora: Defaults

    def pretrain_recipe(
        self, name: str = "default", dir: str | Path = "checkpoints", num_nodes: int = 1, num_gpus_per_node: int = 1
    ) -> Partial[Any]:
        """Pretraining from random weights, on made-up data until ``recipe.data`` is set.

        Checkpoints go to ``dir/name``. Processes: ``num_nodes`` x ``num_gpus_per_node``, one a GPU.
        """
        values = self.pretrain
        data = Config(MockData, vocab_size=ARCHITECTURES[self.size].vocab_size)
        return Partial(
            api.pretrain,
            **self._common(values, data, name, dir, num_nodes, num_gpus_per_node),
            resume=Config(AutoResume),
        )

    def finetune_recipe(
        self,
        name: str = "default",
        dir: str | Path = "checkpoints",
        num_nodes: int = 1,
        num_gpus_per_node: int = 1,
        peft_scheme: Literal["lora", "none"] | None = "lora",
        packed_sequence: bool = False,
    ) -> Partial[Any]:
        """Fine-tuning on instructions: of adapters (``"lora"``), or of every weight (``"none"`` or None).

        ``recipe.resume.restore_config.path`` and ``recipe.data.train_path`` are to be set: the checkpoint to start
        from and the examples. With ``packed_sequence`` these share rows of ``recipe.data.seq_length`` tokens.
        Raises ConfigError for another ``peft_scheme``.
        """
        if peft_scheme not in ("lora", "none", None):
            raise ConfigError(f"peft_scheme is {peft_scheme!r}", hint="peft_scheme='lora', or 'none'")
        adapters = peft_scheme == "lora"
        values = self.lora if adapters else self.finetune
        data = Config(InstructionData)
        if packed_sequence:
            data.packed_sequence = True
        return Partial(
            api.finetune,
            **self._common(values, data, name, dir, num_nodes, num_gpus_per_node),
            resume=Config(AutoResume, restore_config=Config(RestoreConfig)),
            peft=Config(LoRA, dim=values.adapter_dim, alpha=values.adapter_alpha) if adapters else None,
        )

    def validate_recipe(
        self, name: str = "default", dir: str | Path = "checkpoints", num_nodes: int = 1, num_gpus_per_node: int = 1
    ) -> Partial[Any]:
        """The loss of a checkpoint on instructions, with the tree of `finetune_recipe`.

        ``recipe.resume.restore_config.path`` and ``recipe.data.validation_path`` are to be set.
        """
        recipe = validation_of(self.finetune_recipe(name, dir, num_nodes, num_gpus_per_node, "none"))
        recipe.data.train_path = None
        return recipe

    def _common(
        self, values: Defaults, data: Config[Any], name: str, dir: str | Path, num_nodes: int, num_gpus_per_node: int
    ) -> dict[str, Any]:
        data.seq_length = values.seq_length
        data.global_batch_size = values.global_batch_size
        return {
            "model": Config(GemmaConfig, **asdict(ARCHITECTURES[self.size])),
            "data": data,
            "trainer": Config(
                Trainer,
                max_steps=values.max_steps,
                num_nodes=num_nodes,
                devices=num_gpus_per_node,
                val_check_interval=values.eval_every,
                seed=values.seed,
            ),
            "log": Config(
                Logger, dir=dir, name=name, ckpt=Config(ModelCheckpoint, every_n_train_steps=values.save_every)
            ),
            "optim": Config(
                MegatronOptimizer,
                config=Config(OptimizerConfig, lr=values.lr, adam_beta2=values.adam_beta2),
                lr_scheduler=Config(CosineAnnealing, warmup_steps=values.warmup_steps, min_lr=values.min_lr),
            ),
        }


def validation_of(recipe: Partial[Any]) -> Partial[Any]:
    """The recipe that takes the validation loss of what a training recipe trains: the same tree, over `api.validate`.

    Raises ConfigError for a recipe that has another tree.
    """
    given = arguments(recipe)
    needed = inspect.signature(api.validate).parameters
    if missing := [name for name in ("model", "data", "trainer", "log", "resume") if name not in given]:
        raise ConfigError(
            f"a recipe of {task_name(recipe)} cannot be validated: it has no {missing[0]}",
            hint="a recipe over gemma_models.finetune, pretrain or train",
        )
    return Partial(api.validate, **{str(name): value for name, value in given.items() if name in needed})


gemma2_2b = Recipes("gemma2_2b", pretrain=GEMMA2_PRETRAIN, finetune=GEMMA2_FINETUNE, lora=GEMMA2_LORA)
gemma3_270m = Recipes("gemma3_270m", pretrain=PRETRAIN, finetune=FINETUNE, lora=LORA)
gemma3_1b = Recipes("gemma3_1b", pretrain=PRETRAIN, finetune=FINETUNE, lora=LORA)
