"""Prove to a host who we are: keys of the agent and of files, then what it asks a person (a second factor)."""

from __future__ import annotations

import contextlib
import getpass
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from executors.ssh.config import Host
from executors.ssh.known_hosts import fingerprint
from launcher.errors import TunnelError

if TYPE_CHECKING:
    import paramiko

PROMPTS = 3  # wrong answers before we give up, as ssh does
PATIENCE = 120.0  # seconds to touch a key, or type a code: sshd waits no longer

_asking = threading.Lock()  # one question at a time: two clusters may ask at once
_keys: dict[str, paramiko.PKey] = {}  # keys that were opened with a passphrase: it is asked once


def log_in(transport: paramiko.Transport, host: Host) -> None:
    """Log in on a connection whose host key was verified. Raises TunnelError, naming all that was tried."""
    import paramiko

    transport.auth_timeout = PATIENCE
    tried: list[str] = []
    keys = _candidates(host, tried)
    prompts = PROMPTS
    try:
        methods: Sequence[str] = transport.auth_none(host.user)
    except paramiko.BadAuthenticationType as refused:
        methods = refused.allowed_types
    while methods:
        try:
            if "publickey" in methods and (key := next(keys, None)) is not None:
                methods = transport.auth_publickey(host.user, key)
            elif "keyboard-interactive" in methods and prompts:
                prompts -= 1
                methods = _answer(transport, host)
            elif "password" in methods and prompts:
                prompts -= 1
                methods = transport.auth_password(host.user, _ask(host, "password: ", echo=False), fallback=False)
            else:
                raise _refused(host, tried, methods)
        except paramiko.BadAuthenticationType as refused:
            methods = refused.allowed_types
        except paramiko.AuthenticationException as error:
            if not transport.is_active():
                hint = "IdentitiesOnly yes in ~/.ssh/config, or fewer keys in the agent" if len(tried) > 3 else None
                raise TunnelError(
                    f"{host} ended the login ({error}) after {', '.join(tried) or 'no key'}", hint=hint
                ) from None


def _refused(host: Host, tried: list[str], methods: Sequence[str]) -> TunnelError:
    return TunnelError(
        f"{host} lets us in with none of: {', '.join(tried) or '(no key was found)'}; it takes {', '.join(methods)}",
        hint=f"identity='...' for another key, user='...' for another name; {host.command} -v shows what ssh does",
    )


def _candidates(host: Host, tried: list[str]) -> Iterator[paramiko.PKey]:
    """Keys in OpenSSH's order: the agent's that the configuration names, its others, key files."""
    import paramiko
    from paramiko.pkey import UnknownKeyType

    named = {blob: file for file in host.identities if (blob := _public(file)) is not None}
    agent = paramiko.Agent() if host.agent else None
    try:
        held = list(agent.get_keys()) if agent is not None else []
    except paramiko.SSHException as error:
        tried.append(f"the agent ({error})")
        held = []
    offered = set()
    try:
        for key in sorted(held, key=lambda key: key.asbytes() not in named):
            if key.asbytes() in named or not host.identities_only:
                offered.add(key.asbytes())
                tried.append(f"the agent's {key.get_name()} {fingerprint(key.asbytes())}")
                yield key
    finally:
        if agent is not None:
            agent.close()
    for file in host.identities:
        if not Path(file).is_file() or _public(file) in offered:
            continue
        try:
            opened = _open(host, file)
        except (ValueError, OSError, paramiko.SSHException, UnknownKeyType) as error:
            tried.append(f"{file} ({error})")
            continue
        tried.append(file)
        yield opened


def _public(file: str) -> bytes | None:
    """The public half that lies beside a key, if it does."""
    import base64

    try:
        return base64.b64decode(Path(file + ".pub").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _open(host: Host, file: str) -> paramiko.PKey:
    """A key from its file, asking for its passphrase where it has one. Raises what paramiko raises."""
    import paramiko

    if file in _keys:
        return _keys[file]
    # cryptography takes the passphrase as bytes, whatever paramiko's annotation says.
    try:
        return paramiko.PKey.from_path(file, None)
    except (TypeError, paramiko.PasswordRequiredException):
        if not _terminal():
            raise ValueError(f"has a passphrase, and there is no terminal to ask for it; ssh-add {file}") from None
    for _ in range(PROMPTS):
        passphrase = _ask(host, f"passphrase of {file}: ", echo=False).encode()
        try:
            _keys[file] = paramiko.PKey.from_path(file, passphrase)  # type: ignore[arg-type]
        except (ValueError, TypeError, paramiko.SSHException):
            continue
        return _keys[file]
    raise ValueError("wrong passphrase")


def _answer(transport: paramiko.Transport, host: Host) -> Sequence[str]:
    """Ask a person what the host asks. paramiko calls back on a thread of its own, where Ctrl-C does not reach."""
    asked: SimpleQueue[tuple[str, str, list[tuple[str, bool]]] | list[str] | Exception] = SimpleQueue()
    answers: SimpleQueue[list[str]] = SimpleQueue()

    def handler(title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        asked.put((title, instructions, prompts))
        return answers.get()

    def talk() -> None:
        try:
            asked.put(list(transport.auth_interactive(host.user, handler)))
        except Exception as error:  # raised again below, on the thread that waits
            asked.put(error)

    threading.Thread(target=talk, daemon=True).start()
    while True:
        item = asked.get()
        if isinstance(item, Exception):
            raise item
        if isinstance(item, list):
            return item
        title, instructions, prompts = item
        try:
            if notice := " ".join(text for text in (title, instructions) if text):
                print(f"{host}: {notice}", file=sys.stderr)
            answers.put([_ask(host, prompt, echo=echo) for prompt, echo in prompts])
        except BaseException:
            with contextlib.suppress(OSError, EOFError):
                transport.close()
            answers.put([])  # which lets its thread end, and goes nowhere
            raise


def _ask(host: Host, prompt: str, *, echo: bool) -> str:
    """Ask at the terminal. Raises TunnelError where there is none."""
    if not _terminal():
        raise TunnelError(
            f"{host} asks for {prompt.strip().rstrip(':')!r}, and there is no terminal to ask at",
            hint="run this in a terminal",
        )
    with _asking:
        if not echo:
            return getpass.getpass(f"{host}: {prompt}")
        print(f"{host}: {prompt}", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().rstrip("\n")


def _terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
