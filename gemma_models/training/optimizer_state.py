"""The optimizer's part of a checkpoint: the same tensors under the same names, whether a rank keeps the state of all
its parameters or, with the distributed optimizer, a part of it.

So either goes on from the other's checkpoint, at any layout. What is saved is the count of steps, Adam's moments and,
of weights in bfloat16, the float32 masters; rates and decays are the recipe's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_LAYOUT = {
    "chained_optim_avoid_prefix": True,
    "distrib_optim_sharding_type": "fully_reshardable",
    # Gathered over the data-parallel ranks on the first of them alone, in its machine's memory.
    "distrib_optim_fully_reshardable_mem_efficient": True,
}


def optimizer_tensors(optimizer: MegatronOptimizer, model: dict[str, Any], *, loading: bool) -> dict[str, Any]:
    """The optimizer's state, sharded as the tensors of the ``model`` are that it belongs to; every rank calls it."""
    part = _only_part(optimizer)
    if loading:
        _begin(part)
    shared = isinstance(part, DistributedOptimizer) and isinstance(part.optimizer, torch.optim.AdamW)
    if shared and not part.optimizer.state:
        # Megatron reads a count of steps there, and a stage may have nothing that trains: adapters on others' layers.
        part.optimizer.state["no parameter"] = {"step": torch.tensor(0.0)}
    state: dict[str, Any] = part.sharded_state_dict(model, is_loading=loading, metadata=_LAYOUT)
    if not isinstance(part, DistributedOptimizer):
        return state
    if state["param_state"] is not None:
        masters = part.config.bf16
        state["param_state"] = {
            number: {name: _named(tensor) for name, tensor in tensors.items() if name != "param" or masters}
            for number, tensors in state["param_state"].items()
        }
    elif not loading:
        # None, where the first rank writes it all: Megatron warns of what is not sharded and not the same on all ranks.
        del state["param_state"]
    return state


def load_optimizer(optimizer: MegatronOptimizer, loaded: dict[str, Any], step: int) -> None:
    """Put back what `optimizer_tensors` described, after the model's weights are; ``step`` is how many were taken.

    The state tells as well, but of rank 0, which may have none that trains.
    """
    part = _only_part(optimizer)
    inner = part.optimizer
    common = loaded.get("optimizer", loaded)  # in float32 Megatron does not nest it
    state = loaded["state"] if "state" in loaded else common.get("state", {})
    state.pop("common_step", None)
    if isinstance(part, DistributedOptimizer):
        own = part.state_dict()
        for group in own["optimizer"]["param_groups"]:
            group["step"] = step
        part.load_state_dict(own)
        for kept in inner.state.values():
            kept.pop("step", None)  # no tensor of the checkpoint, as Megatron takes everything here for
        part.load_parameter_state_from_fully_reshardable(_with_weights(part, loaded["param_state"]))
    else:
        counted = {"common_step": torch.tensor(float(step))} if isinstance(inner, torch.optim.AdamW) else {}
        nested = {"state": state | counted, "param_groups": inner.state_dict()["param_groups"]}
        part.load_state_dict({**loaded, "optimizer": nested} if part.config.bf16 else nested)
    _count_from(inner, step)


def _only_part(optimizer: MegatronOptimizer) -> Any:
    """Megatron chains an optimizer for experts to that of all other parameters; Gemma has none."""
    (part,) = getattr(optimizer, "chained_optimizers", [optimizer])
    return part


def _named(tensor: Any) -> Any:
    return replace(tensor, key=tensor.key.replace("optimizer.state.param.", "optimizer.state.fp32_param.", 1))


def _with_weights(part: DistributedOptimizer, tensors: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Float32 weights are their own masters, which are there already."""
    if part.config.bf16:
        return tensors
    weights = [weight for buffer in part.buffers for weight in buffer.param_index_map]
    return {number: {**state, "param": weights[number].detach()} for number, state in tensors.items()}


def _begin(part: Any) -> None:
    """torch's AdamW has no state before its first step, and Megatron asks it for one."""
    part.init_state_fn(part.optimizer, part.config)
    _count_from(part.optimizer, 0)


def _count_from(inner: torch.optim.Optimizer, step: int) -> None:
    """torch's AdamW counts steps in a tensor of each parameter's own; Transformer Engine's in the group."""
    if isinstance(inner, torch.optim.AdamW):
        for kept in inner.state.values():
            kept["step"] = torch.tensor(float(step))
    else:
        for group in inner.param_groups:
            group["step"] = step
