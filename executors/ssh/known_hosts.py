"""Host keys: a host that is not known, or has another key than it had, is never spoken to.

There is no way around this and none to add a key: that is for a person to do, who can compare fingerprints.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from executors.ssh.config import Host
from launcher.errors import TunnelError


@dataclass(frozen=True)
class Entry:
    """One line of a known_hosts file."""

    place: str  # file:line
    revoked: bool
    names: str
    type: str
    key: bytes

    def matches(self, name: str) -> bool:
        if self.names.startswith("|1|"):
            salt, _, digest = self.names[3:].partition("|")
            try:
                wanted = hmac.new(base64.b64decode(salt), name.encode(), hashlib.sha1).digest()
                return hmac.compare_digest(base64.b64decode(digest), wanted)
            except binascii.Error:
                return False
        patterns = self.names.lower().split(",")
        # In fnmatch brackets are a set of characters; here they hold a name that has a port.
        hits = {p for p in patterns if fnmatchcase(name, p.lstrip("!").replace("[", "[[]"))}
        return bool(hits) and not any(hit.startswith("!") for hit in hits)


def entries(host: Host) -> list[Entry]:
    """What is known of a host. Lines of its bare name count too where it has a port, as they do for ssh."""
    names = {host.key_name} if host.key_alias else {host.key_name, host.hostname.lower()}
    lines = (entry for file in host.known_hosts for entry in _read(Path(file)))
    return [entry for entry in lines if any(entry.matches(name) for name in names)]


def verify(host: Host, type_: str, key: bytes, known: list[Entry]) -> None:
    """Refuse a host whose key is not the known one. Raises TunnelError, with what a person must do."""
    shown = f"{type_} {fingerprint(key)}"
    same = [entry for entry in known if entry.key == key]
    for entry in same:
        if entry.revoked:
            raise TunnelError(f"the key of {host.key_name}, {shown}, is REVOKED: {entry.place}. Nothing was sent.")
    if same:
        return
    # Another key under the bare name may be that of another server, at another port.
    for entry in sorted(known, key=lambda entry: entry.type != type_):
        if entry.matches(host.key_name) and not entry.revoked:
            removal = ["ssh-keygen", "-R", host.key_name, "-f", entry.place.rpartition(":")[0]]
            raise TunnelError(
                f"the key of {host.key_name} has CHANGED: it is {shown} now, and {entry.place} says {entry.type} "
                f"{fingerprint(entry.key)}. The host was set up anew, or someone stands between. Nothing was sent.",
                hint="ask its administrators for the fingerprint; only if it is the new one, "
                f"{shlex.join(removal)} and then {host.command}",
            )
    hint = f"{host.command} (it asks; compare the fingerprint with the one that your cluster's administrators give)"
    if host.jump is None:
        file = host.known_hosts[0] if host.known_hosts else "~/.ssh/known_hosts"
        kind = type_.removeprefix("ssh-").partition("-")[0]
        scan = ["ssh-keyscan", *(["-p", str(host.port)] if host.port != 22 else []), "-t", kind, host.hostname]
        hint += f", or, having compared it, {shlex.join(scan)} >> {shlex.quote(file)}"
    raise TunnelError(f"the host {host.key_name} is not known: its key is {shown}. Nothing was sent.", hint=hint)


def fingerprint(key: bytes) -> str:
    """As `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def _read(file: Path) -> Iterator[Entry]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise TunnelError(f"cannot read the known hosts: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        # Keys that sign other hosts' keys are left out: paramiko cannot check what they signed.
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
            continue
        try:
            key = base64.b64decode(words[2], validate=True)
        except binascii.Error:
            continue
        yield Entry(f"{file}:{number}", bool(marker), words[0], words[1], key)
