"""The little that this package itself asks of an API server, with the standard library alone."""

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from localcluster.errors import LocalClusterError
from localcluster.pki import KeyPair

FIELD_MANAGER = "shipkeeper-localcluster"
TIMEOUT_SECONDS = 10.0
HEALTH_SECONDS = 3.0
WATCH_SECONDS = 600


class ApiClient:
    """Speaks to one API server with a client certificate."""

    def __init__(self, *, address: str, port: int, authority: Path, client: KeyPair) -> None:
        self._where = (address, port)
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.load_cert_chain(client.certificate, client.key)

    def _connect(self, timeout: float) -> http.client.HTTPSConnection:
        address, port = self._where
        return http.client.HTTPSConnection(address, port, timeout=timeout, context=self._context)

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float = TIMEOUT_SECONDS
    ) -> tuple[int, str]:
        connection = self._connect(timeout)
        headers = {"Content-Type": "application/apply-patch+yaml"} if body is not None else {}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise LocalClusterError(f"The API server does not answer {method} {path}: {error}") from error
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            return self._request("GET", "/readyz", timeout=HEALTH_SECONDS)[0] == 200
        except LocalClusterError:
            return False

    def get(self, path: str) -> dict[str, Any] | None:
        """Read an object, None where it does not exist or the server does not answer."""
        try:
            status, text = self._request("GET", path)
        except LocalClusterError:
            return None
        found: dict[str, Any] | None = json.loads(text) if status == 200 else None
        return found

    def list(self, path: str) -> list[dict[str, Any]]:
        """All objects of a collection. Raises LocalClusterError when the server does not give them."""
        status, text = self._request("GET", path)
        if status != 200:
            raise LocalClusterError(f"The API server answered GET {path} with {status}: {text[:500]}")
        found: list[dict[str, Any]] = json.loads(text)["items"]
        return found

    def watch(self, path: str) -> Iterator[None]:
        """One item for each change in a collection from now on; ends after some minutes.

        Raises LocalClusterError when the server does not answer or goes away.
        """
        connection = self._connect(WATCH_SECONDS + TIMEOUT_SECONDS)
        try:
            connection.request("GET", f"{path}?watch=true&timeoutSeconds={WATCH_SECONDS}")
            response = connection.getresponse()
            while response.status == 200 and response.readline():
                yield
        except (OSError, http.client.HTTPException) as error:
            raise LocalClusterError(f"The API server does not answer a watch of {path}: {error}") from error
        finally:
            connection.close()

    def apply(self, path: str, document: dict[str, Any]) -> None:
        """Server-side apply of one object. Raises LocalClusterError with the server's answer when it is refused."""
        status, text = self._request("PATCH", f"{path}?fieldManager={FIELD_MANAGER}&force=true", document)
        if status not in (200, 201):
            raise LocalClusterError(f"The API server refused {path} with {status}: {text[:500]}")

    def delete(self, path: str) -> None:
        """Delete one object, if it exists. Raises LocalClusterError when the server refuses."""
        status, text = self._request("DELETE", path)
        if status not in (200, 202, 404):
            raise LocalClusterError(f"The API server refused to delete {path} with {status}: {text[:500]}")

    def wait_ready(self, seconds: float, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the API server is ready; False when the time is over or `unless` says that waiting is in vain."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not unless():
            if self.is_ready():
                return True
            time.sleep(0.1)
        return False
