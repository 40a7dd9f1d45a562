"""Our packages have common names; a user's own of the same name may stand in front of them."""

from __future__ import annotations

import importlib.util
import os
import sys

from launcher.errors import LaunchError

PACKAGES = ("executors", "experiments", "gemma_models")


def require_own_packages() -> None:
    """Raise LaunchError, naming the file, if what Python imports under one of our names is not ours."""
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in PACKAGES:
        module = sys.modules.get(name)
        if module is None and _is_bare_folder(name):
            _import_own(name, os.path.join(ours, name))
            continue
        spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        found = places[0] if places else None
        if found is not None and os.path.dirname(os.path.dirname(os.path.realpath(found))) == ours:
            continue
        if found is None:
            raise LaunchError(f"the launcher's own package {name!r} is missing", hint="pip install gemma-launcher")
        own = found if not found.endswith("__init__.py") else os.path.dirname(found)
        raise LaunchError(
            f"{own} hides the launcher's own package {name!r}: {os.path.dirname(own)} comes before it on sys.path",
            hint="another name for yours, or another folder to start from",
        )


def _is_bare_folder(name: str) -> bool:
    """Whether Python takes a folder without any `__init__.py` for the package: it may, where ours is an editable
    installation, and it holds no code that ours could hide."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is None


def _import_own(name: str, folder: str) -> None:
    spec = importlib.util.spec_from_file_location(
        name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise LaunchError(f"the launcher's own package {name!r} is missing", hint="pip install gemma-launcher")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
