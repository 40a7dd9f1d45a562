"""The base image of the container lab, made of this machine's own packages and its Python: no registry is asked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.labs.machine import LABS

TARBALL = LABS / "container_image.tar"
PACKAGES = (
    *("base-files", "bash", "coreutils", "dash", "grep", "sed", "mawk", "findutils", "tar", "gzip", "hostname"),
    *("debianutils", "procps", "util-linux", "libc-bin", "netbase", "ca-certificates", "tzdata"),
    "libstdc++6",  # compiled wheels load it from the system
)
MADE = ("/usr/bin/sh", "/usr/bin/awk", "/etc/alternatives/awk", "/etc/ssl/certs", "/etc/ssl/certs/ca-certificates.crt")
"""What no package lists: its scripts make it."""
LEFT_OUT = re.compile(
    r"/usr/share/(doc|man|info|locale|lintian|bug|perl5?)(/|$)|/usr/lib/(systemd|udev)/|/etc/(shadow|gshadow|init|pam|cron)"
)
PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"
USER = "runner"  # who is not root in there; 1000:1000
ACCOUNTS = {
    "passwd": f"root:x:0:0::/root:/bin/bash\n{USER}:x:1000:1000::/home/{USER}:/bin/bash\n",
    "group": f"root:x:0:\n{USER}:x:1000:\n",
    "nsswitch.conf": "hosts: files dns\n",
}


def python() -> str:
    """The interpreter that the tests run with, whose path is the same in the image."""
    return os.path.realpath(sys.executable)


def mark() -> str:
    """What tells images for one interpreter from those for another."""
    return hashlib.sha256(python().encode()).hexdigest()[:8]


def tarball() -> Path:
    """The image as a root file system in a tar archive; made once for an interpreter."""
    made = TARBALL.with_suffix(f".{mark()}.tar")
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=LABS, prefix="image_") as scratch:
            root = Path(scratch, "root")
            root.mkdir()
            _system(root)
            _python(root)
            _accounts(root)
            subprocess.run(["chroot", root, "/sbin/ldconfig"], check=True, capture_output=True)
            new = Path(scratch, "image.tar")
            _run(["tar", "-C", str(root), "--numeric-owner", "-cf", str(new), "."])
            new.replace(made)
    return made


def _system(root: Path) -> None:
    """The files of the packages, and of all that they need."""
    options = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    said = _run(["apt-cache", "depends", "--recurse", "--installed", *options, *PACKAGES])
    names = sorted(set(re.findall(r"^[a-z0-9][a-z0-9.+-]*$", said, re.MULTILINE)))
    listed = subprocess.run(["dpkg", "-L", *names], capture_output=True, text=True, check=False).stdout
    # Where /bin, /lib are links into /usr, dpkg lists some files below the links all the same.
    merged = (re.sub(r"^/(bin|sbin|lib|lib32|lib64|libx32)(/|$)", r"/usr/\1\2", line) for line in listed.splitlines())
    found = {path for path in merged if path.startswith("/") and path != "/." and not LEFT_OUT.match(path)}
    _copy(root, sorted({*found, *MADE}))
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).exists():
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(f"usr/{name}")


def _python(root: Path) -> None:
    """This Python, at its own path, without what is installed for it, and the libraries that its modules need."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix, library = Path(sys.base_prefix), Path(os.__file__).parent
    skipped = ("site-packages", "test", "idlelib", "turtledemo", "__pycache__")
    whole = library if str(prefix) == "/usr" else prefix / "lib"
    skip = [f"--exclude={library.relative_to('/')}/{name}" for name in (*skipped, f"config-{version[6:]}*")]
    program = Path(python()).relative_to("/")
    tar = ["tar", "-C", "/", "-cf", "-", *skip, "--exclude=*.a", str(program), str(whole.relative_to("/"))]
    made = subprocess.run(tar, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-C", root, "-xpf", "-"], input=made, check=True)
    _copy(root, _needed([python(), *map(str, library.rglob("lib-dynload/*.so"))]))
    if str(prefix) != "/usr":
        for folder in prefix.parents:
            if folder != Path("/"):
                (root / folder.relative_to("/")).chmod(0o755)  # who is not root must be able to come to it
    # pip, for the images that are built on this one; Debian's Python looks for it elsewhere than others do.
    site = next(path for path in map(Path, sys.path) if (path / "pip").is_dir())
    where = subprocess.run([python(), "-Ic", PURELIB], check=True, capture_output=True, text=True).stdout.strip()
    target = root / Path(where).relative_to("/")
    for source in (site / "pip", *site.glob("pip-*.dist-info")):
        shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    links = root / "usr" / "local" / "bin"
    links.mkdir(parents=True, exist_ok=True)
    for name in ("python3", "python", version):
        (links / name).symlink_to(python())


def _needed(programs: Sequence[str]) -> set[str]:
    """The shared libraries that are linked to them."""
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    return {os.path.realpath(path) for path in re.findall(r"=> (/\S+)", said)} | set(re.findall(r"=> (/\S+)", said))


def _accounts(root: Path) -> None:
    for name in ("dev", "proc", "sys", "run", "tmp", "var/tmp", "root", f"home/{USER}"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    os.chown(root / "home" / USER, 1000, 1000)
    for name, text in ACCOUNTS.items():
        (root / "etc" / name).write_text(text)


def _copy(root: Path, paths: Iterable[str]) -> None:
    """Files and folders, as they are, to the same paths; a folder without what is in it."""
    with tarfile.open(root.with_name("part.tar"), "w") as tar:
        for path in paths:
            if os.path.lexists(path):
                tar.add(path, recursive=False)
    _run(["tar", "-C", str(root), "-xpf", str(root.with_name("part.tar"))])


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
