"""Whole checkpoints between Hugging Face's format and Megatron's.

Tensor by tensor, from files into files: neither a model nor its weights are ever whole in memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint import CheckpointException

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.adapters import CONFIG, peft_config, read_peft, write_peft
from gemma_models.conversion.adapters import WEIGHTS as PEFT_WEIGHTS
from gemma_models.conversion.assets import say_dtype, write_assets
from gemma_models.conversion.hf_config import check_architecture, read_hf_config
from gemma_models.conversion.mapping import hf_shapes, megatron_tensors
from gemma_models.conversion.progress import progress
from gemma_models.conversion.safetensors_io import HFWeights, write_hf_weights
from gemma_models.conversion.sources import Source, checkpoint_folder, imported_folder, source_of
from gemma_models.conversion.torch_dist import MegatronWeights, Read, write_tensors
from gemma_models.training.checkpoints import CheckpointInfo, check_files, complete, read_info, root_cause
from gemma_models.training.restore import architecture_in, assets_in, base_of
from launcher.errors import CheckpointError, LaunchError

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def import_hf(source: str | Path, output: str | Path | None, base: str | Path | None = None) -> Path:
    """See `gemma_models.api.import_checkpoint`."""
    if (rank := os.environ.get("RANK", "0")) != "0":  # they would all write the same
        raise CheckpointError(
            f"an import is the work of one process, and this is rank {rank}",
            hint="gemma-launch import before the run, or in rank 0 alone",
        )
    target = Path(output).expanduser() if output is not None else _cached(source)
    refuse_existing(target, "" if output is not None else " and is what nemo:// names")
    folder = checkpoint_folder(source)
    if (folder / CONFIG).exists():
        return _import_adapters(folder, target, base)
    gemma, weights = read_hf_config(folder), HFWeights(folder)
    weights.check(hf_shapes(gemma))
    info = CheckpointInfo(gemma=gemma, precision=weights.precision)
    dtype, read = _DTYPES[info.precision], _from_hf(weights, gemma)
    shapes = megatron_shapes(gemma)
    with _written(target) as partial, progress("importing", _bytes(shapes, dtype)) as done:
        (partial / "weights").mkdir()
        write_tensors(partial / "weights", shapes, dtype, _counted(read, done))
        complete(partial, target, info, folder)
    return target


def _import_adapters(folder: Path, target: Path, base: str | Path | None) -> Path:
    config = peft_config(folder)
    named = base or config.get("base_model_name_or_path")
    if not named:
        raise CheckpointError(f"{folder} does not name the weights it stands on", hint="base=FOLDER, or hf://NAME")
    if base is None and not Path(named).is_dir():
        if Path(named).is_absolute():
            raise CheckpointError(
                f"{folder} stands on the weights in {named}, which are not there", hint="base=FOLDER, or hf://NAME"
            )
        named = str(Source("hf", named, config.get("revision")))
    under = checkpoint_folder(named)
    gemma = architecture_in(under)
    lora, tensors = read_peft(folder, gemma)
    # In the adapters' own dtype, and their base with them.
    info = CheckpointInfo(
        gemma=gemma,
        precision=HFWeights(folder, PEFT_WEIGHTS).precision,
        lora=lora,
        base=str(source_of(named) or Path(named).expanduser().resolve()),
    )
    with _written(target) as partial:
        (partial / "weights").mkdir()
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        write_tensors(partial / "weights", shapes, _DTYPES[info.precision], tensors.__getitem__)
        complete(partial, target, info, assets_in(under))
    return target


def export_peft(source: str | Path, output: Path) -> Path:
    """See `gemma_models.api.export_checkpoint`, with ``adapter``."""
    refuse_existing(output)
    folder = checkpoint_folder(source)
    info = read_info(folder)
    if info.lora is None:
        raise CheckpointError(f"{folder} holds whole weights, and no adapters", hint="export it without adapter=true")
    adapters = check_files(folder, MegatronWeights)
    with _written(output) as partial:
        write_peft(partial, info, adapters)
        partial.rename(output)
    return output


def export_hf(source: str | Path, output: Path, base: str | Path | None) -> Path:
    """See `gemma_models.api.export_checkpoint`."""
    refuse_existing(output)
    folder = checkpoint_folder(source)
    info = read_info(folder)
    gemma, dtype, shapes = info.gemma, _DTYPES[info.precision], hf_shapes(info.gemma)
    read = weights_of(folder, gemma) if info.lora is None else _merged(folder, info, base)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, rule, layer in megatron_tensors(gemma):
            tensor = read(name).to(dtype)
            done(tensor.nbytes)
            yield from zip(rule.hf_names(layer), rule.split(tensor, gemma), strict=True)

    with _written(output) as partial, progress("exporting", _bytes(shapes, dtype)) as done:
        write_assets(assets_in(folder), partial, gemma)
        say_dtype(partial, info.precision)
        write_hf_weights(partial, shapes, dtype, tensors())
        partial.rename(output)
    return output


def megatron_shapes(gemma: GemmaConfig) -> dict[str, torch.Size]:
    """The shape of every tensor that a Megatron checkpoint of this model holds, its vocabulary not padded."""
    parts = {name: torch.empty(shape, device="meta") for name, shape in hf_shapes(gemma).items()}
    return {
        name: rule.join([parts[part] for part in rule.hf_names(layer)], gemma).shape
        for name, rule, layer in megatron_tensors(gemma)
    }


def weights_of(folder: Path, gemma: GemmaConfig) -> Read:
    """Whole tensors by Megatron's names, from a folder of either format. Raises CheckpointError where it is of another
    architecture, or not whole."""
    if not (folder / "checkpoint.json").exists():
        check_architecture(read_hf_config(folder), gemma, folder)
        weights = HFWeights(folder)
        weights.check(hf_shapes(gemma))
        return _from_hf(weights, gemma)
    info = read_info(folder)
    if info.lora is not None:
        raise CheckpointError(
            f"{folder} holds adapters, which are no weights for others to stand on", hint=f"base={info.base}"
        )
    check_architecture(info.gemma, gemma, folder)
    return _from_megatron(folder, gemma)


def _from_hf(weights: HFWeights, gemma: GemmaConfig) -> Read:
    parts = {name: (rule, rule.hf_names(layer)) for name, rule, layer in megatron_tensors(gemma)}

    def read(name: str) -> torch.Tensor:
        rule, names = parts[name]
        return rule.join([weights.read(part) for part in names], gemma)

    return read


def _from_megatron(folder: Path, gemma: GemmaConfig) -> Read:
    weights, shapes = check_files(folder, MegatronWeights), megatron_shapes(gemma)

    def read(name: str) -> torch.Tensor:
        # Rows that pad the vocabulary to what tensor parallelism divides are nobody's.
        return weights.read(name)[: shapes[name][0]]

    return read


def _merged(folder: Path, info: CheckpointInfo, base: str | Path | None) -> Read:
    """The tensors of adapters' base, with the adapters in them."""
    under = weights_of(checkpoint_folder(base) if base is not None else base_of(folder, info), info.gemma)
    adapters = check_files(folder, MegatronWeights)
    names, dtype, scale = adapters.names(), _DTYPES[info.precision], info.lora.alpha / info.lora.dim

    def read(name: str) -> torch.Tensor:
        weight, layer = under(name).to(dtype), name.removesuffix(".weight")
        if f"{layer}.adapter_in.weight" not in names:
            return weight
        a, b = (adapters.read(f"{layer}.{part}.weight").float() for part in ("adapter_in", "adapter_out"))
        # As `LoRALinear.weight` and `DoRALinear.weight` have it of a model.
        weight = torch.addmm(weight.float(), b, a, alpha=scale)
        if f"{layer}.adapter_magnitude" in names:
            weight *= (adapters.read(f"{layer}.adapter_magnitude").float() / weight.norm(dim=1))[:, None]
        return weight

    return read


