"""Texts from models that are spread over four processes, in one start of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_models.settings import MegatronStrategy

PROMPTS = [[5, 9, 200, 31], [7] * 3 + list(range(40, 80)), [11, 12]]
NEW = 16


def layouts() -> dict[str, MegatronStrategy]:
    """Of four processes; the last has stages of different lengths."""
    return {
        "tp4": MegatronStrategy(tensor_model_parallel_size=4),
        "tp2 pp2 uneven": MegatronStrategy(
            tensor_model_parallel_size=2, pipeline_model_parallel_size=2, pipeline_model_parallel_layout=[5, 2]
        ),
    }


def decoded(folder: Path, strategy: MegatronStrategy) -> dict[str, Any]:
    """What every kind of sampling says."""
    import torch

    from gemma_models.generation.decode import decode
    from gemma_models.generation.sampling import Sampling
    from gemma_models.training.parallel import parallel_context
    from gemma_models.training.restore import load_trained

    torch.set_num_threads(1)
    with parallel_context(strategy, accelerator="cpu"):
        (model,), _ = load_trained(folder, accelerator="cpu", precision="fp32", strategy=strategy)
        return {
            name: decode(model, PROMPTS, max_new_tokens=NEW, stop=set(), sampling=sampling)
            for name, sampling in {
                "greedy": Sampling(),
                "sampled": Sampling(temperature=1.2, top_k=40, top_p=0.9, seed=2),
            }.items()
        }


def everywhere(folders: list[Path], saved: Path) -> dict[str, Any]:
    """By layout, what each folder's model says on this rank; one of them is written as a checkpoint, too."""
    import torch.distributed as dist

    from gemma_models.training.checkpoints import CheckpointInfo, model_tensors
    from gemma_models.training.parallel import parallel_context
    from gemma_models.training.restore import architecture_in, load_trained
    from gemma_models.training.saving import write_checkpoint

    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for name, strategy in layouts().items():
        answers = [decoded(folder, strategy) for folder in folders]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, answers)
        assert all(each == answers for each in everyone), "every rank has the same answers"
        found[name] = answers
    for folder in folders:
        strategy = layouts()["tp2 pp2 uneven"]
        with parallel_context(strategy, accelerator="cpu"):
            chunks, _ = load_trained(folder, accelerator="cpu", precision="fp32", strategy=strategy)
            info = CheckpointInfo(gemma=architecture_in(folder), precision="fp32")
            write_checkpoint(saved / folder.name, info, model_tensors(chunks, adapters=False), None)
    return found
