"""Many past experiments, as if somebody had launched for years: `python -m benchmarks.past FOLDER [COUNT]`."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.store import Store, new_id

ENDINGS = ("succeeded", "succeeded", "succeeded", "failed", "cancelled")


def make(home: Path, count: int) -> list[str]:
    """Write finished experiments of one or two tasks into a state folder; their ids, oldest first."""
    store = Store(home)
    ids = []
    for number in range(count):
        title = f"gemma3-sft run {number}"
        names = ["prepare", "train"] if number % 3 == 0 else ["train"]
        record = store.create(new_id(title), title, [{"name": name, "folder": name} for name in names])
        ids.append(record.id)
        for task in record.tasks:
            for event in ("queued", "started"):
                task.append(event)
            ending = ENDINGS[number % len(ENDINGS)] if task is record.tasks[-1] else "succeeded"
            details = {"rank": 0, "cause": "ValueError: no", "traceback": ""} if ending == "failed" else {}
            task.append(ending, **details)
    return ids


if __name__ == "__main__":
    make(Path(sys.argv[1]), int((*sys.argv, "10000")[2]))
