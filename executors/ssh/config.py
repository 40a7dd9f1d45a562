"""Where `SSHTunnel(host)` leads: what ~/.ssh/config says of a host, as OpenSSH itself reads it.

`ssh -G` does the reading, so that Include, Match, patterns and tokens mean what they mean in the terminal.
"""

from __future__ import annotations

import functools
import getpass
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import TunnelError

TIMEOUT = 15.0  # seconds to wait for an answer of a host, where no ConnectTimeout is set
JUMPS = 8  # more of them are a circle
JUMP = re.compile(r"(?:ssh://)?(?:(?P<user>.+)@)?(?P<host>\[[^]]+\]|[^:]+)(?::(?P<port>\d+))?")
DEFAULT_IDENTITIES = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host with everything that is needed to log in there. Equal ones are one connection.

    alias: the host as it was typed. key_name: what known_hosts calls it. timeout: seconds to wait for an answer.
    agent: whether keys of the SSH agent are offered. jump: the host through which it is reached.
    """

    alias: str
    hostname: str
    user: str
    port: int = 22
    identities: tuple[str, ...] = ()
    identities_only: bool = False
    agent: bool = True
    known_hosts: tuple[str, ...] = ()
    key_alias: str | None = None
    timeout: float = TIMEOUT
    config: str | None = None
    jump: Host | None = None

    def __str__(self) -> str:
        return f"{self.user}@{self.alias}"

    @property
    def key_name(self) -> str:
        name = (self.key_alias or self.hostname).lower()
        return name if self.port == 22 or self.key_alias else f"[{name}]:{self.port}"

    @property
    def command(self) -> str:
        """What a person types to log in there."""
        words = ["ssh"]
        if self.config is not None:
            words += ["-F", self.config]
        if self.port != 22:
            words += ["-p", str(self.port)]
        return shlex.join([*words, str(self)])


def resolve(host: str, *, user: str | None, port: int | None, identity: str | None, config: str | None) -> Host:
    """The host that is meant. What is given here wins over the configuration file (default: ~/.ssh/config).

    Raises TunnelError where the file cannot be read, or asks for what only OpenSSH's own client does.
    """
    if identity is not None and not Path(identity).expanduser().is_file():
        raise TunnelError(f"there is no key file {identity}", hint="identity='~/.ssh/id_ed25519'")
    given = None if identity is None else str(Path(identity).expanduser())
    file = None if config is None else str(Path(config).expanduser())
    return _resolve(host, user, port, given, file, None, JUMPS)


@functools.cache  # for the life of the process, as the connection
def _resolve(
    host: str, user: str | None, port: int | None, identity: str | None, config: str | None, jump: str | None, left: int
) -> Host:
    found = _settings(host, user, port, config)
    one = {key: values[0] for key, values in found.items()}
    jump = jump or one.get("proxyjump", "none")
    if one.get("proxycommand", "none") != "none":
        raise TunnelError(
            f"{config or '~/.ssh/config'} has a ProxyCommand for {host}, which is not supported",
            hint=f"ProxyJump instead of it: {_suggest_jump(one['proxycommand'])}",
        )
    tokens = {
        "%": "%",
        "d": os.path.expanduser("~"),
        "h": one["hostname"],
        "k": one.get("hostkeyalias", one["hostname"]),
        "n": host,
        "p": one["port"],
        "r": one["user"],
        "u": getpass.getuser(),
    }

    def expand(path: str) -> str:
        return os.path.expanduser(re.sub(r"%(.)", lambda token: tokens.get(token[1], token[0]), path))

    timeout = one.get("connecttimeout", "none")
    identities = [expand(path) for path in found.get("identityfile", [])]
    known_hosts = [*found.get("userknownhostsfile", []), *found.get("globalknownhostsfile", [])]
    return Host(
        alias=host,
        hostname=one["hostname"],
        user=one["user"],
        port=int(one["port"]),
        identities=tuple(dict.fromkeys([*([] if identity is None else [identity]), *identities])),
        identities_only=one.get("identitiesonly") == "yes",
        agent=one.get("identityagent") != "none",
        known_hosts=tuple(expand(path) for line in known_hosts for path in line.split()),
        key_alias=one.get("hostkeyalias"),
        timeout=TIMEOUT if timeout == "none" else float(timeout),
        config=config,
        jump=None if jump == "none" else _resolve_jump(jump, config, left),
    )


def _resolve_jump(jump: str, config: str | None, left: int) -> Host:
    """The last host of "a,b", which is reached through those before it."""
    before, _, last = jump.rpartition(",")
    parsed = JUMP.fullmatch(last.strip())
    if parsed is None or not left:
        raise TunnelError(f"ProxyJump {jump} leads nowhere", hint="ProxyJump user@host:port")
    port = None if parsed["port"] is None else int(parsed["port"])
    return _resolve(parsed["host"].strip("[]"), parsed["user"], port, None, config, before or None, left - 1)


def _settings(host: str, user: str | None, port: int | None, config: str | None) -> dict[str, list[str]]:
    """Every line of `ssh -G`: keyword (in lower case) to its values."""
    if shutil.which("ssh") is None:
        if config is not None or Path("~/.ssh/config").expanduser().exists():
            raise TunnelError(
                f"{config or '~/.ssh/config'} is read by OpenSSH's client, and there is no ssh on this machine",
                hint="install openssh-client",
            )
        return {
            "hostname": [host],
            "user": [user or getpass.getuser()],
            "port": [str(port or 22)],
            "identityfile": list(DEFAULT_IDENTITIES),
            "userknownhostsfile": ["~/.ssh/known_hosts"],
            "globalknownhostsfile": ["/etc/ssh/ssh_known_hosts"],
        }
    command = ["ssh", "-G"]
    for option, value in (("-F", config), ("-l", user), ("-p", port)):
        command += [] if value is None else [option, str(value)]
    try:
        done = subprocess.run(
            [*command, "--", host], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise TunnelError(f"ssh -G {host} did not end within {TIMEOUT:.0f} s", hint="see its Match exec") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise TunnelError(f"ssh cannot read its configuration for {host}: {said}")
    found: dict[str, list[str]] = {}
    for line in done.stdout.decode(errors="surrogateescape").splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def _suggest_jump(command: str) -> str:
    """`ssh -W %h:%p gateway`, as it was written before there was ProxyJump, names the host to jump through."""
    words = [word for word in command.split() if not word.startswith("-") and "%" not in word]
    return f"ProxyJump {words[-1] if words and words[0] == 'ssh' and len(words) > 1 else 'GATEWAY'}"
