"""Megatron-Bridge's names of what a recipe holds: `train.global_batch_size=64` is `data.global_batch_size=64`.

Its configuration (training/config.py) has other sections than ours, over the same values. This is the one table of
them; a path that is in it means what it says there, and any other is ours.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable
from typing import Any, Final

from launcher.errors import OverrideError
from launcher.tree import arguments, has, join, show, walk

_PARTS: Final = ("model", "data", "trainer", "log", "resume", "optim")
_STRATEGY: Final = "trainer.strategy"
_PATH: Final = re.compile(r"[\w.]+")
_PRECISIONS: Final = {
    "bf16_mixed": {"precision": "bf16"},
    "bf16_with_fp8_current_scaling_mixed": {"precision": "bf16", "fp8_recipe": "tensorwise"},
    "bf16_with_fp8_subchannel_scaling_mixed": {"precision": "bf16", "fp8_recipe": "blockwise"},
}


def _save(task: Any, value: str) -> list[str]:
    """A folder of checkpoints: its last part is the run's name. Bridge's own ends in one called checkpoints."""
    folder, name = os.path.split(value.rstrip("/").removesuffix("/checkpoints"))
    if not name:
        raise OverrideError(f"checkpoint.save is {value!r}, and names no folder", hint="checkpoint.save=/runs/lora")
    if task.resume.resume_if_exists and task.log.dir is not None:
        _require_one_folder(task, os.path.join(folder or ".", name))
    return [f"log.dir={folder or '.'}", f"log.name={name}"]


def _load(task: Any, value: str) -> list[str]:
    """The run in that folder goes on. Bridge saves and loads in one folder by default; here that is to be asked for."""
    there = _save(task, value)
    if task.log.dir is not None:
        _require_one_folder(task, os.path.join(*(text.partition("=")[2] for text in there)))
    return [*there, "resume.resume_if_exists=true"]


def _require_one_folder(task: Any, folder: str) -> None:
    before = os.path.join(task.log.dir, task.log.name)
    if os.path.normpath(before) != os.path.normpath(folder):
        raise OverrideError(
            f"a run goes on where it is saved, and here are two folders: {before} and {folder}",
            hint="checkpoint.pretrained_checkpoint=FOLDER, to start anew from the weights there",
        )


def _pretrained(task: Any, value: str) -> list[str]:
    made = [] if task.resume.restore_config is not None else ["resume.restore_config=RestoreConfig"]
    return [*made, f"resume.restore_config.path={value}"]


def _dataset_root(task: Any, value: str) -> list[str]:
    """A folder with training.jsonl and validation.jsonl."""
    return [f"data.{split}_path={os.path.join(value, name)}.jsonl" for split, name in
            (("train", "training"), ("validation", "validation"))]  # fmt: skip


def _precision(task: Any, value: str) -> list[str]:
    meant = _PRECISIONS.get(value, {"precision": value})
    if "fp8_recipe" in meant:
        meant = {"transformer_impl": "transformer_engine", **meant}
    return [f"trainer.{name}={each}" for name, each in meant.items()]


def _wandb(task: Any, value: str) -> list[str]:
    if task.log.wandb is not None:
        return [f"log.wandb.project={value}"]
    return [f"log.wandb={{project: {json.dumps(value)}}}"]


ALIASES: Final[dict[str, str | Callable[[Any, str], list[str]]]] = {
    "train.train_iters": "trainer.max_steps",
    "train.global_batch_size": "data.global_batch_size",
    "train.micro_batch_size": "data.micro_batch_size",
    "train.eval_interval": "trainer.val_check_interval",
    "train.eval_iters": "trainer.limit_val_batches",
    "validation.eval_interval": "trainer.val_check_interval",
    "validation.eval_iters": "trainer.limit_val_batches",
    "checkpoint.save": _save,
    "checkpoint.load": _load,
    "checkpoint.pretrained_checkpoint": _pretrained,
    "checkpoint.save_interval": "log.ckpt.every_n_train_steps",
    "checkpoint.most_recent_k": "log.ckpt.save_last_k",
    "checkpoint.async_save": "log.ckpt.async_save",
    "optimizer.lr": "optim.config.lr",
    "optimizer.min_lr": "optim.lr_scheduler.min_lr",
    "optimizer.weight_decay": "optim.config.weight_decay",
    "optimizer.adam_beta1": "optim.config.adam_beta1",
    "optimizer.adam_beta2": "optim.config.adam_beta2",
    "optimizer.adam_eps": "optim.config.adam_eps",
    "optimizer.clip_grad": "optim.config.clip_grad",
    "optimizer.use_distributed_optimizer": f"{_STRATEGY}.use_distributed_optimizer",
    "scheduler.lr_warmup_iters": "optim.lr_scheduler.warmup_steps",
    "scheduler.lr_decay_iters": "optim.lr_scheduler.decay_steps",
    "ddp.use_distributed_optimizer": f"{_STRATEGY}.use_distributed_optimizer",
    "ddp.overlap_grad_reduce": f"{_STRATEGY}.overlap_grad_reduce",
    "ddp.overlap_param_gather": f"{_STRATEGY}.overlap_param_gather",
    "model.tensor_model_parallel_size": f"{_STRATEGY}.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size": f"{_STRATEGY}.pipeline_model_parallel_size",
    "model.virtual_pipeline_model_parallel_size": f"{_STRATEGY}.virtual_pipeline_model_parallel_size",
    "model.context_parallel_size": f"{_STRATEGY}.context_parallel_size",
    "model.sequence_parallel": f"{_STRATEGY}.sequence_parallel",
    "model.recompute_granularity": "trainer.recompute_granularity",
    "model.transformer_impl": "trainer.transformer_impl",
    "model.attention_backend": "trainer.attention",
    "model.seq_length": "data.seq_length",
    "dataset.seq_length": "data.seq_length",
    "dataset.sequence_length": "data.seq_length",
    "dataset.dataset_root": _dataset_root,
    "dataset.split": "data.split",
    "tokenizer.tokenizer_model": "tokenizer",
    "logger.log_interval": "trainer.log_every_n_steps",
    "logger.wandb_project": _wandb,
    "logger.wandb_entity": "log.wandb.entity",
    "logger.wandb_exp_name": "log.wandb.name",
    "rng.seed": "trainer.seed",
    "mixed_precision": _precision,
}

ARGUMENTS: Final[dict[str, str]] = {
    "finetune_lr": "optim.config.lr",
    **{
        path.rpartition(".")[2]: target
        for path, target in ALIASES.items()
        if isinstance(target, str) and not target.startswith("log.wandb.")  # which is nothing until it has a project
    },
}
"""What the functions of `bridge` take by name: the last part of a path, for the same value."""


def meaning(task: Any, text: str) -> list[str]:
    """What an override of a recipe stands for, by the table; itself where it has none of those names.

    A task that has not the parts of a recipe has its own names alone. Raises OverrideError for a path that is in
    neither tree and near one of Bridge's, with the nearest of both.
    """
    if not all(has(task, part) for part in _PARTS):
        return [text]
    found = _PATH.match(text)
    path = found[0] if found else ""
    rest = text[len(path) :]
    target = ALIASES.get(path)
    if isinstance(target, str):
        return [target + rest]
    if target is not None:
        if not rest.startswith("="):
            raise OverrideError(f"{path} can be set, and not be changed: {show(text)}", hint=f"{path}=...")
        return target(task, rest[1:])
    section = path.partition(".")[0]
    if path and not _in_tree(task, path):
        ours = [join(place, str(name)) for place, config in walk(task) for name in arguments(config)]
        near = difflib.get_close_matches(path, [*ALIASES, *ours], n=3, cutoff=0.6)
        theirs = any(name.partition(".")[0] == section for name in ALIASES) and not has(task, section)
        if theirs or any(name in ALIASES for name in near):
            raise OverrideError(
                f"{path} is neither in the recipe, which has {', '.join(map(str, arguments(task)))}, nor one of "
                "Megatron-Bridge's names for what it has",
                hint=" or ".join(near) or None,
            )
    return [text]


def _in_tree(task: Any, path: str) -> bool:
    """Whether a path leads somewhere in the recipe, as far as it leads through configurations."""
    config = task
    for name in path.split("."):
        if not hasattr(config, "__argument_history__"):
            return True
        if not has(config, name):
            return False
        config = arguments(config).get(name)
    return True
