"""Reading and writing Megatron's torch_dist weights, one whole tensor at a time, without a model or process groups."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

Read = Callable[[str], torch.Tensor]


class MegatronWeights:
    """The tensors in a checkpoint's weights/, whole, at whatever layout they were written; read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._reader = _Reader(folder)
        found = self._reader.read_metadata().state_dict_metadata
        self._tensors = {name: each for name, each in found.items() if isinstance(each, TensorStorageMetadata)}

    def names(self) -> set[str]:
        return set(self._tensors)

    def read(self, name: str) -> torch.Tensor:
        found = self._tensors[name]
        tensor = torch.empty(found.size, dtype=found.properties.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own, about a process group that is not needed
            dcp.load({name: tensor}, storage_reader=self._reader, no_dist=True)
        return tensor


class _Reader(dcp.FileSystemReader):
    """Reads the list of tensors once, and not for each of them."""

    _list: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._list is None:
            self._list = super().read_metadata(*args, **kwargs)
        return self._list


class _WhenWritten(dcp.DefaultSavePlanner):
    """Plans with tensors that have a shape alone, and has each read when it is its turn to be written."""

    def __init__(self, read: Read) -> None:
        super().__init__(flatten_state_dict=False)
        self._read = read

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self._read(index.fqn)


def write_tensors(folder: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, read: Read) -> None:
    """Write what ``read`` gives for each name into ``folder``, as Megatron's own `dist_checkpointing.save` would.

    That one takes all tensors at once, and copies them.
    """
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config  # reading needs no Megatron

    plan = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    # A file a tensor: the writer lets go of what it has written when it closes the file.
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=False, per_thread_copy_ahead=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(plan, storage_writer=writer, planner=_WhenWritten(read), no_dist=True)
    torch.save({}, folder / "common.pt")  # what is not sharded, which of weights alone is nothing
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))
