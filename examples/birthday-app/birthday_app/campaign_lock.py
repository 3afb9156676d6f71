"""At most one campaign at once over all replicas: a session advisory lock of PostgreSQL.

The lock ends with its connection, so a replica that dies leaves none behind and nobody has to guess when it expired.
SQLite has one process by its nature, so there the process's own memory is enough.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from birthday_app.database import DATABASE_FAILURES

# Any number will do that nothing else in this database uses: "birthday" as bytes.
LOCK_KEY = int.from_bytes(b"birthday", "big")


class CampaignLock:
    """Held by whoever runs a campaign."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Take the engine; nothing connects yet."""
        self._engine = engine
        self._held = False
        self._connection: AsyncConnection | None = None

    async def take(self) -> bool:
        """Take the lock; False where it is held, here or elsewhere."""
        if self._held:
            return False
        self._held = True
        try:
            if self._engine.dialect.name == "postgresql":
                self._held = await self._take_in_database()
        except BaseException:
            self._held = False
            raise
        return self._held

    async def _take_in_database(self) -> bool:
        connection = await self._engine.connect()
        try:
            # A campaign lasts long: its connection must not sit in an open transaction.
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            taken = bool(await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}))
        except BaseException:
            await connection.close()
            raise
        if taken:
            self._connection = connection
        else:
            await connection.close()
        return taken

    async def release(self) -> None:
        """Give the lock back. A connection that is lost has given it back by itself."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
                await connection.close()
            except DATABASE_FAILURES:
                await connection.invalidate()
        self._held = False
