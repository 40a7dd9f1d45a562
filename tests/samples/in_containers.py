"""Tasks for containers; and a launch script that tests start in a process of its own: IMAGE SECONDS [detach]."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import launcher as run


def work(seconds: float) -> dict[str, Any]:
    """What a rank is."""
    print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", flush=True)
    time.sleep(seconds)
    return {"world": int(os.environ["WORLD_SIZE"]), "user": os.getuid(), "folder": os.getcwd()}


def fail_on(rank: int) -> None:
    if int(os.environ["RANK"]) == rank:
        raise ValueError(f"rank {rank} is broken")
    time.sleep(60)


def fill_memory_on(rank: int) -> None:
    if int(os.environ["RANK"]) == rank:
        filled = bytearray(2**30)
        print(len(filled))
    time.sleep(60)


def killed_on(rank: int) -> None:
    if int(os.environ["RANK"]) == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def fail_first() -> str:
    """In its first attempt, that is: each has a folder of its own."""
    if os.environ["GEMMA_LAUNCHER_JOB_DIR"].endswith(".2"):
        return os.environ["HF_TOKEN"][::-1]
    raise RuntimeError("not yet")


def all_reduce() -> list[float]:
    """The sum of all ranks, as each has it."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, total.item())
    dist.destroy_process_group()
    return found


def main(image: str, seconds: str, *flags: str) -> None:
    executor = run.DockerExecutor(container_image=image, env_vars={"HF_TOKEN": "hf_secret"})
    with run.Experiment("in containers") as experiment:
        first = experiment.add(run.Partial(work, float(seconds)), executor=executor, name="first")
        experiment.add(run.Partial(work, 0.0), executor=executor, name="second", dependencies=[first])
        experiment.run(detach="detach" in flags, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
