"""Megatron's AdamW and its learning-rate schedule."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer as Optimizer
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from gemma_models.settings import MegatronOptimizer, Trainer
from launcher.errors import LaunchError


def build_optimizer(
    chunks: list[DistributedDataParallel], optim: MegatronOptimizer, trainer: Trainer
) -> tuple[Optimizer, OptimizerParamScheduler]:
    """AdamW over the parameters that train, with a linear warm-up and a cosine, counted in steps."""
    if trainer.accelerator == "cpu" and importlib.util.find_spec("transformer_engine") is not None:
        raise LaunchError(
            "trainer.accelerator is 'cpu', and Transformer Engine is installed: Megatron-Core would give its optimizer "
            "step to CUDA kernels",
            hint="train on the CPU from an environment without transformer-engine, or set trainer.accelerator=gpu",
        )
    values = optim.config
    config = OptimizerConfig(
        optimizer="adam",
        lr=values.lr,
        min_lr=optim.lr_scheduler.min_lr,
        weight_decay=values.weight_decay,
        adam_beta1=values.adam_beta1,
        adam_beta2=values.adam_beta2,
        adam_eps=values.adam_eps,
        clip_grad=values.clip_grad,
        bf16=trainer.precision == "bf16",
        params_dtype=chunks[0].config.params_dtype,
        use_distributed_optimizer=trainer.strategy.use_distributed_optimizer,
        overlap_param_gather=trainer.strategy.overlap_param_gather,
    )
    optimizer = get_megatron_optimizer(config, chunks)
    return optimizer, _schedule(optimizer, optim, trainer)


def _schedule(optimizer: Any, optim: MegatronOptimizer, trainer: Trainer) -> OptimizerParamScheduler:
    scheduler, lr, decay = optim.lr_scheduler, optim.config.lr, optim.config.weight_decay
    decay_steps = trainer.max_steps if scheduler.decay_steps is None else scheduler.decay_steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OptimizerParamScheduler(
            optimizer,
            init_lr=0.0,
            max_lr=lr,
            min_lr=scheduler.min_lr,
            lr_warmup_steps=scheduler.warmup_steps,
            lr_decay_steps=decay_steps,
            lr_decay_style="cosine",
            start_wd=decay,
            end_wd=decay,
            wd_incr_steps=0,
            wd_incr_style="constant",
            use_checkpoint_opt_param_scheduler=False,
        )
