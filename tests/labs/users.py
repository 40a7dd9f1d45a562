"""A lab that tests of several processes share: up while anybody uses it, and down when nobody does."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

from filelock import FileLock

from tests.labs.machine import LABS, Daemons, start_time

ROOT = Path(__file__).resolve().parents[2]
BY_HAND = "by_hand"  # a user of the lab that never dies


class SharedLab(ABC):
    """name: of the lab's files below LABS, and of its package beside this file."""

    name: ClassVar[str]

    @abstractmethod
    def up(self) -> None:
        """Start what does not run; from nothing, if nothing runs. Raises LabError."""

    @abstractmethod
    def down(self) -> None:
        """End all that was started."""

    @abstractmethod
    def status(self) -> dict[str, bool]:
        """What runs, by name."""

    def leave(self) -> None:
        """Take away what this process alone had there."""
        return None

    @contextmanager
    def shared(self) -> Iterator[Self]:
        """Up while any process is in here. Whoever is killed in here is missed, and the lab does not outlive them."""
        with self._users() as users:
            (self._user_folder / str(os.getpid())).write_text(str(start_time(os.getpid())))
            # Nothing of ours is held open by it, or whoever waits for our end would wait for its.
            keeper = [sys.executable, "-m", f"tests.labs.{self.name}.lab", "keep"]
            Daemons(LABS, LABS).start(self._keeper, keeper, cwd=ROOT)
            if not users:  # what still runs was left by someone who was killed
                if not all(self.status().values()):
                    self.down()
                self.up()
        try:
            yield self
        finally:
            self.leave()
            with self._users() as users:
                (self._user_folder / str(os.getpid())).unlink()
                if users == [str(os.getpid())]:
                    self.down()

    def keep(self) -> None:
        """Take the lab down when nobody uses it any more: for those that end without leaving, or in `up`."""
        while True:
            with self._users() as users:
                if not users:
                    self.down()
                    (LABS / f"{self._keeper}.pid").unlink()
                    return
            time.sleep(1)

    def by_hand(self, verb: str) -> None:
        """`up`, which stays until `down`; or what `status` says."""
        if verb == "status":
            for name, alive in self.status().items():
                print(f"{name:<12}{'runs' if alive else '-'}")
            return
        with self._users() as users:
            if verb == "up":
                self.up()
                (self._user_folder / BY_HAND).touch()
                return
            (self._user_folder / BY_HAND).unlink(missing_ok=True)
            if others := [user for user in users if user != BY_HAND]:
                print(f"processes {', '.join(others)} use it: it goes when they have")
            else:
                self.down()

    @property
    def _keeper(self) -> str:
        return f"{self.name}_keeper"

    @property
    def _user_folder(self) -> Path:
        return LABS / f"{self.name}_users"

    @contextmanager
    def _users(self) -> Iterator[list[str]]:
        """Who uses the lab, with the lock on it held."""
        self._user_folder.mkdir(parents=True, exist_ok=True)
        with FileLock(LABS / f"{self.name}.lock"):
            for file in self._user_folder.iterdir():
                if file.name != BY_HAND and str(start_time(int(file.name))) != file.read_text():
                    file.unlink()
            yield [file.name for file in self._user_folder.iterdir()]
