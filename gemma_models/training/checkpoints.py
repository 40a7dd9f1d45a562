"""Checkpoints: a folder with Megatron's torch_dist weights, what they are, and the tokenizer that belongs to them.

    checkpoint.json   version, architecture, step, adapters and the weights they stand on, the run it belongs to
    weights/          torch_dist: the model (the adapters alone, where there are some) and, of a training run, its
                      optimizer and random states
    hf/               config.json and the tokenizer's files, as Hugging Face keeps them

A checkpoint is written beside its place and renamed into it when it is whole, so a folder that has its name is whole.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint import CheckpointException

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.assets import write_assets
from gemma_models.modeling.model import GemmaModel
from gemma_models.settings import DoRA, LoRA
from gemma_models.training.optimizer_state import load_optimizer, optimizer_tensors
from launcher.errors import CheckpointError

VERSION = 1
_STEP = re.compile(r"step_(\d{7,})$")
_ADAPTERS = {kind.__name__: kind for kind in (LoRA, DoRA)}
_Read = TypeVar("_Read")


@dataclass(kw_only=True)
class CheckpointInfo:
    """What checkpoint.json says. ``base`` is the checkpoint that ``lora``'s adapters stand on; ``run`` whose training
    it is; ``val_loss`` the validation loss of its step, in nats a token, where it was taken; ``global_batch_size`` the
    samples of a step, where the data said so; ``seed`` that of their order.

    ``files`` holds the size in bytes of each file in weights/, by which a damaged copy is known before it is read.
    """

    gemma: GemmaConfig
    precision: str
    step: int = 0
    val_loss: float | None = None
    lora: LoRA | None = None
    base: str | None = None
    run: str | None = None
    global_batch_size: int | None = None
    seed: int | None = None
    world_size: int = 1
    files: dict[str, int] = field(default_factory=dict)

    def dump(self) -> str:
        values = dataclasses.asdict(self)
        if self.lora is not None:
            values["lora"]["kind"] = type(self.lora).__name__
        return json.dumps({"version": VERSION, **values}, indent=2)


def read_info(folder: Path) -> CheckpointInfo:
    """What the checkpoint in ``folder`` is. Raises CheckpointError where there is none, or none that can be read."""
    path = folder / "checkpoint.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("version")
        if version != VERSION:
            raise CheckpointError(
                f"{path} is of version {version}, and this program reads version {VERSION}",
                hint="upgrade gemma-launcher",
            )
        gemma = GemmaConfig(**values.pop("gemma"))
        lora = values.pop("lora")
        if lora is not None:
            kind = _ADAPTERS[lora.pop("kind", "LoRA")]  # a checkpoint that does not say is older than DoRA
            lora = kind(**lora)
        return CheckpointInfo(gemma=gemma, lora=lora, **values)
    except FileNotFoundError:
        of_run = [*steps(folder / "checkpoints").values(), *steps(folder).values()]
        raise CheckpointError(
            f"there is no checkpoint in {folder}",
            hint=str(of_run[-1])
            if of_run
            else "import one first: gemma-launch import source=... output=..., or gemma_models.import_checkpoint",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}", hint="restore the folder from a copy") from None


def steps(folder: Path) -> dict[int, Path]:
    """The whole checkpoints of a run's folder by step, oldest first."""
    found = {int(match[1]): path for path in folder.glob("step_*") if (match := _STEP.search(path.name))}
    return dict(sorted(found.items()))


def complete(partial: Path, target: Path, info: CheckpointInfo, assets: Path | None) -> None:
    """Make a whole checkpoint at ``target`` of a folder beside it that has the weights/."""
    write_assets(assets, partial / "hf", info.gemma)
    sizes = {path.name: path.stat().st_size for path in (partial / "weights").iterdir()}
    whole = dataclasses.replace(info, files=sizes)
    (partial / "checkpoint.json").write_text(whole.dump(), encoding="utf-8")
    partial.rename(target)


