"""The training loop: prepare, step, validate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.assets import has_tokenizer, load_tokenizer
from gemma_models.data import Batch, DataModule
from gemma_models.data.batching import real_tokens
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.kernels import kernels_for
from gemma_models.modeling.model import GemmaModel, build_chunks
from gemma_models.peft.adapters import apply_adapters
from gemma_models.settings import AutoResume, Logger, LoRA, MegatronOptimizer, Trainer
from gemma_models.training.anomalies import Spikes, find_culprit
from gemma_models.training.boards import Board, boards
from gemma_models.training.checkpoints import (
    CheckpointInfo,
    restore_training,
    steps,
    training_tensors,
)
from gemma_models.training.metrics import MetricsWriter, peak_memory
from gemma_models.training.optimizer import build_optimizer
from gemma_models.training.parallel import parallel_context
from gemma_models.training.profiling import Profiler
from gemma_models.training.restore import assets_of, base_path, check_same_run, find_resume, load_base, run_id
from gemma_models.training.saving import Checkpoints
from gemma_models.training.steps import Stepper, first, wrap
from gemma_models.training.stop import asked_to_stop, note_saved
from launcher.errors import LaunchError
from launcher.heartbeat import beat, rest
from launcher.worker import RESUME


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
    start = 0 if newest is None else check_same_run(newest, gemma, lora, trainer.precision, resume).step

    def show() -> list[Board]:
        parts = {"model": gemma, "data": data, "trainer": trainer, "optim": optim, "peft": lora}
        described = {name: dataclasses.asdict(part) for name, part in parts.items() if dataclasses.is_dataclass(part)}
        return boards(log, start=start, settings=described)

    with (
        parallel_context(trainer.strategy, accelerator=trainer.accelerator, seed=trainer.seed) as device,
        Profiler(trainer.profile, log.folder()) as profiler,
        contextlib.ExitStack() as after,
    ):
        chunks = _prepare_model(gemma, trainer, resume, lora, resuming=newest is not None)
        ddp = wrap(chunks, trainer.strategy)
        optimizer, scheduler = build_optimizer(ddp, optim, trainer)
        if newest is not None:
            restore_training(newest, chunks, optimizer, adapters=lora is not None)
            scheduler.step(increment=start)
        # Nothing is written of a run whose weights cannot be loaded.
        metrics = after.enter_context(MetricsWriter(log, enabled=dist.get_rank() == 0, show=show))
        stepper = Stepper(ddp, optimizer, device, data.seq_length)
        dp = {
            "dp_rank": parallel_state.get_data_parallel_rank(),
            "dp_size": parallel_state.get_data_parallel_world_size(),
        }

        def validate(step: int) -> float:
            batches = data.validation_batches(**dp)
            loss, _ = stepper.validate(_beating(first(batches, trainer.limit_val_batches)))
            metrics.write(step=step, max_steps=trainer.max_steps, val_loss=loss)
            return loss

        checkpoints = Checkpoints(folder, log.ckpt, assets, device)

        def save(step: int, val_loss: float | None = None) -> None:
            info = CheckpointInfo(
                gemma=gemma,
                precision=trainer.precision,
                step=step,
                val_loss=val_loss,
                lora=lora,
                base=base_path(resume) if lora else None,
                run=run_id(),
                world_size=dist.get_world_size(),
            )
            stepper.gather()
            checkpoints.save(info, training_tensors(chunks, optimizer, adapters=lora is not None))

        spikes, anomalies = Spikes(trainer.spike_factor), folder.parent / "anomalies"
        loss = val_loss = None
        saved = start
        after.callback(rest)
        batches = data.train_batches(start_step=start, seed=trainer.seed, **dp)
        if (packed := getattr(data, "packing_efficiency", None)) is not None:
            if dist.get_rank() == 0:
                print(f"packed sequences: {packed:.1%} of their tokens are no padding", file=sys.stderr)
            metrics.write(step=start, max_steps=trainer.max_steps, packing_efficiency=packed)
        for step in range(start + 1, trainer.max_steps + 1):
            if asked_to_stop(device):
                if step - 1 > saved:
                    save(step - 1)
                checkpoints.finish()
                note_saved(step - 1)
                raise SystemExit(RESUME)
            if trainer.val_check_interval and step == 1:
                val_loss = validate(0)
                rest()  # the first step has no limit yet
            lr = optimizer.param_groups[0]["lr"]
            profiler.before(step)
            began = time.perf_counter()
            micro_batches = next(batches)
            loss, grad_norm, tokens = stepper.train(micro_batches)
            scheduler.step(increment=1)
            elapsed = time.perf_counter() - began
            profiler.after(step)
            beat()
            if not math.isfinite(loss) or not math.isfinite(grad_norm):
                checkpoints.finish()
                culprit = find_culprit(step, micro_batches, stepper.losses, data, anomalies)
                which = "the highest loss of a micro-batch" if math.isfinite(culprit.loss) else "the first"
                raise LaunchError(
                    f"step {step}: the loss is {loss} and the gradient's norm {grad_norm}; {which}: {culprit}",
                    hint="a lower optim.config.lr, or more optim.lr_scheduler.warmup_steps",
                )
            if (ratio := spikes.ratio(loss)) is not None:
                culprit = find_culprit(step, micro_batches, stepper.losses, data, anomalies)
                metrics.write(
                    step=step,
                    max_steps=trainer.max_steps,
                    spike=ratio,
                    rank=culprit.rank,
                    micro_batch=culprit.micro_batch,
                    batch=str(culprit.file),
                )
                if dist.get_rank() == 0:
                    warning = f"warning: step {step}: the loss is {loss:.4g}, {ratio:.1f} times the median before it"
                    print(f"{warning}; highest: {culprit}", file=sys.stderr)
            last = step == trainer.max_steps
            if last or step % trainer.log_every_n_steps == 0:
                metrics.write(
                    step=step,
                    max_steps=trainer.max_steps,
                    loss=loss,
                    lr=lr,
                    grad_norm=grad_norm,
                    tokens_per_second=tokens * dp["dp_size"] / elapsed,
                    real_tokens_per_second=_real_tokens(micro_batches, device) / elapsed,
                    step_time=elapsed,
                    peak_memory=peak_memory(device),
                )
            checked = trainer.val_check_interval and (last or step % trainer.val_check_interval == 0)
            if checked:
                val_loss = validate(step)
            checkpoints.look()
            every = log.ckpt.every_n_train_steps
            if last or (every and step % every == 0):
                save(step, val_loss if checked else None)
                saved = step
                beat()
        checkpoints.finish()
        # Nobody leaves while rank 0 still tidies up.
        dist.barrier()
        return TrainingResult(
            step=max(start, trainer.max_steps),
            loss=loss,
            val_loss=val_loss,
            checkpoint=str(list(steps(folder).values())[-1]),
        )


def _real_tokens(micro_batches: list[Batch], device: torch.device) -> float:
    """Those of all replicas that are no padding."""
    count = torch.tensor(float(sum(map(real_tokens, micro_batches))), device=device)
    dist.all_reduce(count, group=parallel_state.get_data_parallel_group())
    return count.item()


def _beating(batches: Iterable[Batch]) -> Iterator[Batch]:
    """However long validation takes, each batch of it shows that the rank lives."""
    for batch in batches:
        yield batch
        beat()


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
