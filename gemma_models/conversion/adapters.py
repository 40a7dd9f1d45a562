"""Adapters as Hugging Face's peft keeps them, and as we do.

Where Megatron has one layer (``linear_qkv``), Hugging Face has several (``q_proj``, ``k_proj``, ``v_proj``). On export
each of them gets its rows of B, and of a DoRA's magnitudes, and the whole of A. On import their A's become one where
they are equal, and lie one below the other where they are not: B is zero where an A is none of a row's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gemma_models.architectures import GemmaConfig
from gemma_models.conversion.mapping import Rule, hf_shapes, megatron_tensors
from gemma_models.conversion.safetensors_io import HFWeights
from gemma_models.conversion.sources import source_of
from gemma_models.conversion.torch_dist import MegatronWeights
from gemma_models.settings import DoRA, LoRA
from gemma_models.training.checkpoints import CheckpointInfo
from launcher.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
# Of peft's options, those whose meaning is ours, or that say nothing once there are tensors. Any other that has a
# value, those of a peft to come as well, means something that we have nothing for.
_KNOWN = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
          "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules",
          "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size",
          "eva_config", "init_lora_weights", "bias"}  # fmt: skip
# Other ways to begin take away from the base what the adapter begins with: it is trained on other weights.
_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
_Tensors = dict[str, torch.Tensor]


@dataclass
class Adapter:
    """On one Hugging Face layer: A (rank, in), B (out, rank), and of a DoRA the magnitudes (out)."""

    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None = None


def write_peft(folder: Path, info: CheckpointInfo, adapters: MegatronWeights) -> None:
    """Write a checkpoint's adapters into ``folder``, for ``PeftModel.from_pretrained``."""
    tensors: _Tensors = {}
    on: set[str] = set()
    for layer, parts, rule in _linears(info.gemma):
        if f"{layer}.adapter_in.weight" not in adapters.names():
            continue
        on |= set(parts)
        a = adapters.read(f"{layer}.adapter_in.weight")
        for part, b in zip(parts, rule.split(adapters.read(f"{layer}.adapter_out.weight"), info.gemma), strict=True):
            # A copy for each: safetensors refuses tensors that share memory.
            tensors |= {f"{_PREFIX}{part}{_A}": a.clone(), f"{_PREFIX}{part}{_B}": b.contiguous()}
        if isinstance(info.lora, DoRA):
            magnitudes = rule.split(adapters.read(f"{layer}.adapter_magnitude"), info.gemma)
            tensors |= {
                f"{_PREFIX}{part}{_MAGNITUDE}": m.contiguous() for part, m in zip(parts, magnitudes, strict=True)
            }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    every = {name for _, parts, _ in _linears(info.gemma) for name in parts}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "r": info.lora.dim,
        "lora_alpha": info.lora.alpha,
        "lora_dropout": info.lora.dropout,
        "use_dora": isinstance(info.lora, DoRA),
        "target_modules": _named(on, every),
        **_base_names(info.base),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_peft(folder: Path, gemma: GemmaConfig) -> tuple[LoRA, _Tensors]:
    """What an adapter folder of peft's is here: its settings, and its tensors by our names.

    Raises CheckpointError where it asks for what we do not have, or is not of this model.
    """
    config = peft_config(folder)
    weights = HFWeights(folder, WEIGHTS)
    shapes, found = hf_shapes(gemma), {name.removeprefix(_PREFIX) for name in weights.names()}
    layers = {}
    for layer, parts, rule in _linears(gemma):
        held = [_read(weights, part, shapes[f"{part}.weight"], config) for part in parts if f"{part}{_A}" in found]
        if held:
            whole = dict(zip([part for part in parts if f"{part}{_A}" in found], held, strict=True))
            layers[layer] = _fused(folder, [(whole.get(part), shapes[f"{part}.weight"]) for part in parts], rule, gemma)
            found -= {f"{part}{each}" for part in parts for each in (_A, _B, _MAGNITUDE)}
    if found or not layers:
        what = f"{sorted(found)[0]}, which is on no linear layer of this Gemma" if found else "no adapter"
        raise CheckpointError(f"{folder / WEIGHTS} holds {what}", hint="an adapter of another base, perhaps: base=...")
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    rank = max(adapter.a.shape[0] for adapter in layers.values())
    tensors: _Tensors = {}
    for layer, adapter in layers.items():
        more = rank - adapter.a.shape[0]  # rows of zeros, which add nothing
        tensors[f"{layer}.adapter_in.weight"] = torch.nn.functional.pad(adapter.a, (0, 0, 0, more))
        tensors[f"{layer}.adapter_out.weight"] = torch.nn.functional.pad(adapter.b, (0, more))
        if adapter.magnitude is not None:
            tensors[f"{layer}.adapter_magnitude"] = adapter.magnitude
    kind = DoRA if config.get("use_dora") else LoRA
    targets = _named(set(layers), {layer for layer, _, _ in _linears(gemma)})
    dropout = config.get("lora_dropout", 0.0)
    return kind(target_modules=targets, dim=rank, alpha=scale * rank, dropout=dropout), tensors


