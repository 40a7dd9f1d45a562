"""A real TCP proxy between a client and a server, which counts what passes, and cuts the line where it is told to."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

HARD = struct.pack("ii", 1, 0)  # closing a socket resets the connection, as a network that breaks does


class Proxy:
    """Listens on `port` of this machine. messages: pieces that have passed, in both directions; sent, received: bytes
    that the client has. connections: how many it has made. turns: how often it spoke after it had been answered.

    cut: the line breaks at this piece, counted like `messages`, of which `half` passes or nothing.
    delay: seconds that every piece is under way, each way; any number of them are at the same time.
    """

    def __init__(self, host: str, port: int, delay: float = 0) -> None:
        self._target = (host, port)
        self._delay = delay
        self._server = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.port: int = self._server.getsockname()[1]
        self.messages = self.sent = self.received = self.connections = self.turns = 0
        self._answered = True
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
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        time.sleep(2 * self._delay)
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        with self._lock:
            self._open += [client, server]
            self.connections += 1
            self.turns += 1
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target, out in ((client, server, True), (server, client, False)):
            line: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=self._pass, args=(source, target, out, line), daemon=True).start()
            if self._delay:
                threading.Thread(target=self._deliver, args=(target, line), daemon=True).start()

    def _deliver(self, target: socket.socket, line: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, piece = line.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not piece:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(piece)

    def _pass(
        self,
        source: socket.socket,
        target: socket.socket,
        out: bool,
        line: queue.SimpleQueue[tuple[float, bytes]],
    ) -> None:
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
                        self.turns += self._answered
                        self.sent += len(piece)
                    else:
                        self.received += len(piece)
                    self._answered = not out
                if self._delay:
                    line.put((time.monotonic() + self._delay, piece))
                else:
                    target.sendall(piece)
            if self._delay:
                line.put((time.monotonic() + self._delay, b""))
            else:
                target.shutdown(socket.SHUT_WR)
