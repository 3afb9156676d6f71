"""A relay before a server that keeps every byte the server sends, so that servers can be compared by what they say."""

import socket
import socketserver
import threading
from types import TracebackType
from typing import Self


class RecordingRelay:
    """Listens on a port of its own and passes everything on; a context manager."""

    def __init__(self, server_port: int) -> None:
        sent = bytearray()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", server_port)) as server:
                    asking = threading.Thread(target=_pump, args=(self.request, server))
                    asking.start()
                    while data := server.recv(65536):
                        sent.extend(data)
                        self.request.sendall(data)
                    asking.join()

        self._sent = sent
        self._relay = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._relay.serve_forever, kwargs={"poll_interval": 0.02})
        self.port = int(self._relay.server_address[1])

    @property
    def sent(self) -> bytes:
        """Everything the server has sent so far."""
        return bytes(self._sent)

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening; connections end with their clients."""
        self._relay.shutdown()
        self._relay.server_close()
        self._thread.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
