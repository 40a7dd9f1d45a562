"""Which code an experiment ran: the commit of the launch script's repository, and whether the tree was dirty."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from launcher.errors import PackagingError
from launcher.worker import SCRIPT_MODULE, WORKSPACE

if TYPE_CHECKING:
    from executors.package import Package


def launch_script() -> Path | None:
    """The Python file that was started, or the workspace file that the command read; None in an interactive session,
    under `python -m`, or for a command without one."""
    workspace = sys.modules.get(SCRIPT_MODULE)  # one that a configuration was read from is not what launches
    if workspace is not None and workspace.__file__ and hasattr(workspace, WORKSPACE):
        return Path(workspace.__file__).resolve()
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
    """Where a task's modules are found: the launch script's folder, then all that is not Python's own.

    That is sys.path, and the folders of modules that came by a hook (`pip install --editable` makes one).
    """
    hooked = [_import_folder(name, module) for name, module in sys.modules.items()]
    others = [
        os.path.abspath(entry)
        for entry in [*sys.path, *filter(None, hooked)]
        if not entry.startswith(os.path.dirname(os.__file__))
        and not re.search(r"(site|dist)-packages|\.zip$", entry)
        and os.path.exists(entry or ".")
    ]
    return list(dict.fromkeys([str(script_folder()), *others]))


def _import_folder(name: str, module: ModuleType) -> str | None:
    """The folder that would have to be on sys.path for a module to be found there; None for part of another."""
    file: str | None = getattr(module, "__file__", None)
    if "." in name or name == "__main__":
        return None
    if not file:  # a package without an __init__.py: the first of its folders
        return next((os.path.dirname(place) for place in getattr(module, "__path__", ())), None)
    folder, last = os.path.split(file)
    return os.path.dirname(folder) if last == "__init__.py" else folder


def left_behind(call: Any, package: Package, path: list[str]) -> tuple[str, Path] | None:
    """A module, and its file, that a task names and that its package does not hold; None if it holds them all.

    call: the task as JSON values. path: see `import_path`; what else is imported is installed, and stays where it is.
    """
    for name in sorted(_modules_in(call)):
        top = sys.modules.get(name.partition(".")[0])
        main = sys.modules["__main__"]
        started = main.__spec__ is not None and main.__spec__.name == name  # by `python -m`
        origin = getattr(main if started else sys.modules.get(name), "__file__", None)
        if top is None or origin is None:
            continue
        file = Path(os.path.realpath(origin))
        if (
            _import_folder(top.__name__, top) in path
            and file.is_relative_to(package.root)
            and package.locate(file) is None
        ):
            return name, file
    return None


def runs_code_of(package: Package, call: Any, script: Path | None) -> bool:
    """Whether a task names something in a package, and not only what is installed."""
    used = [script] if script is not None and _names_a_script(call) else []
    origins = [getattr(sys.modules.get(name), "__file__", None) for name in _modules_in(call)]
    used += [Path(os.path.realpath(origin)) for origin in origins if origin]
    return any(package.locate(file) is not None for file in used)


def imported_only_here(package: Package, path: list[str], script: Path | None) -> list[tuple[str, Path]]:
    """Modules, and their files, that are imported in this process and that a package does not hold, by name.

    Whether a task needs them is not known: what stands under `if __name__ == "__main__":` is imported here alone.
    """
    found = []
    for name, module in sorted(sys.modules.items()):
        origin, top = getattr(module, "__file__", None), sys.modules.get(name.partition(".")[0])
        if not origin or top is None or name == SCRIPT_MODULE or _import_folder(top.__name__, top) not in path:
            continue
        file = Path(os.path.realpath(origin))
        if file != script and file.is_relative_to(package.root) and package.locate(file) is None:
            found.append((name, file))
    return found


def _names_a_script(call: Any) -> bool:
    """Whether a task names something in a file that is no module: the launch script, or a workspace."""
    if isinstance(call, list):
        return any(map(_names_a_script, call))
    if not isinstance(call, dict):
        return False
    return any(key[:1] == "$" and isinstance(value, dict) and "file" in value for key, value in call.items()) or any(
        map(_names_a_script, call.values())
    )


def _modules_in(call: Any) -> set[str]:
    if isinstance(call, list):
        return {name for item in call for name in _modules_in(item)}
    if not isinstance(call, dict):
        return set()
    references = [value for key, value in call.items() if key in ("$config", "$partial", "$ref", "$enum")]
    found = {value.partition(":")[0] for value in references if isinstance(value, str)}
    return found | {name for value in call.values() for name in _modules_in(value)}


def code_state(folder: Path) -> dict[str, Any] | None:
    """The git commit and dirty flag of the repository around `folder`; None outside one, or without git."""
    from executors.git import changed_names, repository

    try:
        top, commit = repository(folder)
        return {"folder": str(folder), "commit": commit, "dirty": bool(changed_names(top))}
    except PackagingError:
        return None
