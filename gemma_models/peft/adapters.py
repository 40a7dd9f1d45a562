"""Adapters put on a model's linear layers, and folded into them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from gemma_models.checks import check_adapters
from gemma_models.peft.dora import DoRALinear
from gemma_models.peft.lora import LoRALinear, splits_output
from gemma_models.settings import DoRA, LoRA
from launcher.errors import ConfigError


def apply_adapters(chunks: Sequence[torch.nn.Module], peft: LoRA) -> None:
    """Freeze this rank's chunks of the model and put an adapter, LoRA or DoRA, on every linear layer that
    ``peft.target_modules`` names; every rank calls it.

    Raises ConfigError where a target matches nothing, or where the adapter cannot be split as the layer is.
    """
    check_adapters(peft, parallel_state.get_tensor_model_parallel_world_size())
    kind = DoRALinear if isinstance(peft, DoRA) else LoRALinear
    matched, kinds = set[str](), set[str]()
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.requires_grad = False
        for path, name, linear in list(_linears(chunk)):
            parent, _, last = path.rpartition(".")
            kinds.add(last)
            if matching := {target for target in peft.target_modules if matches(target, name)}:
                matched |= matching
                setattr(chunk.get_submodule(parent), last, kind(linear, peft, gated=last == "linear_fc1"))
    if unmatched := set(peft.target_modules) - _on_any_stage(matched):
        names = sorted(_on_any_stage(kinds))
        raise ConfigError(
            f"peft.target_modules: {', '.join(sorted(unmatched))} matches no linear layer",
            hint=f"name some of {', '.join(names)}, or wildcards over full names as in '*.layers.0.*.{names[0]}'",
        )


def _linears(chunk: torch.nn.Module) -> Iterator[tuple[str, str, ColumnParallelLinear | RowParallelLinear]]:
    """Each linear layer with its path here, and its name in the whole model, where layers are counted over stages."""
    for path, module in chunk.named_modules():
        if splits_output(module) is not None and path != "output_layer":
            layer = re.match(r"decoder\.layers\.\d+", path)
            number = chunk.get_submodule(layer[0]).layer_number - 1
            yield path, f"decoder.layers.{number}{path[layer.end() :]}", module


def _on_any_stage(names: set[str]) -> set[str]:
    group = parallel_state.get_pipeline_model_parallel_group()
    found: list[set[str]] = [set()] * group.size()
    torch.distributed.all_gather_object(found, names, group=group)
    return set[str]().union(*found)


def matches(target: str, name: str) -> bool:
    """Whether a target (a layer's last name, or a wildcard over its full one) means the layer of this full name."""
    return fnmatch.fnmatchcase(name, target) or name.rpartition(".")[2] == target


def merge_adapters(model: torch.nn.Module) -> None:
    """Fold every adapter into the weight that it stands on, and take it away; every rank calls it."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.merged())
