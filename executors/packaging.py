"""What code travels with a task: a packager says which files, a Package copies them.

Which files those are is decided when an experiment runs; from then on it runs from its copy, and the user may go on
editing. No packager writes anything into the user's tree or runs a git hook.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO

from launcher.errors import PackagingError, nearest

MAX_DIFF = 32 * 2**20  # bytes; a larger diff is left out of the record, whose copy holds the files in any case
BLOCK = 2**20

# Where git would look instead of in the folder that it is given: set, for one, while a git hook runs.
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
# Whatever the user's settings are: paths from the folder that git runs in, exact, of the submodules their commits.
DIFF = ("--relative", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--ignore-submodules=dirty")
SUBMODULE = b"160000"
SHOWN = 10  # names in an error
IN_PLACE = "packager=run.Packager() runs the code where it is"


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

    def _place(self, source: Path) -> str | None:
        for part, folder in self.parts or (("", self.root),):
            if source.is_relative_to(folder):
                return _joined(part, source.relative_to(folder).as_posix())
        return None

    def locate(self, source: Path) -> str | None:
        """The name in the package of a file or folder of the user's; None for one that does not travel."""
        if source in self._names:
            return self._names[source]
        found = self._place(source)
        return found if found in self._folders else None

    @cached_property
    def digest(self) -> str:
        """sha256 over names, modes and contents, in hexadecimal. Reads every file. Raises PackagingError."""
        total = hashlib.sha256()
        for name, source in sorted(self.files):
            with _explained(name):
                mode = source.lstat().st_mode
                content = hashlib.sha256()
                if stat.S_ISLNK(mode):
                    content.update(os.fsencode(self._link(name, source)))
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
            os.symlink(self._link(name, source), target)
            return
        try:
            mode = stat.S_IMODE(os.fstat(reading).st_mode)
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

    def _link(self, name: str, source: Path) -> str:
        """What a link says in the copy."""
        written = os.readlink(source)
        found = self.locate(Path(os.path.normpath(source.parent / written)))
        if found is None:
            return os.path.join(source.parent, written)
        return written if not os.path.isabs(written) else os.path.relpath(found, os.path.dirname(name) or ".")

    def including(self, script: Path | None) -> Package:
        """The package with this file too: where its folder is in the package, else at the top.

        Raises PackagingError if another file has its name there.
        """
        if script is None or script in self._names:
            return self
        name = self._place(script) or script.name
        return replace(self, files=_without_clashes([*self.files, (name, script)]))


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PackagingError(f"{what!r} cannot be packaged: {error}") from error


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part not in ("", "."))


def _without_clashes(files: Iterable[tuple[str, Path]]) -> tuple[tuple[str, Path], ...]:
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


@dataclass(kw_only=True)
class Packager:
    """No package: the code runs where it is, and what is edited meanwhile is what runs."""

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
        root, commit = _repository(folder if script is None else script.parent)
        if self.subpath:
            root = self._subfolder(root)
            commit = _repository(root)[1]
        tracked = dict(_tracked(root))
        names = [_joined(part, name) for part, listed in tracked.items() for name in listed]
        diffs = [_changes(root / part, part) for part in tracked]
        added: list[str] = []
        if script is not None and script.is_relative_to(root):
            added = [name for name in [script.relative_to(root).as_posix()] if name not in names]
            diffs += [_diff(root, "--no-index", "--", os.devnull, name) for name in added]
        if self.check_uncommitted_changes and any(diffs):
            changed = added + [_joined(part, name) for part in tracked for name in _changed_names(root / part)]
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
                hint=nearest(self.subpath, (entry.name for entry in top.iterdir() if entry.is_dir())),
            )
        return folder


