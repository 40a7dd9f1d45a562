"""Text to tokens, once, before pretraining: files of lines to Megatron's .bin and .idx, in parallel processes."""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from gemma_models.data.chat import encode_text
from gemma_models.data.indexed_files import write_index
from launcher.errors import DataError

PART: Final = 1 << 20  # bytes of lines that a process is given at once
SUFFIXES: Final = (".bin", ".idx")
AHEAD: Final = 4  # parts a process that are read before they are wanted: what bounds the memory


@dataclass(frozen=True, kw_only=True)
class How:
    """How a line becomes a document; `key` is the field of a JSON line."""

    tokenizer: Any
    key: str
    add_bos: bool
    add_eos: bool


@dataclass(frozen=True)
class Part:
    """Lines of one file, as bytes, the first being line `number`; `read`: bytes of the file read with it."""

    path: str
    number: int
    lines: list[bytes]
    read: int


def preprocess_files(sources: Sequence[Path], output: Path, how: How, workers: int) -> Path:
    """See `gemma_models.api.preprocess`."""
    for asked, token in (("add_bos", "bos_token"), ("add_eos", "eos_token")):
        if getattr(how, asked) and getattr(how.tokenizer, token) is None:
            raise DataError(f"{asked} is set, and the tokenizer has no {token}", hint=f"{asked}=false")
    if output.suffix in SUFFIXES:  # as they are named where they are read
        output = output.with_suffix("")
    targets = [output.with_name(output.name + suffix) for suffix in SUFFIXES]
    for path in targets:
        if path.exists():
            raise DataError(f"{path} exists", hint="another output, or remove it")
    for path in sources:
        if not path.is_file():
            raise DataError(f"the data file {path} cannot be read: {_why_not(path)}")
    began = time.monotonic()
    partial = [path.with_name(f".{path.name}.{os.getpid()}.partial") for path in targets]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with partial[0].open("wb") as tokens, partial[1].open("wb") as index, tempfile.TemporaryFile() as lengths:
            documents = count = 0
            for encoded, sizes in _encoded(sources, how, workers):
                tokens.write(encoded)
                lengths.write(sizes)
                documents, count = documents + len(sizes) // 4, count + len(encoded) // 4
            if not documents:
                raise DataError(f"{', '.join(map(str, sources))}: no text in it")
            write_index(index, lengths, documents)
        for path, target in zip(partial, targets, strict=True):
            path.replace(target)
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror or error}", hint="another output") from error
    finally:
        for path in partial:
            with contextlib.suppress(OSError):  # where nothing could be written, nothing is
                path.unlink()
    seconds = time.monotonic() - began
    print(f"{documents:,} documents, {count:,} tokens, {count / seconds:,.0f} tokens/s", file=sys.stderr)
    return output


def _encoded(sources: Sequence[Path], how: How, workers: int) -> Iterator[tuple[bytes, bytes]]:
    """Tokens and lengths of all parts, int32, in the order of the lines. Raises DataError with file and line."""
    # Forked: a process that is spawned runs the user's own script once more.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, _prepare, (how,)) as pool, _progress(sources) as advance:
        waiting: deque[tuple[int, Future[tuple[bytes, bytes, str | None]]]] = deque()
        parts = _parts(sources)
        try:
            while True:
                while len(waiting) < AHEAD * workers and (part := next(parts, None)) is not None:
                    waiting.append((part.read, pool.submit(_encode, part)))
                if not waiting:
                    return
                read, future = waiting.popleft()
                tokens, lengths, failure = future.result()
                if failure is not None:
                    raise DataError(failure)
                advance(read)
                yield tokens, lengths
        except BrokenProcessPool:
            raise DataError(
                "a process that reads text was killed, perhaps for want of memory",
                hint=f"workers={max(1, workers // 2)}",
            ) from None
        finally:
            for _, future in waiting:
                future.cancel()


def _parts(sources: Sequence[Path]) -> Iterator[Part]:
    for path in sources:
        with contextlib.ExitStack() as opened:
            file: IO[bytes]
            file = raw = opened.enter_context(path.open("rb"))
            if path.suffix.lower() == ".gz":
                file = cast(IO[bytes], opened.enter_context(gzip.GzipFile(fileobj=raw)))
            number, done = 1, 0
            try:
                while lines := file.readlines(PART):
                    yield Part(str(path), number, lines, raw.tell() - done)
                    number, done = number + len(lines), raw.tell()
            except (OSError, EOFError, zlib.error) as error:  # what says it is compressed and is not, or not to its end
                raise DataError(f"{path} cannot be read after line {number - 1}: {error}") from error


_how: How  # of a process that encodes; forked, it has its parent's tokenizer


def _prepare(how: How) -> None:
    global _how
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _how = how


def _encode(part: Part) -> tuple[bytes, bytes, str | None]:
    import numpy as np

    before = [_how.tokenizer.bos_token_id] if _how.add_bos else []
    after = [_how.tokenizer.eos_token_id] if _how.add_eos else []
    is_json = not {".json", ".jsonl"}.isdisjoint(Path(part.path.lower()).suffixes)
    documents = []
    for number, line in enumerate(part.lines, start=part.number):
        try:
            text = _text(line, is_json, _how.key)
        except ValueError as error:
            return b"", b"", f"{part.path}:{number}: {error}"
        if text is not None:
            documents.append(np.array([*before, *encode_text(_how.tokenizer, text), *after], "<i4"))
    lengths = np.array([len(each) for each in documents], "<i4")
    return b"".join(each.tobytes() for each in documents), lengths.tobytes(), None


def _text(line: bytes, is_json: bool, key: str) -> str | None:
    """The text of a line; None for one that is empty. Raises ValueError for what is none."""
    if not line.strip():
        return None
    if not is_json:
        return line.decode("utf-8-sig").rstrip("\r\n")  # as some editors begin a file, which is no text
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__} where an object is needed")
    if key not in record:
        raise ValueError(f"the field {key!r} is missing; it has {', '.join(map(repr, record))}")
    if not isinstance(record[key], str):
        raise ValueError(f"the field {key!r} must be text, not {record[key]!r}")
    record[key].encode()  # JSON can spell half of a surrogate pair, which no tokenizer reads
    return str(record[key]) if record[key].strip() else None


@contextlib.contextmanager
def _progress(sources: Sequence[Path]) -> Iterator[Any]:
    """A bar on a terminal, of the bytes that are read."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("tokens", total=sum(path.stat().st_size for path in sources))
        yield lambda read: progress.advance(bar, read)


def _why_not(path: Path) -> str:
    return "Is a directory" if path.is_dir() else "No such file"
