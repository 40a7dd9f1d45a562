"""The code that travels with a task: which files, under which names, and a copy of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from launcher.errors import PackagingError

BLOCK = 2**20


@dataclass(frozen=True, kw_only=True)
class Package:
    """The files that travel, by name, and the commit that they came from.

    root: the folder that the names are relative to.
    files: name in the package (with `/`) and source.
    commit, dirty, diff: of a git repository, else None, False and "". `git apply` of the diff to the commit, with its
        submodules, gives what was packaged. What is in it that is not UTF-8 is decoded with surrogateescape.
    parts: where source folders lie in the package, where that is not `root` at its top.
    """

    root: Path
    files: tuple[tuple[str, Path], ...]
    commit: str | None = None
    dirty: bool = False
    diff: str = field(default="", repr=False)
    parts: tuple[tuple[str, Path], ...] = ()

    def describe(self) -> str:
        """The package on one line: "312 files of /home/me/repo, commit 3f9a..., with uncommitted changes"."""
        commit = "" if self.commit is None else f", commit {self.commit[:12]}"
        return f"{len(self.files)} files of {self.root}{commit}" + (", with uncommitted changes" if self.dirty else "")

    @cached_property
    def _names(self) -> dict[Path, str]:
        return {source: name for name, source in self.files}

    @cached_property
    def _folders(self) -> set[str]:
        found: set[str] = {""}
        for name, _ in self.files:
            while (name := name.rpartition("/")[0]) not in found:
                found.add(name)
        return found

    def _places(self, source: Path) -> list[str]:
        parts = self.parts or (("", self.root),)
        return [joined(part, source.relative_to(top).as_posix()) for part, top in parts if source.is_relative_to(top)]

    def locate(self, source: Path) -> str | None:
        """The name in the package of a file or folder of the user's; None for one that does not travel."""
        if source in self._names:
            return self._names[source]
        return next((name for name in self._places(source) if name in self._folders), None)

    @cached_property
    def digest(self) -> str:
        """sha256 over names, modes and contents, in hexadecimal. Reads every file. Raises PackagingError."""
        total = hashlib.sha256()
        for name, source in sorted(self.files):
            with _explained(name):
                mode = source.lstat().st_mode
                content = hashlib.sha256()
                if stat.S_ISLNK(mode):
                    content.update(os.fsencode(self.link(name, source)))
                else:
                    with open(source, "rb") as file:
                        while block := file.read(BLOCK):
                            content.update(block)
            kind = b"link" if stat.S_ISLNK(mode) else b"program" if mode & 0o111 else b"file"
            total.update(b"%b\0%b\0%b" % (os.fsencode(name), kind, content.digest()))
        return total.hexdigest()

    def copy_to(self, folder: Path) -> None:
        """Make `folder`, with every file in it or not at all. Modes are kept.

        A symbolic link whose target travels too leads to it in the copy; another leads where it led.

        Raises PackagingError if a file cannot be read, the disk is full, or `folder` is there already.
        """
        scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            with _explained(str(folder)):
                for name in sorted(self._folders):
                    os.makedirs(scratch / name)
            top = str(scratch)
            for name, source in self.files:
                with _explained(name):
                    self._copy(name, source, f"{top}/{name}")
            with _explained(str(folder)):
                os.rename(scratch, folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def _copy(self, name: str, source: Path, target: str) -> None:
        try:
            reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            if not source.is_symlink():
                raise
            os.symlink(self.link(name, source), target)
            return
        try:
            mode = os.fstat(reading).st_mode & 0o777
            writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                while block := os.read(reading, BLOCK):
                    while block:
                        block = block[os.write(writing, block) :]
                os.fchmod(writing, mode)
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def link(self, name: str, source: Path) -> str:
        """What a symbolic link says in a copy (see copy_to)."""
        written = os.readlink(source)
        found = self.locate(Path(os.path.normpath(source.parent / written)))
        if found is None:
            return os.path.join(source.parent, written)
        place = os.path.dirname(name)
        if joined(os.path.normpath(os.path.join(place, written))) == found:
            return written
        return os.path.relpath(found or ".", place or ".")

    def including(self, script: Path | None) -> Package:
        """The package with this file too: where its folder is in the package, else at the top.

        Raises PackagingError if another file has its name there.
        """
        if script is None or script in self._names:
            return self
        name = next(iter(self._places(script)), script.name)
        return replace(self, files=without_clashes([*self.files, (name, script)]))


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PackagingError(f"{what!r} cannot be packaged: {error}") from error


def joined(*parts: str) -> str:
    """A name in a package; empty parts and "." leave nothing."""
    return "/".join(part for part in parts if part not in ("", "."))


def without_clashes(files: Iterable[tuple[str, Path]]) -> tuple[tuple[str, Path], ...]:
    """The files, each once. Raises PackagingError for two of one name, and for a file where another has a folder."""
    found: dict[str, Path] = {}
    for name, source in files:
        if found.setdefault(name, source) != source:
            raise PackagingError(f"{source} and {found[name]} would both be {name!r} in the package")
    for name in found:
        folder = name
        while folder := folder.rpartition("/")[0]:
            if folder in found:
                raise PackagingError(f"{found[folder]} would be a file {folder!r}, where {found[name]} needs a folder")
    return tuple(found.items())
