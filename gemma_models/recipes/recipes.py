"""The recipes of a size, or of a size at the length of its whole context."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gemma_models import api
from gemma_models.architectures import ARCHITECTURES, GemmaConfig
from gemma_models.data import InstructionData, MockData
from gemma_models.recipes.table import RECIPES, Defaults, Kind, Rows
from gemma_models.settings import (
    AutoResume,
    CosineAnnealing,
    DoRA,
    Logger,
    LoRA,
    MegatronOptimizer,
    MegatronStrategy,
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
    """What `gemma_models` offers under a name of the table: its recipes, each a Partial that can be changed and run.

    Of each, ``dir / name`` is where its checkpoints go. Without a ``dir`` that is decided where it runs, so that what
    was saved on a laptop writes where a cluster keeps such things: in the folder that SAVE_DIR names there, else in
    "checkpoints". It runs in ``num_nodes`` x ``num_gpus_per_node`` processes, one a GPU; without these, in as many as
    the table has for it. Parallel sizes are the table's, as far as they divide the GPUs (see `table.Defaults.on`).
    """

    name: str
    rows: Rows

    @property
    def size(self) -> str:
        """The architecture's name: that of the recipes, but for the length of their sequences."""
        return self.name if self.name in ARCHITECTURES else self.name.rpartition("_")[0]

    def pretrain_recipe(
        self,
        name: str = "default",
        dir: str | Path | None = None,
        num_nodes: int | None = None,
        num_gpus_per_node: int | None = None,
    ) -> Partial[Any]:
        """Pretraining from random weights, on made-up data until ``recipe.data`` is set."""
        values = self._values("pretrain", num_nodes, num_gpus_per_node)
        data = Config(MockData, vocab_size=ARCHITECTURES[self.size].vocab_size)
        return Partial(api.pretrain, **self._common(values, data, name, dir), resume=Config(AutoResume))

    def finetune_recipe(
        self,
        name: str = "default",
        dir: str | Path | None = None,
        num_nodes: int | None = None,
        num_gpus_per_node: int | None = None,
        peft_scheme: Literal["lora", "dora", "none"] | None = "lora",
        packed_sequence: bool = False,
    ) -> Partial[Any]:
        """Fine-tuning on instructions: of adapters (``"lora"``, ``"dora"``), or of every weight (``"none"`` or None).

        ``recipe.resume.restore_config.path`` and ``recipe.data.train_path`` are to be set: the checkpoint to start
        from and the examples. With ``packed_sequence`` these share rows of ``recipe.data.seq_length`` tokens, instead
        of being padded; a step then takes fewer, fuller ones. Raises ConfigError for another ``peft_scheme``.
        """
        adapters = {"lora": LoRA, "dora": DoRA, "none": None, None: None}
        if peft_scheme not in adapters:
            raise ConfigError(f"peft_scheme is {peft_scheme!r}", hint="peft_scheme='lora', 'dora', or 'none'")
        kind = adapters[peft_scheme]
        values = self._values("finetune" if kind is None else "adapters", num_nodes, num_gpus_per_node)
        data = Config(InstructionData)
        common = self._common(values, data, name, dir)
        if packed_sequence:
            data.packed_sequence = True
            data.global_batch_size = values.packed_global_batch_size
        alpha = values.dora_alpha if peft_scheme == "dora" else values.adapter_alpha
        return Partial(
            api.finetune,
            **common,
            resume=Config(AutoResume, restore_config=Config(RestoreConfig)),
            peft=None if kind is None else Config(kind, dim=values.adapter_dim, alpha=alpha),
        )

    def validate_recipe(
        self,
        name: str = "default",
        dir: str | Path | None = None,
        num_nodes: int | None = None,
        num_gpus_per_node: int | None = None,
    ) -> Partial[Any]:
        """The loss of a checkpoint on instructions, with the tree of `finetune_recipe`.

        ``recipe.resume.restore_config.path`` and ``recipe.data.validation_path`` are to be set.
        """
        recipe = validation_of(self.finetune_recipe(name, dir, num_nodes, num_gpus_per_node, "none"))
        recipe.data.train_path = None
        return recipe

    def _values(self, kind: Kind, num_nodes: int | None, num_gpus_per_node: int | None) -> Defaults:
        for name, value in (("num_nodes", num_nodes), ("num_gpus_per_node", num_gpus_per_node)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")
        return self.rows[kind].on(num_nodes, num_gpus_per_node)

    def _common(self, values: Defaults, data: Config[Any], name: str, dir: str | Path | None) -> dict[str, Any]:
        data.seq_length = values.seq_length
        data.micro_batch_size = values.micro_batch_size
        data.global_batch_size = values.global_batch_size
        shared_out = values.distributed_optimizer
        return {
            "model": Config(GemmaConfig, **asdict(ARCHITECTURES[self.size])),
            "data": data,
            "trainer": Config(
                Trainer,
                max_steps=values.max_steps,
                num_nodes=values.num_nodes,
                devices=values.num_gpus_per_node,
                val_check_interval=values.eval_every,
                seed=values.seed,
                strategy=Config(
                    MegatronStrategy,
                    tensor_model_parallel_size=values.tensor_parallel,
                    pipeline_model_parallel_size=values.pipeline_parallel,
                    context_parallel_size=values.context_parallel,
                    # Off in both anchors; it sends as much as tensor parallelism alone, and leaves each rank its part
                    # of what stands between the matrix products, four norms a layer here (arXiv:2205.05198).
                    sequence_parallel=values.tensor_parallel > 1,
                    use_distributed_optimizer=shared_out,
                    overlap_grad_reduce=shared_out,
                    overlap_param_gather=shared_out,
                ),
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


BY_NAME = {name: Recipes(name, rows) for name, rows in RECIPES.items()}
