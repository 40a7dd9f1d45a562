"""Megatron-Core on a CPU.

Megatron-Core names CUDA in three ways: as a device (``device="cuda"``, ``torch.cuda.current_device()``), as streams to
wait for, and as a tensor type (``"torch.cuda.FloatTensor"``) that tells its optimizers which parameters they own. While
this context is entered, devices mean the CPU, streams are empty, and a CPU tensor gives the type it would have on CUDA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


def _is_cuda(device: object) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class _CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            kind: str = func(*args)
            return kind if kind.startswith("torch.cuda.") else kind.replace("torch.", "torch.cuda.", 1)
        if _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CPU}
        if any(_is_cuda(arg) for arg in args):
            args = tuple(_CPU if _is_cuda(arg) else arg for arg in args)
        return func(*args, **kwargs)


class _NoStream:
    """A stream or event on which everything has happened already."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def wait_stream(self, other: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: object = None) -> _NoStream:
        return self

    def wait(self, stream: object = None) -> None: ...


_STAND_INS: dict[str, Callable[..., Any]] = {
    "current_device": lambda: _CPU,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "current_stream": lambda device=None: _NoStream(),
    "default_stream": lambda device=None: _NoStream(),
    "Stream": _NoStream,  # a class, since annotations of modules imported meanwhile name it
    "stream": lambda stream: contextlib.nullcontext(),
}


@contextlib.contextmanager
def megatron_on_cpu() -> Iterator[None]:
    """Run Megatron-Core on the CPU inside this context. It may be entered again inside itself."""
    before = {name: getattr(torch.cuda, name) for name in _STAND_INS}
    for name, stand_in in _STAND_INS.items():
        setattr(torch.cuda, name, stand_in)
    try:
        with _CudaMeansCpu():
            yield
    finally:
        for name, function in before.items():
            setattr(torch.cuda, name, function)
