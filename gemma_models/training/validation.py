"""The validation loss of a checkpoint, by the very pass that the training loop takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

import torch.distributed as dist
from megatron.core import parallel_state

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.assets import has_tokenizer, load_tokenizer
from gemma_models.conversion.sources import checkpoint_folder
from gemma_models.data import DataModule
from gemma_models.modeling.kernels import kernels_for
from gemma_models.settings import AutoResume, Logger, Trainer
from gemma_models.training.checkpoints import steps
from gemma_models.training.metrics import MetricsWriter
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import assets_in, load_trained
from gemma_models.training.steps import Evaluator, cast, first
from launcher.errors import ConfigError
from launcher.worker import JOB_DIR


class ValidationResult(TypedDict):
    """The mean loss in nats a token, over how many tokens, and of which checkpoint."""

    val_loss: float
    tokens: int
    checkpoint: str


def measure(
    gemma: GemmaConfig, data: DataModule, trainer: Trainer, log: Logger, resume: AutoResume, tokenizer: str
) -> ValidationResult:
    """Take the loss; called in every process of the run. Raises LaunchError and its family as training does."""
    folder = _checkpoint(log, resume)
    named = tokenizer != "data"
    assets = Path(tokenizer).expanduser() if named else assets_in(folder)
    data.setup(load_tokenizer(assets) if named or has_tokenizer(assets) else None)
    data.validation_batches(dp_rank=0, dp_size=1)  # missing data is an error now, and not when the model is loaded
    with parallel_context(trainer.strategy, accelerator=trainer.accelerator, seed=trainer.seed) as device:
        chunks, _ = load_trained(
            folder,
            accelerator=trainer.accelerator,
            precision=trainer.precision,
            expected=gemma,
            strategy=trainer.strategy,
            kernels=kernels_for(gemma, trainer),
        )
        batches = data.validation_batches(
            dp_rank=parallel_state.get_data_parallel_rank(), dp_size=parallel_state.get_data_parallel_world_size()
        )
        evaluator = Evaluator(cast(chunks), device, data.seq_length)
        loss, tokens = evaluator.validate(first(batches, trainer.limit_val_batches, data))
        # Without a launcher nothing is written: the metrics in the run's own folder are those of its training.
        writes = dist.get_rank() == 0 and JOB_DIR in os.environ
        with MetricsWriter(log, enabled=writes) as metrics:
            metrics.write(val_loss=loss, tokens=tokens)
    return ValidationResult(val_loss=loss, tokens=tokens, checkpoint=str(folder.absolute()))


def _checkpoint(log: Logger, resume: AutoResume) -> Path:
    """The run's own newest with ``resume_if_exists``, else what ``restore_config`` names."""
    own = list(steps(log.folder() / "checkpoints").values()) if resume.resume_if_exists else []
    if own:
        return own[-1]
    if resume.restore_config is None:
        raise ConfigError(
            "there is nothing to validate: resume.restore_config is not set",
            hint="resume.restore_config.path=FOLDER, a Megatron or Hugging Face checkpoint",
        )
    return checkpoint_folder(resume.restore_config.path)