def _cached(source: str | Path) -> Path:
    """Where what is imported without an output is kept."""
    named = source_of(source)
    if named is None:
        name = Path(source).expanduser().absolute().name
        try:
            named = source_of(f"nemo://{name}")
        except CheckpointError:
            raise CheckpointError(f"nemo:// cannot name a folder {name!r}", hint="output=FOLDER") from None
    return imported_folder(named)


def refuse_existing(output: Path, more: str = "") -> None:
    """Raises CheckpointError where something stands at ``output``."""
    if output.exists():
        raise CheckpointError(
            f"{output} exists already{more}", hint=f"remove it, or name another folder than {output.name}"
        )


@contextlib.contextmanager
def _written(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` to write in, which is gone if that fails."""
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
    except LaunchError:
        raise
    except (OSError, RuntimeError, CheckpointException) as error:
        raise CheckpointError(
            f"could not write {output}: {root_cause(error)}", hint="free some space, or name another folder"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _counted(read: Read, done: Callable[[int], None]) -> Read:
    def counted(name: str) -> torch.Tensor:
        tensor = read(name)
        done(tensor.nbytes)
        return tensor

    return counted


def _bytes(shapes: dict[str, torch.Size], dtype: torch.dtype) -> int:
    return dtype.itemsize * sum(torch.Size(shape).numel() for shape in shapes.values())
