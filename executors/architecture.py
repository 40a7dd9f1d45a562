"""Which generation a GPU belongs to, as some environment variables depend on it. Told without torch."""

from __future__ import annotations

import contextlib
import enum
import functools
import re
import subprocess
from pathlib import Path
from typing import Final

from launcher.errors import ExecutorError, nearest


class Architecture(enum.IntEnum):
    """A generation of NVIDIA's GPUs; the value is ten times the compute capability that it begins with."""

    VOLTA = 70
    TURING = 75
    AMPERE = 80
    ADA = 89
    HOPPER = 90
    BLACKWELL = 100

    @classmethod
    def of_capability(cls, text: str) -> Architecture | None:
        """From a compute capability, "9.0". None for what is none, or is older than all of these."""
        if (found := re.fullmatch(r"(\d+)\.(\d)", text.strip())) is None:
            return None
        number = int(found[1]) * 10 + int(found[2])
        return max((known for known in cls if known <= number), default=None)


GPUS: Final = {
    "v100": Architecture.VOLTA,
    "t4": Architecture.TURING,
    "a10": Architecture.AMPERE,
    "a30": Architecture.AMPERE,
    "a40": Architecture.AMPERE,
    "a100": Architecture.AMPERE,
    "a800": Architecture.AMPERE,
    "l4": Architecture.ADA,
    "l40": Architecture.ADA,
    "l40s": Architecture.ADA,
    "h20": Architecture.HOPPER,
    "h100": Architecture.HOPPER,
    "h200": Architecture.HOPPER,
    "h800": Architecture.HOPPER,
    "gh200": Architecture.HOPPER,
    "b200": Architecture.BLACKWELL,
    "b300": Architecture.BLACKWELL,
    "gb200": Architecture.BLACKWELL,
    "gb300": Architecture.BLACKWELL,
}
"""The models that can be named, in small letters."""

_DRIVER = Path("/proc/driver/nvidia/gpus")


def architecture_of(gpu: str, setting: str) -> Architecture:
    """Of a model ("h100", "H200"). Raises ExecutorError naming the `setting` for one that is not known."""
    found = GPUS.get(gpu.lower()) if isinstance(gpu, str) else None
    if found is None:
        raise ExecutorError(
            f"{setting} is {gpu!r}, which is no GPU that is known here; there are {', '.join(GPUS)}",
            hint=nearest(str(gpu).lower(), GPUS) or "'h100'",
        )
    return found


@functools.cache
def local_architecture() -> Architecture | None:
    """Of this machine's GPUs; None where it has none, more than one kind, or the driver does not say."""
    return from_driver(_DRIVER) or from_nvidia_smi()


def from_driver(folder: Path) -> Architecture | None:
    """From what the kernel's driver says of each GPU: a file `information` with a line "Model: NVIDIA H200"."""
    found: set[Architecture | None] = set()
    for file in folder.glob("*/information"):
        with contextlib.suppress(OSError):
            model = re.search(r"^Model:(.*)$", file.read_text(errors="replace"), re.MULTILINE)
            words = re.findall(r"\w+", model[1].lower()) if model else []
            found.add(next((GPUS[word] for word in words if word in GPUS), None))
    return found.pop() if len(found) == 1 else None


def from_nvidia_smi() -> Architecture | None:
    """From the driver's own tool, which takes about a second to answer."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = {Architecture.of_capability(line) for line in done.stdout.splitlines() if line.strip()}
    return found.pop() if len(found) == 1 else None
