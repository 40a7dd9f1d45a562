"""One launcher at a time looks which GPUs of an engine are free, and starts what is to have them.

Engines have no locks. But who asks for a volume whose name is taken is given the one that is there, with the labels of
who made it: that one has the turn.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Final

from executors.docker.engine import Engine
from launcher.errors import LaunchError

NAME: Final = "gemma-launcher.turn"
OWNER: Final = "gemma-launcher.owner"
STALE: Final = 120.0  # seconds after which whoever has it was killed meanwhile: it takes a few


class Turn:
    """Of one process, on one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._own = secrets.token_hex(8)
        self._other = ("", 0.0)  # who has it, and since when we see that

    @contextlib.contextmanager
    def taken(self, labels: Mapping[str, str]) -> Iterator[bool]:
        """Whether it is ours in here; somebody else has it otherwise. Raises LaunchError."""
        with self._engine.asked("a turn for GPUs") as client:
            volume = client.volumes.create(NAME, labels={**labels, OWNER: self._own})
            owner = str((volume.attrs["Labels"] or {}).get(OWNER))
            if owner != self._own and self._is_stale(owner):
                volume.remove()  # and whoever asks next has it: that not two of us take it away, one after the other
        if owner != self._own:
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(LaunchError), self._engine.asked("a turn for GPUs") as client:
                if (client.volumes.get(NAME).attrs["Labels"] or {}).get(OWNER) == self._own:
                    client.volumes.get(NAME).remove()

    def _is_stale(self, owner: str) -> bool:
        if self._other[0] != owner:
            self._other = owner, time.monotonic()
        return time.monotonic() - self._other[1] > STALE
