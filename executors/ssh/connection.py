"""A connection to one host that lasts: opened when first needed, opened anew when it was lost, shared by threads."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from executors.ssh import known_hosts
from executors.ssh.config import Host
from executors.ssh.login import log_in
from launcher.errors import TunnelError

if TYPE_CHECKING:
    import paramiko

CHANNELS = 8  # commands at once; sshd's own limit is 10 by default
CHUNK = 2**16
RETRY = 0.05  # seconds
KEEPALIVE = 30  # seconds; firewalls forget a connection on which nothing is said
UNHEARD = 60_000  # milliseconds until the kernel gives up on a connection whose other end is gone

_connections: dict[tuple[int, Host], Connection] = {}
_lock = threading.Lock()


def connection(host: Host) -> Connection:
    """The one connection to a host. It is not shared with a process that forked: two would talk over one another.

    Raises TunnelError where paramiko is not installed, which only those who use SSH need.
    """
    try:
        import paramiko  # noqa: F401
    except ImportError as error:
        raise TunnelError(
            f"there is no SSH without paramiko: {error}", hint="pip install 'gemma-launcher[slurm]'"
        ) from None
    with _lock:
        return _connections.setdefault((os.getpid(), host), Connection(host))


class Connection:
    """Commands on one host, at most CHANNELS of them at once. Nothing connects before the first."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._transport: paramiko.Transport | None = None
        self._opening = threading.Lock()
        self._free = threading.Condition()
        self._busy = 0
        self._limit = CHANNELS

    def execute(self, command: bytes, source: BinaryIO | None, timeout: float | None) -> tuple[int, bytes, bytes]:
        """Status, stdout and stderr of a command line that reads all of `source`. Raises TunnelError.

        timeout: seconds from when the host takes the command. TunnelError.lost is False only if it never got there.
        """
        with self._channel(timeout) as (transport, channel):
            return _Command(self.host, transport, channel).run(command, source, timeout)

    def close(self) -> None:
        """What runs is lost; the next command connects anew."""
        with self._opening:
            if self._transport is not None:
                _close(self._transport)
                self._transport = None

    @contextlib.contextmanager
    def _channel(self, timeout: float | None) -> Iterator[tuple[paramiko.Transport, paramiko.Channel]]:
        import paramiko

        patience = time.monotonic() + self.host.timeout
        while True:
            with self._free:
                if not self._free.wait_for(lambda: self._busy < self._limit, timeout):
                    raise TunnelError(f"{self.host} was still busy with {self._limit} other commands of ours")
                self._busy += 1
            try:
                try:
                    transport, channel = self._open_channel(
                        lambda transport: transport.open_session(timeout=self.host.timeout)
                    )
                except paramiko.ChannelException as refused:
                    with self._free:
                        alone = self._busy == 1
                        self._limit = max(1, self._busy - 1)  # its sshd allows fewer than is usual
                    if alone:  # and counts one of ours that has ended for a moment longer
                        if time.monotonic() > patience:
                            raise TunnelError(f"{self.host} opens no session: {refused.text}") from None
                        time.sleep(RETRY)
                    continue
                try:
                    yield transport, channel
                finally:
                    _close(channel)
                return
            finally:
                with self._free:
                    self._busy -= 1
                    self._free.notify_all()

    def _open_channel(
        self, opener: Callable[[paramiko.Transport], paramiko.Channel]
    ) -> tuple[paramiko.Transport, paramiko.Channel]:
        """A channel, on a new connection if the one that we had turns out to be lost: nothing was sent yet."""
        import paramiko

        transport, new = self._connected()
        try:
            return transport, opener(transport)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, EOFError, OSError) as error:
            # What was refused to two threads at once, paramiko tells one of them without saying why.
            if transport.is_active() and "Unable to open channel" in str(error):
                raise paramiko.ChannelException(1, str(error)) from None
            self._forget(transport)
            if new:  # a person may just have typed a code for it: not again for nothing
                raise _explained(self.host, error) from None
        return self._open_channel(opener)

    def _connected(self) -> tuple[paramiko.Transport, bool]:
        """The connection, and whether it was opened just now."""
        with self._opening:
            if self._transport is not None and self._transport.is_active():
                return self._transport, False
            self._transport = self._connect()
            return self._transport, True

    def _forget(self, transport: paramiko.Transport) -> None:
        _close(transport)
        with self._opening:
            if self._transport is transport:
                self._transport = None

    def _connect(self) -> paramiko.Transport:
        """Connect, verify who is there, log in. Raises TunnelError."""
        import paramiko

        host = self.host
        logging.getLogger("paramiko").addHandler(logging.NullHandler())  # we say what is wrong; it would, too
        known = known_hosts.entries(host)
        try:
            transport = paramiko.Transport(self._socket())
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise _explained(host, error) from None
        try:
            # start_client's own limit comes first: paramiko's errors for these do not tell silence from nonsense.
            transport.banner_timeout = transport.handshake_timeout = 2 * host.timeout
            # Ask for a key of a type that we know: a host has several.
            types = {entry.type for entry in known}
            security = transport.get_security_options()
            security.key_types = sorted(security.key_types, key=lambda type_: _key_type(type_) not in types)
            transport.start_client(timeout=host.timeout)
            key = transport.get_remote_server_key()
            known_hosts.verify(host, key.get_name(), key.asbytes(), known)
            log_in(transport, host)
            transport.set_keepalive(KEEPALIVE)
        except (paramiko.SSHException, EOFError, OSError) as error:
            _close(transport)
            raise _explained(host, error) from None
        except BaseException:
            _close(transport)
            raise
        return transport

    def _socket(self) -> socket.socket | paramiko.Channel:
        import paramiko

        host = self.host
        target = (host.hostname, host.port)
        if host.jump is not None:
            try:
                through = connection(host.jump)._open_channel(
                    lambda transport: transport.open_channel("direct-tcpip", target, ("", 0), timeout=host.timeout)
                )
            except paramiko.ChannelException as refused:
                raise TunnelError(
                    f"{host.jump} does not reach {host.hostname} port {host.port}: {refused.text}",
                    hint=f"check ProxyJump, and the host and port of {host.alias}",
                ) from None
            return through[1]
        sock = socket.create_connection(target, timeout=host.timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without it, each command waits 40 ms for nothing
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD)
        return sock


