"""The little that this package itself asks of an API server: a health check, a read, a server-side apply."""

import http.client
import json
import ssl
import time
from pathlib import Path
from typing import Any

from localcluster.errors import LocalClusterError
from localcluster.pki import KeyPair

FIELD_MANAGER = "shipkeeper-localcluster"


class ApiClient:
    """Speaks to one API server with a client certificate."""

    def __init__(self, *, address: str, port: int, authority: Path, client: KeyPair) -> None:
        self._where = (address, port)
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.load_cert_chain(client.certificate, client.key)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        address, port = self._where
        connection = http.client.HTTPSConnection(address, port, timeout=10, context=self._context)
        try:
            headers = {"Content-Type": "application/apply-patch+yaml"} if body is not None else {}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            return self._request("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def get(self, path: str) -> dict[str, Any] | None:
        """Read an object, None where it does not exist or the server does not answer."""
        try:
            status, text = self._request("GET", path)
        except (OSError, http.client.HTTPException):
            return None
        found: dict[str, Any] | None = json.loads(text) if status == 200 else None
        return found

    def apply(self, path: str, document: dict[str, Any]) -> None:
        """Server-side apply of one object. Raises LocalClusterError with the server's answer when it is refused."""
        status, text = self._request("PATCH", f"{path}?fieldManager={FIELD_MANAGER}&force=true", document)
        if status not in (200, 201):
            raise LocalClusterError(f"The API server refused {path} with {status}: {text[:500]}")

    def wait_ready(self, seconds: float) -> bool:
        """Wait until the API server is ready; False when the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.is_ready():
                return True
            time.sleep(0.1)
        return False
