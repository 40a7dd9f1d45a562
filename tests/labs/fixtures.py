"""The labs as fixtures; tests/conftest.py names them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.labs.machine import LABS, require_root
from tests.labs.sshd import Sshd


@pytest.fixture(scope="module")
def lab_folder() -> Iterator[Path]:
    """A folder that the lab's user can look into, as pytest's own are not."""
    require_root()
    LABS.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=LABS, prefix="test_"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def make_sshd(lab_folder: Path) -> Iterator[Callable[..., Sshd]]:
    """Start further servers, with settings of their own; ended with the module."""
    made: list[Sshd] = []

    def make(**settings: object) -> Sshd:
        made.append(Sshd(lab_folder / f"sshd_{len(made)}", **settings))  # type: ignore[arg-type]
        return made[-1].start()

    yield make
    for server in made:
        server.stop()


@pytest.fixture(scope="module")
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A real sshd; started in a fifth of a second."""
    return make_sshd()
