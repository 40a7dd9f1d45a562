"""Megatron's indexed data: the tokens of many documents in NAME.bin, and where each one is in NAME.idx.

    NAME.idx   "MMIDIDX", two zero bytes, version 1 (uint64), the code of the tokens' dtype (uint8), the numbers of
               documents and of group bounds (uint64 each); then the documents' lengths in tokens (int32), where they
               begin in NAME.bin in bytes (int64), and the bounds of groups of them (int64), here one document each

Source: megatron-core, core/datasets/indexed_dataset.py, whose IndexedDataset reads what is written here; its documents
are "sequences" there, its groups "documents". Everything is little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from launcher.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC: Final = b"MMIDIDX\x00\x00"
HEAD: Final = struct.Struct("<9sQBQQ")
CODES: Final = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
STRETCH: Final = 1 << 20  # documents that are in memory at once while an index is written


class IndexedFiles:
    """The documents of NAME.bin and NAME.idx, read where they lie. `lengths`: int32 (documents), in tokens.

    Raises DataError for files that are missing, of another format, or not whole.
    """

    def __init__(self, prefix: str | Path) -> None:
        import numpy as np

        name = str(Path(prefix).expanduser())
        self.prefix = name.removesuffix(".bin").removesuffix(".idx")
        index, tokens = Path(self.prefix + ".idx"), Path(self.prefix + ".bin")
        for path in (index, tokens):
            if not path.is_file():
                raise DataError(
                    f"there is no {path}", hint=f"gemma-launch preprocess source=FILE.jsonl output={self.prefix}"
                )
        with index.open("rb") as file:
            head = file.read(HEAD.size)
        magic, version, code, count, groups = HEAD.unpack(head.ljust(HEAD.size, b"\0"))
        if magic != MAGIC or version != 1 or code not in CODES:
            raise DataError(f"{index} is no index of Megatron's, version 1")
        whole = HEAD.size + count * 12 + groups * 8
        if index.stat().st_size < whole:
            raise DataError(f"{index} has {index.stat().st_size} of its {whole} bytes")
        self.dtype: Any = np.dtype(CODES[code])
        self.lengths: NDArray[Any] = np.memmap(index, "<i4", "r", HEAD.size, (count,)) if count else np.zeros(0, "<i4")
        self._begins = np.memmap(index, "<i8", "r", HEAD.size + count * 4, (count,)) if count else self.lengths
        end = int(self._begins[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if count else 0
        if tokens.stat().st_size < end:
            raise DataError(f"{tokens} has {tokens.stat().st_size} of its {end} bytes")
        self._bytes = np.memmap(tokens, "u1", "r") if end else np.zeros(0, "u1")

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, number: int, start: int = 0, end: int | None = None) -> NDArray[Any]:
        """Those of document `number` from `start` to `end`, or to its own."""
        end = int(self.lengths[number]) if end is None else end
        size, begin = self.dtype.itemsize, int(self._begins[number])
        found: NDArray[Any] = self._bytes[begin + start * size : begin + end * size].view(self.dtype)
        return found


def write_index(file: IO[bytes], lengths: IO[bytes], count: int) -> None:
    """The index of `count` documents of int32 tokens; `lengths` holds an int32 for each, and is read to its end."""
    import numpy as np

    def stretches() -> Iterator[NDArray[Any]]:
        lengths.seek(0)
        while part := lengths.read(4 * STRETCH):
            yield np.frombuffer(part, "<i4")

    file.write(HEAD.pack(MAGIC, 1, 4, count, count + 1))
    for part in stretches():
        file.write(part.tobytes())
    begin = 0
    for part in stretches():
        ends = begin + 4 * np.cumsum(part, dtype="<i8")
        file.write(np.concatenate([np.array([begin], "<i8"), ends[:-1]]).tobytes())
        begin = int(ends[-1])
    for first in range(0, count + 1, STRETCH):
        file.write(np.arange(first, min(first + STRETCH, count + 1), dtype="<i8").tobytes())
