"""Megatron-Core, imported without what nothing here uses: a process starts in two thirds of the time.

Megatron hands a dozen functions to torch.compile when it is imported, which loads the compiler; here that waits until
one of them is called. wandb, which it imports for timers of its own, is left out.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch


def _compiled_when_called(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    if function is None:
        return functools.partial(_compiled_when_called, **options)

    @functools.cache
    def compiled() -> Any:
        return torch.compile(function, **options)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return compiled()(*arguments, **named)

    return call


def _import() -> None:
    compile_ = torch.compile
    absent = {"wandb"} - sys.modules.keys()
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails as where it is not installed
    torch.compile = _compiled_when_called
    try:
        import megatron.core  # noqa: F401
    finally:
        torch.compile = compile_
        for name in absent:
            sys.modules.pop(name, None)


# Transformer Engine is imported with Megatron, and says nowhere what it takes torch.compile to be.
if importlib.util.find_spec("transformer_engine") is None:
    _import()
