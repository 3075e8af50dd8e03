"""A front before a server that can swallow connections, as a NAT does that forgot them: no word, no end.

client ──▶ Front ──▶ server
             └─ swallow(): what is open stands still for ever, what is new is accepted and stands still
                heal():    what comes from now on is passed on
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Front:
    """Use it as a context manager; `base_url` leads through it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_swallowing = False
        self._lock = threading.Lock()
        # Every socket there was, and whether it was swallowed.
        self._connections: list[_Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="front", daemon=True).start()

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would leave the thread in `accept`.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                connection.close()

    def swallow(self) -> None:
        with self._lock:
            self._is_swallowing = True
            for connection in self._connections:
                connection.is_swallowed = True

    def heal(self) -> None:
        with self._lock:
            self._is_swallowing = False

    @property
    def swallowed_requests(self) -> int:
        with self._lock:
            return sum(connection.has_lost for connection in self._connections)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with self._lock:
                    connection = _Connection(client, self._port, self._is_swallowing)
                    self._connections.append(connection)
                for source, sink in ((client, connection.server), (connection.server, client)):
                    arguments = (connection, source, sink)
                    threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()

    def _pass_on(self, connection: _Connection, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if connection.is_swallowed:
                    connection.has_lost = True
                else:
                    sink.sendall(data)
            # The one end is at its end, and so the other, unless nobody is to hear of it.
            if not connection.is_swallowed:
                sink.shutdown(socket.SHUT_WR)


class _Connection:
    def __init__(self, client: socket.socket, port: int, is_swallowed: bool) -> None:
        self.client = client
        self.server = socket.create_connection(("127.0.0.1", port))
        self.is_swallowed = is_swallowed
        self.has_lost = False
        """Something came that nobody hears of."""

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
