"""Megatron-Core is imported without the compiler and wandb, and loses nothing by it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

LOOK = """
import json, sys
import torch
own = torch.compile
import gemma_models.training.fit
found = {"light": not {"torch._inductor", "torch._dynamo", "wandb"} & sys.modules.keys(), "own": torch.compile is own}
from megatron.core.fusions.fused_bias_dropout import bias_dropout_add_fused_train as fused
compiled = []
torch.compile = lambda function, **options: compiled.append(function.__name__) or own(function, backend="eager")
x, residual = torch.rand(2, 3), torch.rand(2, 3)
for _ in range(2):
    found["same"] = torch.equal(fused((x, None), residual, 0.0), x + residual)
import wandb
print(json.dumps({**found, "compiled": compiled, "wandb": bool(wandb.__version__)}))
"""


@pytest.mark.skipif(importlib.util.find_spec("transformer_engine") is not None, reason="which imports the compiler")
def test_what_is_compiled_is_compiled_when_it_is_called() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LOOK], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "light": True,
        "own": True,
        "same": True,
        "compiled": ["bias_dropout_add_fused_train"],
        "wandb": True,
    }
