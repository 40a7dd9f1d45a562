"""Where a run's weights come from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.hf_config import check_architecture, read_hf_config
from gemma_models.conversion.sources import checkpoint_folder, source_of
from gemma_models.conversion.weights import load_hf_weights
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.kernels import PLAIN, Kernels
from gemma_models.modeling.model import GemmaModel, build_chunks
from gemma_models.peft.adapters import apply_adapters
from gemma_models.settings import AutoResume, LoRA, MegatronStrategy, RestoreConfig
from gemma_models.training.checkpoints import CheckpointInfo, load_model, read_info, steps
from launcher.errors import CheckpointError
from launcher.worker import EXPERIMENT_ID, JOB_DIR, TASK_NAME


def run_id() -> str | None:
    """The task of an experiment that this process belongs to: a retry and a requeue keep it, another task of the same
    experiment is another run, and so is another element of an array. None without a launcher."""
    experiment = os.environ.get(EXPERIMENT_ID)
    if experiment is None:
        return None
    element = os.path.basename(os.environ.get(JOB_DIR, ""))
    parts = [experiment, os.environ.get(TASK_NAME, ""), *([element] if re.fullmatch(r"array_\d+", element) else [])]
    return "/".join(parts)


def find_resume(folder: Path, resume: AutoResume) -> Path | None:
    """The checkpoint of this very run to continue from, or None where it has none.

    Raises CheckpointError where another run's checkpoints are in the way.
    """
    found = steps(folder)
    if not found:
        return None
    step, newest = list(found.items())[-1]
    own = run_id() is not None and read_info(newest).run == run_id()
    if own or resume.resume_if_exists:
        return newest
    raise CheckpointError(
        f"{folder} holds checkpoints of another run, the newest of step {step}",
        hint="another log.name to start anew, or resume.resume_if_exists=True to continue that run",
    )


def check_agreed(newest: Path | None) -> None:
    """Raises CheckpointError, on every rank, where another one found another checkpoint to continue from: each would
    take the steps that it lacks, and wait for the others at the end."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, None if newest is None else newest.name)
    for rank, name in enumerate(found):
        if name != found[0]:
            raise CheckpointError(
                f"ranks see different checkpoints of this run: rank 0 {found[0] or 'none'}, "
                f"rank {rank} {name or 'none'}",
                hint="log.dir on a file system that all nodes share; one that shows late what another node has written "
                "does so by a later start",
            )


def base_path(resume: AutoResume) -> str | None:
    """The weights that a run starts from, as a checkpoint of adapters names them."""
    restore = resume.restore_config
    if restore is None:
        return None
    return str(source_of(restore.path) or Path(restore.path).expanduser().resolve())


def check_same_run(
    folder: Path, gemma: GemmaConfig, lora: LoRA | None, precision: str, resume: AutoResume
) -> CheckpointInfo:
    """What the checkpoint to resume is. Raises CheckpointError where the recipe now describes another model.

    Adapters go on upon the weights they were trained on; another folder is believed to be those, moved, where they are
    no longer in their own.
    """
    info = read_info(folder)
    pairs: list[tuple[str, object, object]] = [
        ("model", gemma, info.gemma),
        ("peft", lora, info.lora),
        ("trainer.precision", precision, info.precision),
    ]
    if lora is not None and info.base is not None and (source_of(info.base) or Path(info.base).is_dir()):
        pairs.append(("resume.restore_config.path", base_path(resume), info.base))
    for name, now, then in pairs:
        if now != then:
            raise CheckpointError(
                f"the run in {folder} was of another {name} than the recipe is: {then} there, {now} here",
                hint="restore the recipe's values, or start anew under another log.name",
            )
    return info


