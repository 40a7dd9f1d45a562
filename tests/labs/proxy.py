"""A real TCP proxy between a client and a server, which counts what passes, and cuts the line where it is told to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

HARD = struct.pack("ii", 1, 0)  # closing a socket resets the connection, as a network that breaks does


class Proxy:
    """Listens on `port` of this machine. messages: pieces that have passed, in both directions; sent, received: bytes
    that the client has.

    cut: the line breaks at this piece, counted like `messages`, of which `half` passes or nothing.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.port: int = self._server.getsockname()[1]
        self.messages = self.sent = self.received = 0
        self.cut: int | None = None
        self.half = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.close()
        self.drop()

    def drop(self) -> None:
        """Break every connection that passes."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
                one.shutdown(socket.SHUT_RD)  # wakes who reads it
                one.close()
        self._open.clear()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, out: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(2**16):
                with self._lock:
                    self.messages += 1
                    if self.cut is not None and self.messages > self.cut:
                        if self.half:
                            target.sendall(piece[: len(piece) // 2])
                        self._drop()
                        return
                    if out:
                        self.sent += len(piece)
                    else:
                        self.received += len(piece)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
