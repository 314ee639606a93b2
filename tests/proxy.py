"""A TCP proxy that cuts, stalls and loses what passes through it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time

_TICK = 0.02


class Proxy:
    """Passes on what is sent to `port`, until it is told otherwise."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._mode = "pass"
        self._commits_to_lose = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break all connections, and each new one at once."""
        self._mode = "cut"

    def stall(self) -> None:
        """Keep all connections, and pass nothing on."""
        self._mode = "stall"

    def restore(self) -> None:
        self._mode = "pass"

    def lose_commits(self, count: int = 1) -> None:
        """Break the connection when the server has done a COMMIT, before its answer."""
        with self._lock:
            self._commits_to_lose = count

    def commits_to_lose(self) -> int:
        return self._commits_to_lose

    def close(self) -> None:
        self._mode = "closed"
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while self._mode != "closed":
            if self._mode == "stall" or not select.select([self._listener], [], [], _TICK)[0]:
                time.sleep(_TICK / 10)
                continue
            client, _ = self._listener.accept()
            if self._mode == "cut":
                client.close()
                continue
            thread = threading.Thread(target=self._connect, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _connect(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._target))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with server:
                self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        while self._mode in ("pass", "stall"):
            if self._mode == "stall":
                time.sleep(_TICK)
                continue
            for ready in select.select([client, server], [], [], _TICK)[0]:
                said = ready.recv(65536)
                if not said:
                    return
                (server if ready is client else client).sendall(said)
                if ready is client and self._is_lost(said):
                    server.recv(1)  # it is done
                    return

    def _is_lost(self, said: bytes) -> bool:
        with self._lock:
            lost = self._commits_to_lose > 0 and b"COMMIT\0" in said
            self._commits_to_lose -= lost
        return lost
