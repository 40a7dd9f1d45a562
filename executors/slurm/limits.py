"""What Slurm accepts and then leaves pending for ever: more than a partition has, or allows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

OPTION = re.compile(r"^#SBATCH --([a-z-]+)=(.*?)\s*$", re.MULTILINE)
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def partitions(lines: Sequence[str]) -> dict[str, dict[str, str]]:
    """`scontrol show partition -o`, by name."""
    found = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    return {fields["PartitionName"]: fields for fields in found if "PartitionName" in fields}


def objection(script: str, known: Mapping[str, Mapping[str, str]], partition: str | None) -> str:
    """Why the partition would never run what the `#SBATCH` lines ask for; "" where nothing is known against it."""
    limits = known.get(partition or "")
    if limits is None:
        return ""
    asked = dict(OPTION.findall(script))
    if limits.get("State") in ("DOWN", "INACTIVE"):
        return f"partition {partition} is {limits['State']}: it starts no jobs"
    wanted, longest = minutes(asked.get("time", "")), minutes(limits.get("MaxTime", ""))
    if asked.get("time") in ("UNLIMITED", "INFINITE"):
        wanted = math.inf
    if wanted is not None and longest is not None and wanted > longest:
        return f"time={asked['time']} is more than partition {partition} allows ({limits['MaxTime']})"
    nodes = asked.get("nodes", "")
    for limit, verb in (("MaxNodes", "allows"), ("TotalNodes", "has")):
        most = limits.get(limit, "")
        if nodes.isdecimal() and most.isdecimal() and int(nodes) > int(most):
            return f"nodes={nodes} is more than partition {partition} {verb} ({most})"
    return ""


def minutes(text: str) -> float | None:
    """A time limit as Slurm writes it; None for one without end."""
    found = TIME.fullmatch(text)
    if found is None:
        return None
    days, first, second, third = (None if part is None else int(part) for part in found.groups())
    assert first is not None
    if days is not None:
        return days * 1440 + first * 60 + (second or 0) + (third or 0) / 60
    if third is not None:
        return first * 60 + (second or 0) + third / 60
    return first + (second or 0) / 60
