"""How a worker's process ends, so that the Job controller can tell what deserves another try (names of sysexits.h)."""

from typing import Final

COMPLETE: Final = 0
"""All that was asked for is done; the report says what that was: complete, planned, or waiting for an approval."""
USER_ERROR: Final = 65
"""EX_DATAERR: it will fail again until somebody changes the spec or the database."""
RETRY: Final = 75
"""EX_TEMPFAIL: another try may succeed."""
