"""Who is measured: this project and its peers, each installed into a virtual environment of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from executors.packaging import GitArchivePackager

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A launcher.

    requirements: from the package index. names: what a script takes from it. state: the variable that names its state
    folder. listing, status: its commands for past experiments.
    """

    name: str
    requirements: tuple[str, ...]
    module: str
    names: str = "Partial, LocalExecutor, Experiment"
    program: str
    state: str | None = None
    listing: tuple[str, ...] | None = None
    status: tuple[str, ...] | None = None


OURS = Tool(
    name="gemma-launcher",
    requirements=(),
    module="launcher",
    program="ours.py",
    state="GEMMA_LAUNCHER_HOME",
    listing=("gemma-launch", "experiment", "list"),
    status=("gemma-launch", "experiment", "status"),
)
NEMO_RUN = Tool(
    name="nemo-run",
    requirements=("nemo-run==0.11.1", "leptonai==0.27.3"),
    module="nemo_run",
    program="with_nemo_run.py",
    state="NEMORUN_HOME",
    listing=("nemorun", "experiment", "list", "local"),
    status=("nemorun", "experiment", "status"),
)
SUBMITIT = Tool(
    name="submitit",
    requirements=("submitit==1.5.4",),
    module="submitit",
    names="LocalExecutor",
    program="with_submitit.py",
)
TOOLS = {"ours": OURS, "nemo-run": NEMO_RUN, "submitit": SUBMITIT}


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A tool, ready to run. `bin`: the folder of its python and commands; `added`: bytes that it takes on the disk."""

    tool: Tool
    bin: Path
    added: int | None

    @property
    def python(self) -> str:
        return str(self.bin / "python")


def here(tool: Tool) -> Installed:
    """A tool as the interpreter that runs this has it."""
    return Installed(tool=tool, bin=Path(sys.executable).parent, added=None)


def install(tool: Tool, folder: Path) -> Installed:
    """A tool in a virtual environment in `folder`, from the package index. A peer's is kept for the next time."""
    place, size = folder / tool.name, folder / f"{tool.name}.bytes"
    if tool is OURS or not size.exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        empty = _on_disk(place)
        requirements = list(tool.requirements)
        if tool is OURS:  # from a copy, because a build leaves files behind, which the next build would take
            shutil.rmtree(folder / "source", ignore_errors=True)
            GitArchivePackager().collect(ROOT, None).copy_to(folder / "source")
            requirements = [str(folder / "source")]
        pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        size.write_text(str(_on_disk(place) - empty))
    return Installed(tool=tool, bin=place / "bin", added=int(size.read_text()))


def _on_disk(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
