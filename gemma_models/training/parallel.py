"""The processes of a run: their device, process groups and random seeds."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from gemma_models.modeling.cpu import megatron_on_cpu
from gemma_models.settings import MegatronStrategy
from launcher.errors import LaunchError
from launcher.worker import STEP_TIMEOUT


@contextlib.contextmanager
def parallel_context(
    strategy: MegatronStrategy, *, accelerator: Literal["gpu", "cpu"], seed: int = 1234
) -> Iterator[torch.device]:
    """Set up this process as one rank of the run, and take everything down again.

    The rank comes from the environment that torchrun or an executor sets; without one, this process is the only rank.
    Process groups that stand already (a notebook, a test) are used as they are and left standing.

    Raises LaunchError without a GPU where one was asked for.
    """
    with contextlib.ExitStack() as stack:
        if accelerator == "cpu":
            stack.enter_context(megatron_on_cpu())
            device = torch.device("cpu")
        else:
            if not torch.cuda.is_available():
                raise LaunchError(
                    "the accelerator is 'gpu', but torch sees no GPU in this process",
                    hint="run on a machine with a GPU, or choose the CPU: trainer.accelerator=cpu of a recipe, "
                    "accelerator='cpu' of generate",
                )
            # Where each process is shown a GPU of its own (Slurm's gpus_per_task), that is number 0 for all of them.
            local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if 1 < count <= local:
                raise LaunchError(
                    f"this is process {local} of its node, counted from 0, and torch sees {count} GPUs there",
                    hint=f"trainer.devices={count} and ntasks_per_node={count}, or torchrun --nproc-per-node={count}",
                )
            device = torch.device("cuda", local if count > 1 else 0)
            torch.cuda.set_device(device)
            # A step can be recorded on any stream but the default one, if all that it touches was made on it.
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream(device)))
        if not dist.is_initialized():
            gc.collect()  # an earlier run's model lies in cycles, and with it its groups' sockets and its memory
            _initialise_process_group(accelerator, device)
            stack.callback(dist.destroy_process_group)
        else:
            stack.callback(_destroy_groups, set(dist.distributed_c10d._world.pg_map))
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=strategy.tensor_model_parallel_size,
                pipeline_model_parallel_size=strategy.pipeline_model_parallel_size,
                virtual_pipeline_model_parallel_size=strategy.virtual_pipeline_model_parallel_size,
                context_parallel_size=strategy.context_parallel_size,
                distributed_timeout_minutes=_timeout() / timedelta(minutes=1),
            )
            stack.callback(parallel_state.destroy_model_parallel)
        else:
            _check_standing(strategy)
        _seed(seed, accelerator)
        yield device


def _check_standing(strategy: MegatronStrategy) -> None:
    """Raises LaunchError where the groups that stand are of another layout: the model would be cut by these."""
    standing = {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size(),
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
    }
    for name, size in standing.items():
        if (asked := getattr(strategy, name)) != size:
            raise LaunchError(
                f"{name} is {asked}, and the process groups that stand here already were made with {size}",
                hint=f"{name}={size}, or megatron.core.parallel_state.destroy_model_parallel() first",
            )


def _destroy_groups(before: set[dist.ProcessGroup]) -> None:
    """Take down what was made since: Megatron forgets its groups, which keep their threads and their sockets."""
    gc.collect()  # models lie in cycles, and hold on to what they sent by
    made = set(dist.distributed_c10d._world.pg_map) - before
    for group in sorted(made, key=lambda group: group.group_name):  # in the same order on every rank
        dist.destroy_process_group(group)


def _timeout() -> timedelta:
    """How long a collective waits. A hang is for the heartbeat to end, which says where: it must come first."""
    return max(timedelta(minutes=30), timedelta(minutes=10 + float(os.environ.get(STEP_TIMEOUT) or 0)))


def _initialise_process_group(accelerator: str, device: torch.device) -> None:
    timeout = _timeout()
    backend = "gloo" if accelerator == "cpu" else "nccl"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout, device_id=device if accelerator == "gpu" else None)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def _seed(seed: int, accelerator: str) -> None:
    # Stages draw different numbers; tensor-parallel ranks share theirs but for what Megatron's tracker forks.
    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(seed)
    torch.manual_seed(seed)
    if accelerator == "gpu":
        tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    else:  # the tracker of a model without dropout: it forks nothing, where there is no GPU to have states
        tensor_parallel.random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
