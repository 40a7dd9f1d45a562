"""Packagers: which of the user's code travels with a task.

That is decided when an experiment runs; from then on it runs from its copy, and the user may go on editing.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from executors.git import IN_PLACE, addition, changed_names, changes, repository, tracked_names
from executors.package import Package as Package
from executors.package import joined, without_clashes
from launcher.errors import PackagingError, nearest
from launcher.strict import Strict

SHOWN = 10  # names in an error


@dataclass(kw_only=True)
class Packager(Strict):
    """No package: the code runs where it is, and what is edited meanwhile is what runs."""

    strict_error = PackagingError

    def package(self, folder: Path, script: Path | None) -> Package | None:
        """What travels when a user launches from `folder`; the launch script always does. None: in place.

        Starts nothing but git, and writes nothing. Raises PackagingError.
        """
        script = None if script is None else Path(os.path.realpath(script))
        found = self.collect(Path(os.path.realpath(folder)), script)
        return None if found is None else found.including(script)

    def collect(self, folder: Path, script: Path | None) -> Package | None:
        """What this packager finds by itself. The paths are absolute, with no link in them."""
        return None


@dataclass(kw_only=True)
class GitArchivePackager(Packager):
    """The tracked files of the launch script's repository (where there is no script, of the current folder's).

    They are taken as they are on disk, committed or not, and so are those of submodules that are checked out. What is
    untracked or ignored stays behind, but for the launch script.

    subpath: this folder of the repository alone.
    check_uncommitted_changes: refuse what no commit holds.
    """

    subpath: str = ""
    check_uncommitted_changes: bool = False

    def collect(self, folder: Path, script: Path | None) -> Package:
        root, commit = repository(folder if script is None else script.parent)
        if self.subpath:
            root = self._subfolder(root)
            commit = repository(root)[1]
        tracked = dict(tracked_names(root))
        names = [joined(part, name) for part, listed in tracked.items() for name in listed]
        diffs = [changes(root / part, part) for part in tracked]
        added: list[str] = []
        if script is not None and script.is_relative_to(root):
            added = [name for name in [script.relative_to(root).as_posix()] if name not in names]
            diffs += [addition(root, name) for name in added]
        if self.check_uncommitted_changes and any(diffs):
            changed = added + [joined(part, name) for part in tracked for name in changed_names(root / part)]
            raise PackagingError(
                f"{root} has uncommitted changes, which check_uncommitted_changes refuses: {_listed(changed)}",
                hint="git commit",
            )
        files = tuple((name, root / name) for name in names + added if _is_there(root / name))
        return Package(root=root, files=files, commit=commit, dirty=any(diffs), diff="".join(diffs))

    def _subfolder(self, top: Path) -> Path:
        folder = Path(os.path.realpath(top / self.subpath))
        if not folder.is_dir() or not folder.is_relative_to(top):
            raise PackagingError(
                f"GitArchivePackager.subpath is {self.subpath!r}, which is not a folder of {top}",
                hint=nearest(str(self.subpath), (entry.name for entry in top.iterdir() if entry.is_dir())),
            )
        return folder


@dataclass(kw_only=True)
class PatternPackager(Packager):
    """The files that fit a pattern.

    include_pattern: one or more, as in a shell, `**` being any number of folders; a folder that fits comes whole.
    relative_path: the folder that names in the package are relative to; one for all patterns, or one for each.

    Relative ones are taken from the folder that the user launches from.
    """

    include_pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    relative_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

    def collect(self, folder: Path, script: Path | None) -> Package:
        patterns, relative = _texts(self.include_pattern), _texts(self.relative_path)
        if len(relative) == 1:
            relative = relative * len(patterns)
        if not patterns or len(relative) != len(patterns):
            raise PackagingError(
                f"PatternPackager has {len(patterns)} of include_pattern and {len(relative)} of relative_path",
                hint="one relative_path, or as many as there are patterns",
            )
        roots = [Path(os.path.realpath(folder / path)) for path in relative]
        files: list[tuple[str, Path]] = []
        for pattern, root in zip(patterns, roots, strict=True):
            found = [*_matching(folder, pattern)]
            if not found:
                raise PackagingError(
                    f"PatternPackager: nothing in {folder} fits {pattern!r}", hint=nearest(pattern, os.listdir(folder))
                )
            for path in found:
                if not path.is_relative_to(root):
                    raise PackagingError(f"PatternPackager: {path} fits {pattern!r}, but is not in {root}")
                files.append((path.relative_to(root).as_posix(), path))
        parts = tuple(("", root) for root in dict.fromkeys(roots))
        return Package(root=roots[0], files=without_clashes(files), parts=parts)


@dataclass(kw_only=True)
class HybridPackager(Packager):
    """Several packagers, each into a folder of its own: {"code": GitArchivePackager(), "data": PatternPackager(...)}.

    The commit is that of the first that has one; the diffs are joined.
    """

    sub_packagers: dict[str, Packager]

    def collect(self, folder: Path, script: Path | None) -> Package:
        packages: dict[str, Package] = {}
        for name, packager in self.sub_packagers.items():
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise PackagingError(f"HybridPackager.sub_packagers has {name!r}, which is no folder's name")
            package = packager.collect(folder, script)
            if package is None:
                raise PackagingError(f"HybridPackager.sub_packagers[{name!r}] packages nothing", hint="leave it out")
            packages[name] = package
        if not packages:
            raise PackagingError("HybridPackager.sub_packagers is empty", hint=IN_PLACE)
        found = [(joined(name, file), path) for name, package in packages.items() for file, path in package.files]
        return Package(
            root=folder,
            files=without_clashes(found),
            commit=next((package.commit for package in packages.values() if package.commit), None),
            dirty=any(package.dirty for package in packages.values()),
            diff="".join(package.diff for package in packages.values()),
            parts=tuple(
                (joined(name, part), top)
                for name, package in packages.items()
                for part, top in package.parts or (("", package.root),)
            ),
        )


def default_packager(folder: Path) -> Packager:
    """Git where `folder` is in a repository, in place elsewhere."""
    folder = Path(os.path.realpath(folder))
    marks = [parent / ".git" for parent in (folder, *folder.parents)]
    return GitArchivePackager() if any(mark.is_file() or (mark / "HEAD").is_file() for mark in marks) else Packager()


def _texts(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    return [os.fspath(one) for one in ([given] if isinstance(given, str | os.PathLike) else given)]


def _is_there(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    for match in glob.iglob(pattern, root_dir=folder, recursive=True, include_hidden=False):
        path = folder / match
        path = Path(os.path.realpath(path.parent)) / path.name
        if _is_there(path):
            yield path
            continue
        for parent, folders, names in os.walk(path):
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            yield from (file for name in links + names if _is_there(file := Path(parent, name)))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
