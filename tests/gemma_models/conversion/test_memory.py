"""A checkpoint is converted without ever being whole in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gemma_models.architectures import ARCHITECTURES
from gemma_models.conversion.hf_config import hf_config
from gemma_models.conversion.mapping import hf_shapes
from gemma_models.conversion.safetensors_io import write_hf_weights

# What is imported is there before; what is left are buffers and tensors.
CONVERT = """
import json, resource, sys
from pathlib import Path
from gemma_models.conversion.checkpoints import export_hf, import_hf
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
import_hf(sys.argv[1], sys.argv[2])
imported = peak()
export_hf(sys.argv[2], Path(sys.argv[3]), None)
print(json.dumps([imported - before, peak() - before]))
"""


def test_a_model_is_never_whole_in_memory(tmp_path: Path) -> None:
    gemma = replace(ARCHITECTURES["gemma3_1b"], num_layers=6, vocab_size=8192)
    source = tmp_path / "hf"
    hf_config(gemma).save_pretrained(source)
    shapes = hf_shapes(gemma)
    sizes = [2 * torch.Size(shape).numel() for shape in shapes.values()]
    # Two files, as large ones have.
    tensors = ((name, torch.full(shape, 0.5, dtype=torch.bfloat16)) for name, shape in shapes.items())
    write_hf_weights(source, shapes, torch.bfloat16, tensors, max_shard_bytes=sum(sizes) * 2 // 3)
    command = [sys.executable, "-c", CONVERT, str(source), str(tmp_path / "megatron"), str(tmp_path / "back")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for peak in json.loads(done.stdout):
        assert peak < sum(sizes) // 2 < sum(sizes) + 2 * max(sizes)
    assert (tmp_path / "back" / "model.safetensors").stat().st_size > sum(sizes) > 3e8
