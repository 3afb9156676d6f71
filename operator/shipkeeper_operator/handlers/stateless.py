"""kopf without its bookkeeping: nothing is stored on objects, and nothing is computed to be stored.

For every watch event kopf copies the whole object several times to find what its change handlers would want to know.
There are none here, only `on.event`; these two storages say so, which saves a third of the operator's work.
"""

from collections.abc import Iterable
from typing import Any

import kopf


class NoDiffBase(kopf.DiffBaseStorage):
    """Remembers no last-handled state and finds no difference."""

    def build(self, *, body: Any, extra_fields: Iterable[Any] | None = None) -> Any:
        """Return an empty essence instead of a copy of the object."""
        return {}

    def fetch(self, *, body: Any) -> Any:
        """Return no earlier essence."""
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        """Store nothing."""


class NoProgress(kopf.ProgressStorage):
    """Remembers no handler's progress."""

    def fetch(self, *, key: Any, body: Any) -> Any:
        """Return no progress."""
        return None

    def store(self, *, key: Any, record: Any, body: Any, patch: Any) -> None:
        """Store nothing."""

    def purge(self, *, key: Any, body: Any, patch: Any) -> None:
        """Remove nothing."""

    def touch(self, *, body: Any, patch: Any, value: str | None) -> None:
        """Touch nothing."""

    def clear(self, *, essence: Any) -> Any:
        """Return the essence as it is: no progress is in it."""
        return essence
