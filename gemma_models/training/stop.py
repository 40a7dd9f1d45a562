"""A place that is about to end the job asks for that by a file; all ranks of a run must stop at the same step."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from launcher.worker import JOB_DIR, JobFiles, write_json


def asked_to_stop(device: torch.device) -> bool:
    """Whether the run is to save and end now, the same on every rank: rank 0 looks, and tells the others."""
    folder = os.environ.get(JOB_DIR)
    if folder is None:
        return False
    asked = dist.get_rank() == 0 and JobFiles(folder).stop.exists()
    if dist.get_world_size() == 1:
        return asked
    told = torch.tensor([asked], dtype=torch.uint8, device=device)
    dist.broadcast(told, src=0)
    return bool(told.item())


def note_saved(step: int) -> None:
    """Say that everything up to this step is saved. No rank leaves before it is said: an end may end the others."""
    if dist.get_rank() == 0:
        write_json(JobFiles(os.environ[JOB_DIR]).saved, step)
    dist.barrier()
