"""Who may call: the holder of one of the current API keys, compared in constant time."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated

from fastapi import HTTPException, Request, Security, status
from fastapi.security import APIKeyHeader

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The key from the application's Secret.")


class ApiKeys:
    """The keys that open the API, as digests: of equal length, so that a comparison tells nothing about a key's."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Take one key, or two while a rotation overlaps."""
        self._digests = [_digest(key) for key in keys]

    def opened_by(self, key: str) -> bool:
        """Whether it is one of the keys. Every key is compared, whichever matches."""
        given = _digest(key)
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def require_key(request: Request, key: Annotated[str | None, Security(_header)]) -> None:
    """Let the request pass, or answer 401 without a key and 403 with a wrong one."""
    if not key:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "send the API key in the header X-API-Key")
    keys: ApiKeys = request.app.state.services.api_keys
    if not keys.opened_by(key):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "the API key is not valid")
