"""How a generated API key is kept: the annotations of its Secret, and how a key is made."""

import secrets
from typing import Final

from shipkeeper.resources.base import GROUP

CALLER_ID: Final = f"{GROUP}/api-key-id"
ACCEPTED_ID: Final = f"{GROUP}/accepted-key-id"
PREVIOUS_ID: Final = f"{GROUP}/accepted-previous-key-id"
ISSUED_AT: Final = f"{GROUP}/issued-at"
REVISION: Final = f"{GROUP}/rotation-revision"
VALID_UNTIL: Final = f"{GROUP}/previous-valid-until"

_KEY_BYTES: Final = 32
# 32 bytes in URL-safe base64 without padding. A shorter value was not made here.
MINIMUM_KEY_LENGTH: Final = 43


def new_key() -> str:
    """Return a new key: 256 bits from the operating system's generator, safe in a header and in a URL."""
    return secrets.token_urlsafe(_KEY_BYTES)


def new_key_id() -> str:
    """Return a random name for a key. It is not derived from the key, so it says nothing about it."""
    return secrets.token_hex(4)
