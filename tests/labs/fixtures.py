"""The labs as fixtures; tests/conftest.py names them."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from tests.labs.containers.lab import ContainerLab
from tests.labs.machine import LABS, require_root
from tests.labs.slurm.lab import SlurmLab
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


@pytest.fixture(scope="session")
def slurm_lab() -> Iterator[SlurmLab]:
    """A real Slurm, shared by all processes that test; up in 6 s, after its packages were installed once.

    Who breaks anything of it that others stand on takes `slurm_lab_alone`.
    """
    with SlurmLab().shared() as lab:
        yield lab


@pytest.fixture
def slurm_lab_alone(slurm_lab: SlurmLab, slurm_turn: None) -> Iterator[SlurmLab]:
    """The Slurm lab while no other test uses it, to break things in; they are mended after."""
    yield slurm_lab
    slurm_lab.up()
    slurm_lab.reboot_if_forgotten()


@pytest.fixture(scope="module")
def slurm_lab_of_module(slurm_lab: SlurmLab) -> Iterator[SlurmLab]:
    """The same for fixtures that start jobs for all tests of a module: none of these may take it alone."""
    with turn("slurm", fcntl.LOCK_SH):
        yield slurm_lab


@pytest.fixture(autouse=True)
def slurm_turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that use the Slurm lab run beside one another, and none beside one that has it alone."""
    if "slurm_lab" not in request.fixturenames or "slurm_lab_of_module" in request.fixturenames:
        yield
        return
    request.getfixturevalue("slurm_lab")
    with turn("slurm", fcntl.LOCK_EX if "slurm_lab_alone" in request.fixturenames else fcntl.LOCK_SH):
        yield


@pytest.fixture(scope="session")
def container_lab() -> Iterator[ContainerLab]:
    """A real Docker engine, shared by all processes that test; up in 4 s, after its image was made once.

    Who stops it, or ends what others run there, takes `container_lab_alone`.
    """
    with ContainerLab().shared() as lab:
        with turn("containers", fcntl.LOCK_SH):  # somebody may have stopped the engine
            lab.load_image()
        yield lab


@pytest.fixture
def container_lab_alone(container_lab: ContainerLab, container_turn: None) -> Iterator[ContainerLab]:
    """The engine while no other test uses it, to break things in; they are mended after."""
    yield container_lab
    container_lab.up()


@pytest.fixture(autouse=True)
def container_turn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As for Slurm; the lab's engine is this process's meanwhile."""
    if "container_lab" not in request.fixturenames:
        yield
        return
    lab: ContainerLab = request.getfixturevalue("container_lab")
    for name, value in lab.env.items():
        monkeypatch.setenv(name, value)
    with turn("containers", fcntl.LOCK_EX if "container_lab_alone" in request.fixturenames else fcntl.LOCK_SH):
        yield


_held: set[str] = set()
"""The labs that this process has with others: who has one for a module must not wait at the gate for a test of it."""


@contextmanager
def turn(lab: str, kind: int) -> Iterator[None]:
    """A lab with others (LOCK_SH), or alone (LOCK_EX)."""
    if lab in _held:
        if kind == fcntl.LOCK_EX:
            raise RuntimeError(f"a module that has the {lab} lab with others cannot have it alone")
        yield
        return
    with (LABS / f"{lab}_turn.lock").open("w") as file:
        # Who waits to have it alone holds the gate, so that others, who go on and on, cannot keep it waiting.
        with FileLock(LABS / f"{lab}_gate.lock"):
            fcntl.flock(file, kind)
        _held.add(lab)
        try:
            yield
        finally:
            _held.remove(lab)
