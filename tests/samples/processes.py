"""Waiting for processes that are not our children."""

import select


def has_ended(pidfd: int, seconds: float = 30) -> bool:
    """Whether the process of this descriptor ends within the time. poll, and not select, which stops at 1,024 files."""
    watch = select.poll()
    watch.register(pidfd, select.POLLIN)
    return bool(watch.poll(seconds * 1000))
