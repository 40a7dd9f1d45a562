"""Tasks and dataclasses that tests configure here and run in other processes."""

from __future__ import annotations

import enum
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DEADLINE = 20  # seconds after which a task that nobody ended gives up, so that a broken launcher fails its test


class Precision(enum.Enum):
    BF16 = "bf16"
    FP32 = "fp32"


@dataclass(kw_only=True)
class Schedule:
    warmup_steps: int = 10
    min_lr: float = 0.0


@dataclass(kw_only=True)
class Optimizer:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(kw_only=True)
class Trainer:
    max_steps: int = 100
    folder: Path | None = None
    precision: Precision = Precision.BF16
    accelerator: Literal["cpu", "gpu"] = "gpu"
    modules: list[str] = field(default_factory=lambda: ["linear_qkv"])
    extra: dict[str, int] = field(default_factory=dict)


def train(
    trainer: Trainer,
    optim: Optimizer = Optimizer(),  # noqa: B008
    *,
    shared: Any = None,
    scale: float = 1.0,
) -> dict[str, Any]:
    """What it was given, as JSON can hold it."""
    return {"max_steps": trainer.max_steps, "lr": optim.lr, "same": shared is trainer, "scale": scale}


class Opaque:
    """Something alive: no configuration can hold it."""


def anything(*args: Any, **kwargs: Any) -> list[Any]:
    return [*args, *kwargs.values()]


def variables(names: list[str]) -> None:
    """Say what this rank finds in its environment."""
    import json

    print(json.dumps({name: os.environ.get(name) for name in names}))


def report_rank() -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MARK")
    found = {name: os.environ.get(name, "") for name in names}
    print(" ".join(f"{name}={value}" for name, value in found.items()))
    print("to stderr", file=sys.stderr)
    return found


def interpreter() -> str:
    return sys.executable


def folder() -> str:
    return os.getcwd()


def echo_variable(name: str) -> str:
    """Print a variable and return its digits reversed, so that the result does not hold it as it is."""
    return os.environ[name][::-1]


def fail_with_variable(name: str) -> None:
    raise RuntimeError(f"cannot log in with {os.environ[name]}")


def end_badly(how: str) -> None:
    """Rank 1 ends as told; the others wait until somebody ends them."""
    if os.environ["RANK"] != "1" and signal.sigtimedwait([], DEADLINE) is None:
        raise TimeoutError("nobody ended this rank")
    print("last words", file=sys.stderr)
    if how == "raise":
        raise ValueError("rank 1 gave up")
    if how == "exit":
        sys.exit(3)
    os.kill(os.getpid(), getattr(signal, how))


def leave(code: Any) -> None:
    sys.exit(code)


def hold(fifo: str, stubborn: bool = False) -> None:
    """Write the pids of this rank and of a child of its own to `fifo`, then wait to be ended."""
    signal.alarm(DEADLINE)
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", str(2 * DEADLINE)])
    with open(fifo, "w") as pipe:
        pipe.write(f"{os.getpid()} {child.pid}\n")
    while True:
        signal.pause()


def write_metrics(steps: int) -> None:
    import json

    with open(Path(os.environ["GEMMA_LAUNCHER_JOB_DIR"]) / "metrics.jsonl", "a") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps({"step": step, "max_steps": steps, "loss": 3.0 - step, "lr": 1e-4}) + "\n")
            file.flush()
        file.write("not json\n")
        file.write(json.dumps({"step": steps, "max_steps": steps, "val_loss": 1.5}) + "\n")


def note(path: str, text: str = "") -> None:
    """Add a line that says so to a file that several tasks write to."""
    with open(path, "a") as file:
        file.write(f"{text or os.environ['GEMMA_LAUNCHER_JOB_DIR']}\n")


def fail_until(path: str, attempts: int) -> int:
    """Fail until it has been called so often; the attempts are counted in a file."""
    note(path, "called")
    count = len(Path(path).read_text().splitlines())
    print(f"attempt {count}")
    if count < attempts:
        raise RuntimeError(f"not yet: {count}")
    return count


def meet(folder: str, name: str, others: list[str]) -> str:
    """Wait until the others are here too, and return the GPUs that it was given: fails if anybody else has one."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    held = [Path(folder, f"gpu {gpu} of rank {os.environ['RANK']}") for gpu in shown.split(",") if gpu]
    for gpu in held:
        os.close(os.open(gpu, os.O_CREAT | os.O_EXCL))
    Path(folder, name).touch()
    until = time.monotonic() + DEADLINE
    while not all(Path(folder, other).exists() for other in others):
        if time.monotonic() > until:
            raise TimeoutError(f"{others} never came")
        time.sleep(0.01)
    for gpu in held:
        gpu.unlink()
    return shown
