"""Low-rank adapters (LoRA, arXiv:2106.09685) on Megatron's parallel linear layers."""

from __future__ import annotations

import copy
import fnmatch
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.module import MegatronModule

from gemma_models.layout import check_adapters
from gemma_models.settings import LoRA
from launcher.errors import ConfigError


class LoRALinear(MegatronModule):
    """A frozen linear layer and the adapter ``scale * B A x`` that is added to what it returns.

    A is split over the tensor-parallel ranks as the layer's input is, B as its output. In a checkpoint the layer keeps
    the names it had without an adapter; the adapter's are ``<layer>.adapter_in.weight`` (A, of shape (dim, in)) and
    ``<layer>.adapter_out.weight`` (B, of shape (out, dim)).
    """

    def __init__(self, base: ColumnParallelLinear | RowParallelLinear, lora: LoRA, *, gated: bool) -> None:
        config: TransformerConfig = copy.copy(base.config)
        config.perform_initialization = True  # also on a base whose weights were loaded
        super().__init__(config=config)
        self.base = base
        self.gated = gated
        self.scale = lora.alpha / lora.dim
        self.dropout = torch.nn.Dropout(lora.dropout)
        options = {"config": config, "bias": False, "skip_bias_add": True}
        if isinstance(base, RowParallelLinear):
            self.adapter_in = RowParallelLinear(
                base.input_size, lora.dim, input_is_parallel=True, init_method=torch.nn.init.xavier_normal_, **options
            )
        else:
            self.adapter_in = ColumnParallelLinear(
                base.input_size, lora.dim, gather_output=True, init_method=torch.nn.init.xavier_normal_, **options
            )
        self.adapter_out = ColumnParallelLinear(
            lora.dim,
            base.output_size,
            gather_output=isinstance(base, RowParallelLinear),
            init_method=torch.nn.init.zeros_,
            **options,
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, bias = self.base(x)
        low, _ = self.adapter_in(self.dropout(x))
        delta, _ = self.adapter_out(low)
        return output + self.scale * delta, bias

    @torch.no_grad()
    def merged(self) -> ColumnParallelLinear | RowParallelLinear:
        """The layer with ``scale * B A`` added to its weight, computed in float32; on a single tensor-parallel rank."""
        delta = self.adapter_out.weight.float() @ self.adapter_in.weight.float()
        self.base.weight.copy_(self.base.weight.float() + self.scale * delta)
        return self.base

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        state = self.base.sharded_state_dict(prefix, sharded_offsets, metadata)
        for name in ("adapter_in", "adapter_out"):
            state |= getattr(self, name).sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
        if self.gated:  # a rank's rows of B are [gate_i; up_i], as the layer's own are
            key = f"{prefix}adapter_out.weight"
            state[key] = apply_swiglu_sharded_factory(state[key], sharded_offsets)
        return state


def apply_lora(model: torch.nn.Module, lora: LoRA) -> None:
    """Freeze the model and put an adapter on every linear layer that ``lora.target_modules`` names.

    Raises ConfigError where a target matches nothing, or where the adapter cannot be split as the layer is.
    """
    check_adapters(lora)
    for parameter in model.parameters():
        parameter.requires_grad = False
    unmatched = set(lora.target_modules)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, ColumnParallelLinear | RowParallelLinear) and name != "output_layer"
    }
    tensor_parallel = parallel_state.get_tensor_model_parallel_world_size()
    if lora.dim % tensor_parallel:
        raise ConfigError(
            f"peft.dim = {lora.dim} is not a multiple of trainer.strategy.tensor_model_parallel_size = "
            f"{tensor_parallel}",
            hint=f"peft.dim={-(-lora.dim // tensor_parallel) * tensor_parallel}",
        )
    for name, linear in linears.items():
        matching = {target for target in lora.target_modules if matches(target, name)}
        unmatched -= matching
        if matching:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, LoRALinear(linear, lora, gated=last == "linear_fc1"))
    if unmatched:
        kinds = sorted({name.rpartition(".")[2] for name in linears})
        raise ConfigError(
            f"peft.target_modules: {', '.join(sorted(unmatched))} matches no linear layer",
            hint=f"name some of {', '.join(kinds)}, or wildcards over full names as in '*.layers.0.*.{kinds[0]}'",
        )


def matches(target: str, name: str) -> bool:
    """Whether a target (a layer's last name, or a wildcard over its full one) means the layer of this full name."""
    return fnmatch.fnmatchcase(name, target) or name.rpartition(".")[2] == target


def merge_lora(model: torch.nn.Module) -> None:
    """Fold every adapter into the weight that it stands on, and take it away."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.merged())