@dataclass(kw_only=True)
class PatternPackager(Packager):
    """The files that fit a pattern.

    include_pattern: one or more, as in a shell, `**` being any number of folders; a folder that fits comes whole.
    relative_path: the folder that names in the package are relative to; one for all patterns, or one for each.

    Relative ones are taken from the folder that the user launches from.
    """

    include_pattern: str | list[str]
    relative_path: str | list[str]

    def collect(self, folder: Path, script: Path | None) -> Package:
        patterns = [self.include_pattern] if isinstance(self.include_pattern, str) else self.include_pattern
        relative = [self.relative_path] if isinstance(self.relative_path, str) else self.relative_path
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
                    raise PackagingError(
                        f"PatternPackager: {path} fits {pattern!r}, but is not in relative_path {root}"
                    )
                files.append((path.relative_to(root).as_posix(), path))
        parts = tuple(("", root) for root in dict.fromkeys(roots))
        return Package(root=roots[0], files=_without_clashes(files), parts=parts)


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
        found = [(_joined(name, file), path) for name, package in packages.items() for file, path in package.files]
        return Package(
            root=folder,
            files=_without_clashes(found),
            commit=next((package.commit for package in packages.values() if package.commit), None),
            dirty=any(package.dirty for package in packages.values()),
            diff="".join(package.diff for package in packages.values()),
            parts=tuple(
                (_joined(name, part), top)
                for name, package in packages.items()
                for part, top in package.parts or (("", package.root),)
            ),
        )


def default_packager(folder: Path) -> Packager:
    """Git where `folder` is in a repository, in place elsewhere."""
    folder = Path(os.path.realpath(folder))
    inside = any(
        (parent / ".git").is_file() or (parent / ".git/HEAD").is_file() for parent in (folder, *folder.parents)
    )
    return GitArchivePackager() if inside else Packager()


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


def _git(folder: Path, *arguments: str, into: IO[bytes] | None = None, expected: Sequence[int] = (0,)) -> bytes:
    """What git says. Its hooks stay out of it, and so does what disturbs another git. Raises PackagingError."""
    settings = ["-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
    command = ["git", "--no-pager", *settings, "-C", str(folder), *arguments]
    env = {name: value for name, value in os.environ.items() if name not in GIT_PLACES}
    env |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    stdout = subprocess.PIPE if into is None else into
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env=env, check=False
        )
    except OSError as error:
        raise PackagingError(f"git cannot be run: {error}", hint=IN_PLACE) from error
    if done.returncode not in expected:
        words = done.stderr.decode(errors="replace").strip()
        raise PackagingError(f"git {arguments[0]} fails in {folder}: {words}", hint=IN_PLACE)
    return done.stdout or b""


def _repository(folder: Path) -> tuple[Path, str | None]:
    """The top folder of the repository around `folder`, and its commit; None before the first."""
    said = _git(folder, "rev-parse", "--show-toplevel", "--revs-only", "HEAD").removesuffix(b"\n")
    top, _, commit = said.rpartition(b"\n")
    if re.fullmatch(rb"[0-9a-f]{40,}", commit):
        return Path(os.fsdecode(top)), commit.decode()
    return Path(os.fsdecode(said)), None


def _tracked(root: Path, part: str = "") -> Iterator[tuple[str, list[str]]]:
    """The tracked names of a repository, then those of its submodules, each under where it lies in `root`."""
    entries = [entry.partition(b"\t") for entry in _git(root / part, "ls-files", "-z", "--stage").split(b"\0")[:-1]]
    # A name in conflict is listed once for each side.
    names = dict.fromkeys(os.fsdecode(name) for state, _, name in entries if not state.startswith(SUBMODULE))
    yield part, list(names)
    for state, _, name in entries:
        submodule = _joined(part, os.fsdecode(name))
        if state.startswith(SUBMODULE) and os.path.lexists(root / submodule / ".git"):
            yield from _tracked(root, submodule)


def _base(folder: Path) -> str:
    """What the working tree is compared with: the commit; before the first, the empty tree."""
    return _repository(folder)[1] or _git(folder, "hash-object", "-t", "tree", os.devnull).decode().strip()


def _changes(folder: Path, part: str) -> str:
    prefix = part and f"{part}/"
    return _diff(folder, f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}", _base(folder), "--")


def _changed_names(folder: Path) -> list[str]:
    listed = _git(folder, "diff", *DIFF, "--name-only", "-z", _base(folder), "--")
    return [os.fsdecode(name) for name in listed.split(b"\0")[:-1]]


def _diff(folder: Path, *arguments: str) -> str:
    with tempfile.TemporaryFile() as file:
        _git(folder, "diff", *DIFF, "--binary", "--full-index", *arguments, into=file, expected=(0, 1))
        if (size := file.tell()) > MAX_DIFF:
            return f"(a diff of {size} bytes, which is not kept)\n"
        file.seek(0)
        return file.read().decode(errors="surrogateescape")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
