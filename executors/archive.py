"""A package as one file, which is sent to a cluster that has none of its name; and the package of our own code."""

from __future__ import annotations

import contextlib
import gzip
import os
import secrets
import tarfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

from executors.package import Package
from launcher.errors import PackagingError
from launcher.home import home

OURS = ("executors", "experiments", "gemma_models", "launcher")
SUFFIXES = (".py", ".typed", ".sh", ".jsonl")
LEVEL = 6  # of compression: source code gains little beyond
UNUSED = 7 * 24 * 3600  # seconds after which an archive is taken away


def archive(package: Package) -> Path:
    """The package as a .tar.gz of that digest's name, in our state folder. The same files give the same bytes.

    What lies in it is what `copy_to` makes of the package. Raises PackagingError.
    """
    folder = home() / "packages"
    made = folder / f"{package.digest}.tar.gz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.utime(made)
        except FileNotFoundError:
            _make(package, made)
            _prune(folder)
    except OSError as error:
        raise PackagingError(f"cannot write {made}: {error.strerror or error}") from error
    return made


@cache
def own_package() -> Package:
    """Our own packages, which a job needs beside its training stack, as they were first seen. Writes nothing."""
    root = Path(__file__).resolve().parents[1]
    found = (path for name in OURS for path in (root / name).rglob("*") if path.suffix in SUFFIXES)
    return Package(root=root, files=tuple(sorted((path.relative_to(root).as_posix(), path) for path in found)))


def _make(package: Package, made: Path) -> None:
    scratch = made.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with (
            scratch.open("xb") as file,
            gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed,
            # As old as tar itself, and any byte may be in a name.
            tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar,
        ):
            for name, source in sorted(package.files):
                _add(package, tar, name, source)
        if replace(package).digest != package.digest:
            raise PackagingError(f"files of {package.root} were changed while they were packaged", hint="launch again")
        scratch.replace(made)
    finally:
        scratch.unlink(missing_ok=True)


def _add(package: Package, tar: tarfile.TarFile, name: str, source: Path) -> None:
    entry = tarfile.TarInfo(name)
    try:
        if source.is_symlink():
            entry.type, entry.linkname = tarfile.SYMTYPE, package.link(name, source)
            tar.addfile(entry)
            return
        with source.open("rb") as file:
            found = os.fstat(file.fileno())
            entry.size, entry.mode = found.st_size, found.st_mode & 0o777
            tar.addfile(entry, file)
    except OSError as error:
        raise PackagingError(f"{name!r} cannot be packaged: {error}") from error


def _prune(folder: Path) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another launcher is at it too
            if path.stat().st_mtime < time.time() - UNUSED:
                path.unlink()