def peft_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises CheckpointError where it is none of a LoRA or DoRA that we can have."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config["peft_type"]
        if config["r"] < 1 or config["lora_alpha"] <= 0:
            raise ValueError("r and lora_alpha must be positive")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}", hint="save the adapter again with peft") from None
    if kind != "LORA":
        raise CheckpointError(f"{path} is of a {kind} adapter", hint="LORA, with use_dora or without")
    asked = [name for name in config if name not in _KNOWN and config[name]]
    if config.get("bias", "none") != "none":
        asked.append("bias")
    if config.get("init_lora_weights", True) not in _BEGINNINGS:
        asked.append("init_lora_weights")
    if asked:
        raise CheckpointError(
            f"{path} has {', '.join(f'{name} = {config[name]!r}' for name in asked)}, which adapters here have not",
            hint="merge it with peft (merge_and_unload) and import the whole model",
        )
    return config


def _linears(gemma: GemmaConfig) -> Iterator[tuple[str, tuple[str, ...], Rule]]:
    """Each linear layer of ours, the layers of Hugging Face's in it, and the row of the table."""
    for name, rule, layer in megatron_tensors(gemma):
        if ".linear_" in name:
            yield name.removesuffix(".weight"), tuple(n.removesuffix(".weight") for n in rule.hf_names(layer)), rule


def _read(weights: HFWeights, part: str, shape: tuple[int, ...], config: dict[str, Any]) -> Adapter:
    named = {each: f"{_PREFIX}{part}{each}" for each in (_A, _B, _MAGNITUDE)}
    if named[_B] not in weights.names():
        raise CheckpointError(f"{weights.folder / WEIGHTS} holds {named[_A]} and no {named[_B]}")
    a, b = weights.read(named[_A]), weights.read(named[_B])
    if a.shape[1:] != shape[1:] or b.shape[:1] != shape[:1] or a.shape[0] != b.shape[1]:
        raise CheckpointError(
            f"{named[_A]} {tuple(a.shape)} and {named[_B]} {tuple(b.shape)} are on no layer of {shape}",
            hint="an adapter of another base, perhaps: base=...",
        )
    dora = named[_MAGNITUDE] in weights.names()
    if a.shape[0] != config["r"] or dora != bool(config.get("use_dora")):
        raise CheckpointError(
            f"{weights.folder / CONFIG} says r = {config['r']} and use_dora = {config.get('use_dora', False)}, and "
            f"{WEIGHTS} has rank {a.shape[0]} and {'' if dora else 'no '}magnitudes on {part}",
            hint="save the adapter again with peft",
        )
    return Adapter(a, b, weights.read(named[_MAGNITUDE]) if dora else None)


def _fused(
    folder: Path, parts: list[tuple[Adapter | None, tuple[int, ...]]], rule: Rule, gemma: GemmaConfig
) -> Adapter:
    """One adapter that does what those on its parts do; a part that has none is added nothing to."""
    held = [adapter for adapter, _ in parts if adapter is not None]
    magnitude = None
    if any(adapter.magnitude is not None for adapter in held):
        if len(held) < len(parts):
            raise CheckpointError(
                f"{folder} is a DoRA on some of {', '.join(rule.hf)}, which are one layer here",
                hint="merge it with peft (merge_and_unload) and import the whole model",
            )
        magnitude = rule.join([adapter.magnitude for adapter in held], gemma)
    if len(held) == len(parts) and all(torch.equal(adapter.a, held[0].a) for adapter in held):
        return Adapter(held[0].a, rule.join([adapter.b for adapter in held], gemma), magnitude)
    rank, before, rows = sum(adapter.a.shape[0] for adapter in held), 0, []
    for adapter, shape in parts:
        b = torch.zeros(shape[0], rank, dtype=held[0].b.dtype)
        if adapter is not None:
            b[:, before : before + adapter.b.shape[1]] = adapter.b
            before += adapter.b.shape[1]
        rows.append(b)
    return Adapter(torch.cat([adapter.a for adapter in held]), rule.join(rows, gemma), magnitude)


def _named(some: set[str], every: set[str]) -> list[str]:
    """Layers by their last name where all that have it are among them, else in full."""
    whole = {name.rpartition(".")[2] for name in some} - {name.rpartition(".")[2] for name in every - some}
    return sorted(whole | {name for name in some if name.rpartition(".")[2] not in whole})


def _base_names(base: str | None) -> dict[str, str | None]:
    source = None if base is None else source_of(base)
    if source is not None:
        on_hub = "/" in source.name  # what was imported from a folder has that folder's name alone
        return {"base_model_name_or_path": source.name if on_hub else None, "revision": source.revision}
    whole = base is None or (Path(base) / "checkpoint.json").exists()  # of Megatron's, which peft does not read
    return {"base_model_name_or_path": None if whole else base}
