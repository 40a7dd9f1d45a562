"""fiddle without what its import costs most and hardly anybody uses.

`import fiddle` takes 0.2 s to load a parser of Python source, for its auto_config, and a log library, for its build.
Where this module is imported first, those two parts of fiddle load when something in them is first used.

A job needs none of it: its task is read by the worker. Where there is no fiddle, a launch script loads all the same,
and what would make a configuration says what to install (see launcher.no_fiddle).
"""

from __future__ import annotations

import importlib
import sys
import threading
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

_AUTO_CONFIG = "fiddle._src.experimental.auto_config"
_DEFERRED = (_AUTO_CONFIG, "fiddle._src.reraised_exception")
_lock = threading.RLock()


class _Deferred(types.ModuleType):
    """A module whose code runs when it is first asked for a name that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _lock:
            spec = self.__spec__
            if spec is not None and isinstance(spec.loader, _Loader):
                real = spec.loader.real
                real.exec_module(self)
                spec.loader = self.__loader__ = real
                self.__class__ = types.ModuleType
        return types.ModuleType.__getattribute__(self, name)


class _Loader:
    """Makes the module, and leaves running its code to the module."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == _AUTO_CONFIG:
            vars(module)["AutoConfigClassMethod"] = _ClassMethod


class _Finder:
    """Gives the modules of `_DEFERRED` that loader; any other module is somebody else's to find."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _DEFERRED else None
        if spec is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _ClassMethod:
    """Stands in for the one thing of auto_config that fiddle uses while it is imported: a descriptor on its Tag."""

    def __init__(self, func: Callable[..., Any], always_inline: bool) -> None:
        self.__wrapped__ = func
        self._always_inline = always_inline

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        real = importlib.import_module(_AUTO_CONFIG).AutoConfigClassMethod
        return real(self.__wrapped__, self._always_inline).__get__(instance, owner)


def _import_fiddle() -> None:
    sys.meta_path.insert(0, _Finder)
    try:
        importlib.import_module("fiddle")
    finally:
        sys.meta_path.remove(_Finder)
    auto_config = sys.modules.get(_AUTO_CONFIG)
    if isinstance(auto_config, _Deferred):
        vars(auto_config).pop("AutoConfigClassMethod", None)  # whoever asks from now on gets fiddle's own


try:
    if "fiddle" not in sys.modules:
        _import_fiddle()
    import fiddle as fiddle
    from fiddle import history as history
except ImportError as error:
    from launcher import no_fiddle

    no_fiddle.why = str(error)
    fiddle = history = no_fiddle