def root_cause(error: BaseException) -> str:
    """What went wrong at the bottom. torch's CheckpointException, which is no Exception, holds it by rank."""
    while True:
        if isinstance(error, CheckpointException) and error.failures:
            error = next(iter(error.failures.values()))[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    return f"{type(error).__name__}: {error}"


def model_tensors(chunks: list[GemmaModel], *, adapters: bool) -> dict[str, Any]:
    """The model's tensors as Megatron shards them, or its adapters' alone, by chunk and name there."""
    # Layers under numbers of their own: adapters may stand on some of them alone.
    described = [chunk.sharded_state_dict(metadata={"non_homogeneous_layers": True}) for chunk in chunks]
    return {
        f"chunk{number}": {name: tensor for name, tensor in tensors.items() if not adapters or ".adapter_" in name}
        for number, tensors in enumerate(described)
    }


def load_model(chunks: list[GemmaModel], folder: Path, *, adapters: bool = False) -> None:
    """Fill the model, or its adapters alone, from a checkpoint written at any parallel layout."""
    tensors = model_tensors(chunks, adapters=adapters)
    # What Megatron's layers keep besides weights, for FP8, is of a training, and an imported checkpoint has none.
    extra = {chunk: {name: None for name in held if name.endswith("._extra_state")} for chunk, held in tensors.items()}
    weights = {
        chunk: {name: tensor for name, tensor in held.items() if name not in extra[chunk]}
        for chunk, held in tensors.items()
    }
    loaded = load_tensors(folder, weights)
    _fill(chunks, {chunk: loaded[chunk] | extra[chunk] for chunk in extra}, adapters=adapters)


def _fill(chunks: list[GemmaModel], loaded: dict[str, Any], *, adapters: bool) -> None:
    for chunk, tensors in zip(chunks, loaded.values(), strict=True):
        chunk.load_state_dict(tensors, strict=not adapters)


def load_tensors(folder: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    """Read what ``tensors`` describes. Raises CheckpointError where the files do not hold it."""

    def load(weights: Path) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dist_checkpointing.load(tensors, str(weights))

    state = check_files(folder, load)
    # Megatron also returns what it does not shard, whoever asked: a training checkpoint's optimizer settings.
    return {name: state[name] for name in tensors}


def check_files(folder: Path, read: Callable[[Path], _Read]) -> _Read:
    """What ``read`` makes of a checkpoint's weights/. Raises CheckpointError where they are not as when written."""
    hint = "restore the folder from a copy"
    for name, size in read_info(folder).files.items():
        path = folder / "weights" / name
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            raise CheckpointError(
                f"the weights in {folder} cannot be read: {name} has {found} of its {size} bytes", hint=hint
            )
    try:
        return read(folder / "weights")
    except (Exception, CheckpointException) as error:  # a dozen kinds, for a file that is not as it was written
        raise CheckpointError(f"the weights in {folder} cannot be read: {root_cause(error)}", hint=hint) from error


def training_tensors(
    chunks: list[GemmaModel], optimizer: Any, *, adapters: bool, loading: bool = False
) -> dict[str, Any]:
    """All that a run resumes from, as Megatron shards it: trained weights, optimizer, this rank's random state."""
    tensors = model_tensors(chunks, adapters=adapters)
    state = {
        "model": tensors,
        "optimizer": optimizer_tensors(optimizer, tensors, loading=loading),
        "random": ShardedObject("random", _random_state(), (dist.get_world_size(),), (dist.get_rank(),)),
    }
    return state


def restore_training(folder: Path, chunks: list[GemmaModel], optimizer: Any, *, adapters: bool) -> None:
    """Put model, optimizer and random numbers where they were when ``folder`` was written.

    Random states are one a rank: where another number of processes resumes, they start from the seed.
    """
    tensors = training_tensors(chunks, optimizer, adapters=adapters, loading=True)
    info = read_info(folder)
    if info.world_size != dist.get_world_size():
        del tensors["random"]
    loaded = load_tensors(folder, tensors)
    _fill(chunks, loaded["model"], adapters=adapters)
    load_optimizer(optimizer, loaded["optimizer"], info.step)
    if "random" in loaded:
        _set_random_state(loaded["random"])


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        # With sequence parallelism Megatron's layers, and what drops in them, draw from states of its own.
        "megatron": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
    if state.get("megatron"):  # an older checkpoint, and one of a CPU, has none
        tensor_parallel.get_cuda_rng_tracker().set_states(state["megatron"])
