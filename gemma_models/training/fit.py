"""A run of training: what it starts from is prepared, and its loop is run."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TypedDict

import torch.distributed as dist

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.assets import has_tokenizer, load_tokenizer
from gemma_models.data import DataModule
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.kernels import kernels_for
from gemma_models.modeling.model import GemmaModel, build_chunks
from gemma_models.peft.adapters import apply_adapters
from gemma_models.settings import AutoResume, Logger, LoRA, MegatronOptimizer, Trainer
from gemma_models.training.boards import Board, boards
from gemma_models.training.checkpoints import CheckpointInfo, restore_training, steps
from gemma_models.training.loop import Loop
from gemma_models.training.metrics import MetricsWriter
from gemma_models.training.optimizer import build_optimizer
from gemma_models.training.parallel import parallel_context
from gemma_models.training.profiling import Profiler
from gemma_models.training.restore import (
    assets_of,
    base_path,
    check_agreed,
    check_same_run,
    find_resume,
    load_base,
    run_id,
)
from gemma_models.training.saving import Checkpoints
from gemma_models.training.steps import Stepper, wrap
from launcher.heartbeat import rest


class TrainingResult(TypedDict):
    """What a run comes to: its last step, the losses there in nats a token, and its newest checkpoint."""

    step: int
    loss: float | None
    val_loss: float | None
    checkpoint: str


def fit(
    gemma: GemmaConfig,
    data: DataModule,
    trainer: Trainer,
    optim: MegatronOptimizer,
    log: Logger,
    resume: AutoResume,
    lora: LoRA | None,
    tokenizer: str,
) -> TrainingResult:
    """Train; called in every process of the run. Raises LaunchError where the loss stops being a number, and
    SystemExit(RESUME) where the run was asked to stop and has saved."""
    assets = assets_of(resume) if tokenizer == "data" else Path(tokenizer).expanduser()
    # Data that is not text needs no tokenizer, and random weights come without one: the data module says if it does.
    named = tokenizer != "data"  # a tokenizer that was asked for is there, or an error
    data.setup(load_tokenizer(assets) if assets is not None and (named or has_tokenizer(assets)) else None)
    if trainer.val_check_interval:
        data.validation_batches(dp_rank=0, dp_size=1)  # missing data is an error now, and not when the model is loaded
    folder = log.folder().absolute() / "checkpoints"  # a result is read from other folders, too
    newest = find_resume(folder, resume)
    before = None if newest is None else check_same_run(newest, gemma, lora, trainer.precision, resume)
    start = 0 if before is None else before.step
    samples = getattr(data, "global_batch_size", None)  # of a step

    def show() -> list[Board]:
        parts = {"model": gemma, "data": data, "trainer": trainer, "optim": optim, "peft": lora}
        described = {name: dataclasses.asdict(part) for name, part in parts.items() if dataclasses.is_dataclass(part)}
        return boards(log, start=start, settings=described)

    with (
        parallel_context(trainer.strategy, accelerator=trainer.accelerator, seed=trainer.seed) as device,
        Profiler(trainer.profile, log.folder()) as profiler,
        contextlib.ExitStack() as after,
    ):
        check_agreed(newest)
        chunks = _prepare_model(gemma, trainer, resume, lora, resuming=newest is not None)
        ddp = wrap(chunks, trainer.strategy)
        optimizer, scheduler = build_optimizer(ddp, optim, trainer)
        if newest is not None:
            restore_training(newest, chunks, optimizer, adapters=lora is not None)
            scheduler.step(increment=start)
            if dist.get_rank() == 0:
                _say_other_order(before, samples, trainer.seed)
                if start >= trainer.max_steps:
                    print(f"nothing is left to train: step {start} of {trainer.max_steps} is saved", file=sys.stderr)
        elif resume.resume_if_exists and dist.get_rank() == 0:
            print(f"{folder} has no checkpoint to go on from: the run starts at its beginning", file=sys.stderr)
        info = CheckpointInfo(
            gemma=gemma,
            precision=trainer.precision,
            lora=lora,
            base=base_path(resume) if lora else None,
            run=run_id(),
            global_batch_size=samples,
            seed=trainer.seed,
            world_size=dist.get_world_size(),
        )
        loop = Loop(
            data=data,
            trainer=trainer,
            info=info,
            chunks=chunks,
            optimizer=optimizer,
            scheduler=scheduler,
            stepper=Stepper(ddp, optimizer, device, data.seq_length),
            checkpoints=Checkpoints(folder, log.ckpt, assets, device),
            profiler=profiler,
            # Nothing is written of a run whose weights cannot be loaded.
            metrics=after.enter_context(MetricsWriter(log, enabled=dist.get_rank() == 0, show=show)),
        )
        after.callback(rest)
        loop.run(start)
        # Nobody leaves while rank 0 still tidies up.
        dist.barrier()
        return TrainingResult(
            step=max(start, trainer.max_steps),
            loss=loop.loss,
            val_loss=loop.val_loss,
            checkpoint=str(list(steps(folder).values())[-1]),
        )


def _say_other_order(before: CheckpointInfo, samples: int | None, seed: int) -> None:
    """Samples come in the seed's order, and a step begins with number step * global_batch_size of it: another seed, or
    another size, leaves some out, and takes some twice."""
    if before.seed not in (None, seed):
        print(
            f"trainer.seed is {seed}, and was {before.seed} up to step {before.step}: samples come in another order",
            file=sys.stderr,
        )
    then = before.global_batch_size
    if None not in (samples, then) and samples != then:
        print(
            f"data.global_batch_size is {samples}, and was {then} up to step {before.step}: of the order of samples, "
            f"{before.step * then:,} were taken, and the run goes on with number {before.step * samples:,}",
            file=sys.stderr,
        )


def _prepare_model(
    gemma: GemmaConfig, trainer: Trainer, resume: AutoResume, lora: LoRA | None, *, resuming: bool
) -> list[GemmaModel]:
    """This rank's chunks of the model, with the weights it starts from and its adapters; a resumed run brings its own
    of these."""
    kernels = kernels_for(gemma, trainer)
    if dist.get_rank() == 0:
        chains = "fused" if kernels.fused else "as they are"
        print(f"attention: {kernels.attention}; elementwise chains {chains}", file=sys.stderr)
    config = transformer_config(
        gemma,
        trainer.strategy,
        precision=trainer.precision,
        accelerator=trainer.accelerator,
        random_weights=resume.restore_config is None,
        kernels=kernels,
        recompute=trainer.recompute_granularity,
    )
    chunks = build_chunks(config)
    if resume.restore_config is not None and (lora is not None or not resuming):
        load_base(chunks, resume.restore_config)
    if lora is not None:
        apply_adapters(chunks, lora)
    return [chunk.cuda() for chunk in chunks] if trainer.accelerator == "gpu" else chunks