def load_base(chunks: list[GemmaModel], restore: RestoreConfig) -> None:
    """Fill the model, still without adapters, from a Megatron or a Hugging Face folder.

    Raises CheckpointError where the folder is of another architecture.
    """
    folder = checkpoint_folder(restore.path)
    if (folder / "checkpoint.json").exists():
        info = read_info(folder)
        if info.lora is not None:
            raise CheckpointError(
                f"{folder} holds adapters, which are no weights to start from",
                hint="export it first: gemma_models.export_checkpoint(source, output) merges them",
            )
        found, load = info.gemma, load_model
    else:
        found, load = read_hf_config(folder), load_hf_weights
    check_architecture(found, chunks[0].config.gemma, folder)
    load(chunks, folder)


def assets_of(resume: AutoResume) -> Path | None:
    """The folder with the tokenizer and config.json that travel with the weights a run starts from."""
    if resume.restore_config is None:
        return None
    try:
        return assets_in(checkpoint_folder(resume.restore_config.path))
    except CheckpointError as error:
        raise CheckpointError(f"resume.restore_config.path: {error.message}", hint=error.hint) from error


def architecture_in(folder: Path) -> GemmaConfig:
    """What a Megatron checkpoint or a Hugging Face folder is of."""
    return read_info(folder).gemma if (folder / "checkpoint.json").exists() else read_hf_config(folder)


def assets_in(folder: Path) -> Path:
    """Where a Megatron checkpoint or a Hugging Face folder keeps its tokenizer and config.json."""
    return folder / "hf" if (folder / "checkpoint.json").exists() else folder


def load_trained(
    folder: str | Path,
    *,
    accelerator: Literal["gpu", "cpu"],
    precision: Literal["bf16", "fp32"],
    base: str | Path | None = None,
    expected: GemmaConfig | None = None,
    strategy: MegatronStrategy | None = None,
    kernels: Kernels = PLAIN,
) -> tuple[list[GemmaModel], Path]:
    """This rank's chunks of a checkpoint's model, adapters included, and the folder with its tokenizer.

    ``folder`` is a Megatron checkpoint or a Hugging Face folder; ``base`` replaces the weights that a checkpoint of
    adapters names, where they have moved. ``expected`` is what the model must be; without it, what the checkpoint says.
    Without a ``strategy`` every rank holds the whole of it, as one chunk.
    """
    folder = checkpoint_folder(folder)
    if not (folder / "checkpoint.json").exists():
        weights, gemma, lora = folder, read_hf_config(folder), None
    else:
        info = read_info(folder)
        gemma, lora = info.gemma, info.lora
        weights = folder if lora is None else base or base_of(folder, info)
    strategy = strategy or MegatronStrategy()
    tensor_parallel = strategy.tensor_model_parallel_size
    if lora is not None and lora.dim % tensor_parallel:
        raise CheckpointError(
            f"{folder} holds adapters of rank {lora.dim}, which tensor_model_parallel_size = {tensor_parallel} does "
            "not divide",
            hint="a size that does, or export it first: gemma_models.export_checkpoint(source, output) merges them",
        )
    config = transformer_config(
        expected or gemma,
        strategy,
        precision=precision,
        accelerator=accelerator,
        random_weights=False,
        kernels=kernels,
    )
    chunks = build_chunks(config)
    load_base(chunks, RestoreConfig(path=weights))
    if lora is not None:
        apply_adapters(chunks, lora)
        load_model(chunks, folder, adapters=True)
    return [chunk.cuda() for chunk in chunks] if accelerator == "gpu" else chunks, assets_in(folder)


def base_of(folder: Path, info: CheckpointInfo) -> Path:
    """The folder with the weights that a checkpoint's adapters stand on. Raises CheckpointError where it is gone."""
    if info.base is None or not (source_of(info.base) or Path(info.base).is_dir()):
        raise CheckpointError(
            f"{folder} holds adapters of the weights in {info.base}, which are not there",
            hint="say where they are: export_checkpoint(source, output, base=FOLDER)",
        )
    return checkpoint_folder(info.base)
