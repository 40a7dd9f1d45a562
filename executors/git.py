"""What git says of a working tree. Nothing here writes into it, runs a hook, or hinders another git meanwhile."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from executors.package import joined
from launcher.errors import PackagingError

MAX_DIFF = 32 * 2**20  # bytes; a larger diff is left out of the record, whose copy holds the files in any case

# Where git would look instead of in the folder that it is given: set, for one, while a git hook runs.
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
# Whatever the user's settings are: exact, paths from the folder that git runs in, and of a submodule its commit.
DIFF = (
    *("--relative", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--unified=3"),
    *("--submodule=short", "--ignore-submodules=dirty"),
)
SUBMODULE = b"160000"
IN_PLACE = "packager=run.Packager() runs the code where it is"


def _git(folder: Path, *arguments: str, into: IO[bytes] | None = None, expected: Sequence[int] = (0,)) -> bytes:
    """What git says. Its hooks stay out of it, and so does what disturbs another git. Raises PackagingError."""
    settings = ["-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "-c", "diff.autoRefreshIndex=false"]
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


def repository(folder: Path) -> tuple[Path, str | None]:
    """The top folder of the repository around `folder`, and its commit; None before the first."""
    said = _git(folder, "rev-parse", "--show-toplevel", "--revs-only", "HEAD").removesuffix(b"\n")
    top, _, commit = said.rpartition(b"\n")
    if re.fullmatch(rb"[0-9a-f]{40,}", commit):
        return Path(os.fsdecode(top)), commit.decode()
    return Path(os.fsdecode(said)), None


def tracked_names(root: Path, part: str = "") -> Iterator[tuple[str, list[str]]]:
    """The tracked names of a repository, then those of its submodules, each under where it lies in `root`."""
    entries = [entry.partition(b"\t") for entry in _git(root / part, "ls-files", "-z", "--stage").split(b"\0")[:-1]]
    # A name in conflict is listed once for each side.
    names = dict.fromkeys(os.fsdecode(name) for state, _, name in entries if not state.startswith(SUBMODULE))
    yield part, list(names)
    for state, _, name in entries:
        submodule = joined(part, os.fsdecode(name))
        if state.startswith(SUBMODULE) and os.path.lexists(root / submodule / ".git"):
            yield from tracked_names(root, submodule)


def _base(folder: Path) -> str:
    """What the working tree is compared with: the commit; before the first, the empty tree."""
    return repository(folder)[1] or _git(folder, "hash-object", "-t", "tree", os.devnull).decode().strip()


def changes(folder: Path, part: str) -> str:
    """What `git apply` makes of the commit to get the tracked files of `folder`; paths begin with `part`."""
    return _diff(folder, part, _base(folder), "--")


def changed_names(folder: Path) -> list[str]:
    """The tracked files of `folder` that are not as the commit has them, from the top of its repository."""
    options = ("--porcelain", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules=dirty")
    return [os.fsdecode(line[3:]) for line in _git(folder, "status", *options, "--", ".").split(b"\0")[:-1]]


def addition(folder: Path, name: str) -> str:
    """The same for a file that is not tracked."""
    return _diff(folder, "", "--no-index", "--", os.devnull, name)


def _diff(folder: Path, part: str, *arguments: str) -> str:
    prefixes = [f"--{side}-prefix={letter}/{part and f'{part}/'}" for side, letter in (("src", "a"), ("dst", "b"))]
    with tempfile.TemporaryFile() as file:
        _git(folder, "diff", *DIFF, "--binary", "--full-index", *prefixes, *arguments, into=file, expected=(0, 1))
        if (size := os.fstat(file.fileno()).st_size) > MAX_DIFF:
            return f"(a diff of {size} bytes, which is not kept)\n"
        file.seek(0)
        # Without the right to refresh its index, git gives touched files a heading without a change.
        found = re.sub(rb"^diff --git [^\n]*\n(?=diff --git |\Z)", b"", file.read(), flags=re.MULTILINE)
        return found.decode(errors="surrogateescape")
