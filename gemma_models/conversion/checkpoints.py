"""Whole checkpoints between Hugging Face's format and Megatron's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from gemma_models.conversion.assets import say_dtype, write_assets
from gemma_models.conversion.hf_config import read_hf_config
from gemma_models.conversion.safetensors_io import dtype_of, write_hf_weights
from gemma_models.conversion.weights import hf_tensors, load_hf_weights
from gemma_models.modeling.config import transformer_config
from gemma_models.modeling.model import build_model
from gemma_models.peft.adapters import merge_adapters
from gemma_models.settings import MegatronStrategy
from gemma_models.training.checkpoints import CheckpointInfo, model_tensors, read_info
from gemma_models.training.parallel import parallel_context
from gemma_models.training.restore import load_trained
from gemma_models.training.saving import write_checkpoint
from launcher.errors import CheckpointError


def import_hf(source: Path, output: Path) -> Path:
    """See `gemma_models.api.import_checkpoint`."""
    _refuse_existing(output)
    gemma = read_hf_config(source)
    precision: Literal["bf16", "fp32"] = dtype_of(source)
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        config = transformer_config(
            gemma, MegatronStrategy(), precision=precision, accelerator="cpu", random_weights=False
        )
        model = build_model(config)
        load_hf_weights([model], source)
        output.parent.mkdir(parents=True, exist_ok=True)
        info = CheckpointInfo(gemma=gemma, precision=precision)
        write_checkpoint(output, info, model_tensors([model], adapters=False), source)
    return output


def export_hf(source: Path, output: Path, base: Path | None) -> Path:
    """See `gemma_models.api.export_checkpoint`."""
    _refuse_existing(output)
    info = read_info(source)
    with parallel_context(MegatronStrategy(), accelerator="cpu"):
        (model,), assets = load_trained(source, accelerator="cpu", precision=info.precision, base=base)
        merge_adapters(model)
        partial = output.with_name(f".{output.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            write_assets(assets, partial, info.gemma)
            say_dtype(partial, info.precision)
            write_hf_weights(partial, hf_tensors(model))
            partial.rename(output)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"could not write {output}: {error}", hint="free some space, or name another"
            ) from None
    return output


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise CheckpointError(f"{output} exists already", hint=f"remove it, or name another folder than {output.name}")
