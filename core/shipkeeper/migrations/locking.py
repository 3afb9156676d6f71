"""One worker at a time: a session advisory lock on PostgreSQL, which the server lets go when the session ends.

A lock table would survive a killed pod; a transaction's lock would be lost at the first commit. After taking the lock
the ledger is read again, so a worker that waited sees what the one before it did. SQLite needs none: each batch takes
the file's write lock and moves the ledger's cursor from where it stood.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from .database import Session
from .errors import MigrationError

_ATTEMPT_SECONDS: Final = 1.0
_KEY: Final = "hashtextextended($1, 0)"
_HOLDER: Final = f"""
SELECT 'pid ' || a.pid || ' (' || coalesce(nullif(a.application_name, ''), 'no name') || ') from '
       || coalesce(host(a.client_addr), 'this host') || ' since ' || to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS')
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint) = {_KEY}
"""


class SessionLocks:
    """The session's advisory locks."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def take(self, name: str, *, waiting: Callable[[str], Awaitable[None]]) -> None:
        """Take the lock of that name; while another session holds it, call `waiting` with who does.

        Raises MigrationError (ConnectionPooler) where statements do not all reach the same server process.
        """
        if self._session.is_sqlite:
            return
        while not await self._try(name):
            await waiting(await self.holder(name))
            await asyncio.sleep(_ATTEMPT_SECONDS)
        await self._refuse_pooler(name)

    async def release(self, name: str) -> None:
        """Let the lock go."""
        if not self._session.is_sqlite:
            async with self._session.statements():
                await self._session.scalar(f"SELECT pg_advisory_unlock({_KEY})", name)

    async def holder(self, name: str) -> str:
        """Say who holds the lock; empty where nobody does."""
        async with self._session.statements():
            return str(await self._session.scalar(_HOLDER, name) or "")

    async def _try(self, name: str) -> bool:
        async with self._session.statements():
            return bool(await self._session.scalar(f"SELECT pg_try_advisory_lock({_KEY})", name))

    async def _refuse_pooler(self, name: str) -> None:
        # A pooler in transaction mode may answer the next transaction from another server process, without the lock.
        query = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objsubid = 1 "
            f"AND (classid::bigint << 32 | objid::bigint) = {_KEY}"
        )
        for _ in range(3):
            async with self._session.transaction():
                if not await self._session.scalar(query, name):
                    raise MigrationError(
                        "ConnectionPooler",
                        "the session's lock is gone in the next transaction: a pooler in transaction mode stands "
                        "between; connect to PostgreSQL directly or use session mode",
                        retry="WhenMended",
                    )
