"""The operator's connections to stores: one for each URL, kept while it is used, and what was last done through it.

Nothing here decides, and nothing that matters lives only here: after a restart the stores are read again, and a write
that failed fails again.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from shipkeeper.limits.connection import AsyncStore, StoreAddress
from shipkeeper.limits.failures import StoreError, StoreFailure
from shipkeeper_operator.reconcile.ratelimitpolicy_facts import PastRepair, Problem

_TIMEOUT_SECONDS: Final = 2.0
_UNUSED_SECONDS: Final = 300.0

_REASONS: Final = {
    StoreFailure.AUTHENTICATION_FAILED: "StoreAuthFailed",
    StoreFailure.URL_INVALID: "SecretValueInvalid",
}
# Waiting does not mend these.
_FOR_A_PERSON: Final = frozenset(
    {
        StoreFailure.AUTHENTICATION_FAILED,
        StoreFailure.PERMISSION_DENIED,
        StoreFailure.URL_INVALID,
        StoreFailure.FUNCTIONS_UNSUPPORTED,
        StoreFailure.READ_ONLY,
        StoreFailure.TLS_FAILED,
    }
)


def problem_of(error: StoreError, address: StoreAddress) -> Problem:
    """Return a failure of the store in the words of a condition."""
    text = str(error)
    reason = _REASONS.get(error.failure, f"Store{error.failure.value}")
    # Where primaries change by themselves, a read-only server is one that has just lost its part.
    passes = error.failure is StoreFailure.READ_ONLY and address.topology != "Standalone"
    return Problem(reason, f"{text[0].upper()}{text[1:]}.", error.failure in _FOR_A_PERSON and not passes)


@dataclass
class _Connection:
    store: AsyncStore
    used_at: float
    hung: StoreError | None = None
    """Why the last reading got no answer in time; None: it got one."""
    readings: int = 0
    """Readings under way."""


@dataclass
class Memory:
    """What this process remembers about one policy."""

    address: StoreAddress | None = None
    secret_read_at: float = float("-inf")
    write_problem: Problem | None = None
    repair: PastRepair | None = None
    keys_removed: bool = False
    used_at: float = field(default_factory=time.monotonic)


class Stores:
    """Connections by address, memory by the policy's uid."""

    def __init__(self) -> None:
        self._connections: dict[StoreAddress, _Connection] = {}
        self._memories: dict[str, Memory] = {}

    def memory(self, uid: str) -> Memory:
        """Return what is remembered about a policy; forgets policies that nobody asks about any more."""
        now = time.monotonic()
        for other in [each for each, memory in self._memories.items() if now - memory.used_at > _UNUSED_SECONDS]:
            del self._memories[other]
        memory = self._memories.setdefault(uid, Memory())
        memory.used_at = now
        return memory

    async def at(self, address: StoreAddress) -> AsyncStore:
        """Return the connection to a store; closes those that nobody uses any more. Raises StoreError."""
        return (await self._known(address)).store

    @asynccontextmanager
    async def reading(self, address: StoreAddress) -> AsyncIterator[AsyncStore]:
        """Give the connection to a store for one reading.

        Of a store that hangs one policy at a time finds out whether it still does; the others are told at once, or
        they would keep every worker waiting, and the policies of other stores with them. Raises StoreError.
        """
        known = await self._known(address)
        if known.hung is not None and known.readings:
            raise StoreError(known.hung.failure, known.hung.where)
        known.readings += 1
        try:
            yield known.store
            known.hung = None
        except StoreError as error:
            known.hung = error if error.failure is StoreFailure.TIMEOUT else None
            raise
        finally:
            known.readings -= 1

    async def _known(self, address: StoreAddress) -> _Connection:
        now = time.monotonic()
        for other in [each for each, known in self._connections.items() if now - known.used_at > _UNUSED_SECONDS]:
            await self._connections.pop(other).store.close()
        known = self._connections.get(address)
        if known is None:
            known = _Connection(AsyncStore(address, timeout=_TIMEOUT_SECONDS), now)
            self._connections[address] = known
        known.used_at = now
        return known

    async def close(self) -> None:
        """Close every connection."""
        while self._connections:
            _, connection = self._connections.popitem()
            await connection.store.close()


STORES: Final = Stores()
"""The process's own: observers and effects share it, because they are functions without state."""
