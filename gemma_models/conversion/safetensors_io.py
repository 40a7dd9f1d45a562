"""Reading and writing the safetensors files of a Hugging Face folder, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from launcher.errors import CheckpointError

WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


class HFWeights:
    """The tensors of a Hugging Face folder, in one file or several; each is read when it is asked for.

    Raises CheckpointError where a file is missing, cut short or corrupt. ``name`` is the file's, where it is but one.
    """

    def __init__(self, folder: Path, name: str = WEIGHTS) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        self._dtypes: dict[str, str] = {}
        for path in _weight_files(folder, name):
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118 # a file, and no dict
                        part = file.get_slice(key)
                        self._files[key], self.shapes[key] = path, tuple(part.get_shape())
                        self._dtypes[key] = str(part.get_dtype())
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a whole safetensors file: {error}", hint="fetch the checkpoint again"
                ) from None

    def names(self) -> set[str]:
        return set(self._files)

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """What the weights are kept in; raises CheckpointError for any but bfloat16 and float32."""
        found = set(self._dtypes.values())
        known: dict[str, Literal["bf16", "fp32"]] = {"BF16": "bf16", "F32": "fp32"}
        if len(found) != 1 or not found <= set(known):
            raise CheckpointError(
                f"the weights in {self.folder} are of {', '.join(sorted(found)) or 'no dtype'}",
                hint="save them as bfloat16 or as float32 throughout",
            )
        return known[found.pop()]

    def read(self, name: str) -> torch.Tensor:
        # Opened anew for each: a file that stays open keeps in memory whatever was read of it.
        with safe_open(self._files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raises CheckpointError unless the folder holds just these tensors, in these shapes."""
        missing, unknown = sorted(set(expected) - self.names()), sorted(self.names() - set(expected) - {_HEAD})
        if missing or unknown:
            parts = [f"{word} {names[0]} and {len(names) - 1} more" for word, names in
                     (("lacks", missing), ("holds, unknown to Gemma,", unknown)) if names]  # fmt: skip
            raise CheckpointError(
                f"{self.folder} {'; it '.join(parts)}", hint="check that config.json belongs to these weights"
            )
        for name, shape in expected.items():
            if self.shapes[name] != shape:
                raise CheckpointError(
                    f"{name} in {self.folder} does not have the shape that config.json implies: {self.shapes[name]} "
                    f"where {shape} is needed"
                )
        # Saved by some, although it is the embedding once more.
        if _HEAD in self.names() and not torch.equal(self.read(_HEAD), self.read(_EMBEDDING)):
            raise CheckpointError(
                f"{_HEAD} in {self.folder} is not {_EMBEDDING}, and Gemma's head is its embedding",
                hint="a checkpoint whose head was not trained apart",
            )


def _weight_files(folder: Path, name: str) -> list[Path]:
    index = folder / _INDEX
    if name == WEIGHTS and index.exists() and not (folder / name).exists():  # transformers' order of looking
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is not an index of weights: {error!r}") from None
        files = [folder / name for name in names]
    else:
        files = [folder / name]
    missing = [path.name for path in files if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}", hint="name the folder of a complete Hugging Face checkpoint"
        )
    return files


def write_hf_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, torch.Tensor]],
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Write tensors as they come, in the order of ``shapes``, which are known before the first of them.

    In files of at most ``max_shard_bytes``, with an index when there are several.
    """
    shards: list[dict[str, int]] = []
    for name, shape in shapes.items():
        size = dtype.itemsize * torch.Size(shape).numel()
        if not shards or sum(shards[-1].values()) + size > max_shard_bytes:
            shards.append({})
        shards[-1][name] = size
    coming = iter(tensors)
    where = {}
    for number, sizes in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, {name: shapes[name] for name in sizes}, dtype, coming)
        where |= dict.fromkeys(sizes, file)
    if len(shards) > 1:
        total = sum(size for sizes in shards for size in sizes.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """One file, of the next ``len(shapes)`` tensors. The library's own writer takes all of them at once; the format is
    eight bytes of length, a header, and the bytes (https://huggingface.co/docs/safetensors, "Format")."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (expected, shape), (name, tensor) in zip(shapes.items(), tensors, strict=False):
            if name != expected or tensor.shape != shape:
                raise CheckpointError(f"{name} {tuple(tensor.shape)} came where {expected} {shape} was to be written")
            file.write(tensor.to(dtype).contiguous().view(torch.uint8).numpy().data)
