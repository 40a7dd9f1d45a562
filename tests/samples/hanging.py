"""Loops of a user's own, in which a rank gets stuck."""

from __future__ import annotations

import ctypes
import os
import signal
import time

from launcher.heartbeat import beat, rest


def load(step: int, how: str) -> int:
    if step == 3:
        if how == "sleep":
            time.sleep(100)
        elif how == "hold the GIL":
            ctypes.PyDLL(None).sleep(100)  # unlike CDLL, it keeps the GIL
        elif how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
    return step


def together(stuck: int, how: str) -> None:
    """Steps that the ranks take together; one gets stuck in the fourth."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for step in range(5):
        batch = torch.tensor(load(step, how if rank == stuck else ""))
        dist.all_reduce(batch)
        beat()


def unseen(stuck: int) -> None:
    """The same, where those that wait do so in no line of torch's: on a GPU, for the value."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for step in range(5):
        batch = torch.tensor(load(step, "sleep" if dist.get_rank() == stuck else ""))
        work = dist.all_reduce(batch, async_op=True)
        while not work.is_completed():
            time.sleep(0.01)
        beat()


def alone(how: str) -> None:
    for step in range(5):
        load(step, how)
        beat()


def takes_its_time(timeout: float) -> str:
    """Before its first step, over many, and after its last one, longer than a step may take."""
    time.sleep(2 * timeout)
    for _ in range(12):
        time.sleep(timeout / 4)
        beat()
    rest()
    time.sleep(2 * timeout)
    return "done"