class _Command:
    """One command on one channel. Its two outputs are read and its input is written at the same time.

    OpenSSH ends the whole connection when something is sent to a channel that both sides have closed, and paramiko
    does not keep a sender from that. So a command that has input must read it to its end before it ends, and nothing
    is sent to one that has none.
    """

    def __init__(self, host: Host, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        self.host = host
        self.transport = transport
        self.channel = channel
        self.late = False
        self.failed: OSError | None = None  # reading what was to be sent
        self.feeding: threading.Thread | None = None

    def run(self, command: bytes, source: BinaryIO | None, timeout: float | None) -> tuple[int, bytes, bytes]:
        import paramiko

        stdout, stderr = bytearray(), bytearray()
        listening = threading.Thread(target=self._drain, args=(self.channel.recv_stderr, stderr), daemon=True)
        # Closing the channel is what wakes every thread that waits for it, in paramiko's own calls too.
        clock = None if timeout is None else threading.Timer(timeout, self._expire)
        try:
            if clock is not None:
                clock.daemon = True
                clock.start()
            self.channel.exec_command(command)
            if source is not None:
                feeding = threading.Thread(target=self._feed, args=(source,), daemon=True)
                feeding.start()
                self.feeding = feeding
            listening.start()
            self._drain(self.channel.recv, stdout)
            listening.join()
            status = self.channel.recv_exit_status()
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not self.late and self.transport.is_active():
                raise TunnelError(f"{self.host} runs no commands: {error}") from None
            status = -1
        finally:
            if clock is not None:
                clock.cancel()
            fed = self._fed(1)  # its source is the caller's, who is about to close it
        if self.late:
            # It may be holding the connection, with nobody to take what it sends: others must not wait for it.
            if not fed:
                _close(self.transport)
            raise TunnelError(
                f"{self.host} did not end the command within {timeout:g} s; it may still be running there", lost=True
            )
        if self.failed is not None:
            raise TunnelError(f"cannot read what is to be sent to {self.host}: {self.failed}", lost=True)
        if status == -1:
            raise TunnelError(f"the connection to {self.host} was lost during a command, which may have run", lost=True)
        return status, bytes(stdout), bytes(stderr)

    def _expire(self) -> None:
        self.late = True
        self._fed(0.2)  # what it is about to send is sent before the channel is closed
        _close(self.channel)

    def _fed(self, seconds: float) -> bool:
        if self.feeding is None:
            return True
        self.feeding.join(seconds)
        return not self.feeding.is_alive()

    def _feed(self, source: BinaryIO) -> None:
        import paramiko

        while not self.late:
            try:
                piece = source.read(CHUNK)
            except OSError as error:
                self.failed = error
                _close(self.channel)
                return
            try:
                if not piece:
                    self.channel.shutdown_write()
                    return
                self.channel.sendall(piece)
            except (OSError, EOFError, paramiko.SSHException):  # the channel is closed; its status will say why
                return

    def _drain(self, receive: Callable[[int], bytes], into: bytearray) -> None:
        while piece := receive(CHUNK):
            into += piece


def _close(what: paramiko.Channel | paramiko.Transport) -> None:
    """Close it, and let what it stands on be gone already: closing says so to the other end."""
    import paramiko

    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        what.close()


def _key_type(algorithm: str) -> str:
    """The type of key, as known_hosts has it, that an algorithm signs with."""
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


def _explained(host: Host, error: Exception) -> TunnelError:
    """What went wrong before a command was sent, and what to look at."""
    place = f"{host.hostname} port {host.port}"
    if isinstance(error, socket.gaierror):
        return TunnelError(
            f"there is no host {host.hostname}: {error.strerror}",
            hint="check host=..., or its HostName in ~/.ssh/config",
        )
    if isinstance(error, ConnectionRefusedError):
        return TunnelError(f"nothing answers at {place}: connection refused", hint=f"{host.command} to see if ssh can")
    if isinstance(error, TimeoutError) or "timeout" in str(error).lower() or "No existing session" in str(error):
        return TunnelError(
            f"{place} did not answer within {host.timeout:g} s", hint="is the VPN up? ConnectTimeout in ~/.ssh/config"
        )
    if "banner" in str(error):
        return TunnelError(f"what answers at {place} is not SSH, or breaks off: {error}", hint="check port=...")
    return TunnelError(
        f"cannot connect to {host} ({place}): {error or type(error).__name__}", hint=f"{host.command} -v"
    )
