"""Reading and writing the safetensors files of a Hugging Face folder, one tensor at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from launcher.errors import CheckpointError

_INDEX = "model.safetensors.index.json"


class HFWeights:
    """The tensors of a Hugging Face folder, in one file or several; each is read when it is asked for."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        for path in _weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a whole safetensors file: {error}", hint="fetch the checkpoint again"
                ) from None
            self._files |= dict.fromkeys(file.keys(), file)

    def names(self) -> set[str]:
        return set(self._files)

    def dtype(self, name: str) -> str:
        """As safetensors spells it: BF16, F32, ..."""
        return str(self._files[name].get_slice(name).get_dtype())

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


@contextlib.contextmanager
def open_hf_weights(folder: Path) -> Iterator[HFWeights]:
    """Open the weights in ``folder``; raises CheckpointError where a file is missing, cut short or corrupt."""
    with contextlib.ExitStack() as stack:
        yield HFWeights(folder, stack)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is not an index of weights: {error!r}") from None
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"]
    missing = [path.name for path in files if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}", hint="name the folder of a complete Hugging Face checkpoint"
        )
    return files


def write_hf_weights(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int = 4 * 2**30
) -> None:
    """Write tensors as they come, in files of at most ``max_shard_bytes``, with an index when there are several."""
    pending: dict[str, torch.Tensor] = {}
    shards: list[tuple[Path, list[str]]] = []
    total = 0

    def flush() -> None:
        path = folder / f"shard-{len(shards)}.safetensors"
        save_file(pending, path, metadata={"format": "pt"})
        shards.append((path, list(pending)))
        pending.clear()

    for name, tensor in tensors:
        if pending and sum(t.nbytes for t in pending.values()) + tensor.nbytes > max_shard_bytes:
            flush()
        pending[name] = tensor.contiguous()
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / "model.safetensors")
        return
    weight_map = {}
    for number, (path, names) in enumerate(shards, start=1):
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def dtype_of(folder: Path) -> Literal["bf16", "fp32"]:
    """The dtype that the weights in ``folder`` are kept in; raises CheckpointError for any but bfloat16 and float32."""
    with open_hf_weights(folder) as weights:
        found = {weights.dtype(name) for name in weights.names()}
    known: dict[str, Literal["bf16", "fp32"]] = {"BF16": "bf16", "F32": "fp32"}
    if len(found) != 1 or not found <= set(known):
        raise CheckpointError(
            f"the weights in {folder} are of {', '.join(sorted(found)) or 'no dtype'}",
            hint="save them as bfloat16 or as float32 throughout",
        )
    return known[found.pop()]
