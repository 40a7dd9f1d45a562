"""Which code an experiment ran: the commit of the launch script's repository, and whether the tree was dirty."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher.worker import SCRIPT_MODULE


def launch_script() -> Path | None:
    """The Python file that was started, or the workspace file that the command read; None in an interactive session,
    under `python -m`, or for a command without one."""
    workspace = getattr(sys.modules.get(SCRIPT_MODULE), "__file__", None)
    if workspace is not None:
        return Path(workspace).resolve()
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None or not file.endswith(".py"):
        return None
    return Path(file).resolve()


def script_folder() -> Path:
    """The folder of the launch script, as Python would put it on sys.path; the current one where there is none."""
    script = launch_script()
    return Path.cwd() if script is None else script.parent


def import_path() -> list[str]:
    """Where a task's modules are found: the launch script's folder, then all of sys.path that is not Python's own."""
    own = os.path.dirname(os.__file__)
    others = [
        os.path.abspath(entry)
        for entry in sys.path
        if not entry.startswith(own)
        and not re.search(r"(site|dist)-packages|\.zip$", entry)
        and os.path.exists(entry or ".")
    ]
    return list(dict.fromkeys([str(script_folder()), *others]))


def code_state(folder: Path) -> dict[str, Any] | None:
    """The git commit and dirty flag of the repository around `folder`; None outside one, or without git."""
    env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # looking must not disturb a git command that runs meanwhile
    command = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    except OSError:
        return None
    if found.returncode != 0:
        return None
    lines = found.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"folder": str(folder), "commit": commit, "dirty": any(not line.startswith("#") for line in lines)}
