"""Chains of elementwise operations as one kernel each: at every link a GPU would wait for its memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


@cache
def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    # What was seen with two lengths is made for any: validation has its own, and the last batch may be shorter.
    return torch.compile(function, dynamic=None)


def fused(function: Callable[P, R], *, on: bool) -> Callable[P, R]:
    """The function, compiled if that is wanted; it must be pure. Compiled at its first call, which takes seconds."""
    return _compiled(function) if on else function
