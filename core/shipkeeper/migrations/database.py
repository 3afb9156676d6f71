"""Connections to the two kinds of database, set up so that the same text means the same on both sides.

Every session speaks UTC and ISO dates, so that a value's text form, which digests and keys are made of, depends on
nothing that a server or a role has configured.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import URL, event, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from .errors import MigrationError, explain
from .sqlite_functions import register_functions

if TYPE_CHECKING:
    from .source import Source

Isolation = Literal["REPEATABLE READ", "READ COMMITTED"]

_CONNECT_SECONDS: Final = 15
_DRIVERS: Final = {
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}


@dataclass(frozen=True)
class DatabaseUrl:
    """A database URL whose password shows in no representation."""

    value: URL

    @property
    def is_sqlite(self) -> bool:
        """Whether it names a SQLite file."""
        return self.value.get_backend_name() == "sqlite"

    def secrets(self) -> tuple[str, ...]:
        """Return the texts that must appear nowhere."""
        password = str(self.value.password or "")
        return tuple({text for text in (self.value.render_as_string(hide_password=False), password) if text})

    def __repr__(self) -> str:
        return self.value.render_as_string(hide_password=True)


def parse_url(text: str) -> DatabaseUrl:
    """Read a database URL.

    Raises MigrationError (DatabaseUrlInvalid), which does not quote the text.
    """
    try:
        url = make_url(text.strip())
    except Exception as error:
        raise _invalid_url() from error
    driver = _DRIVERS.get(url.drivername.partition("+")[0])
    if driver is None or (driver.startswith("postgresql") and not url.host and "host" not in url.query):
        raise _invalid_url()
    if driver.startswith("sqlite") and url.database in (None, "", ":memory:"):
        raise MigrationError(
            "DatabaseUrlInvalid",
            "a migration needs a SQLite file, for example sqlite+aiosqlite:////data/app.db",
            retry="WhenMended",
        )
    return DatabaseUrl(url.set(drivername=driver))


def _invalid_url() -> MigrationError:
    return MigrationError(
        "DatabaseUrlInvalid",
        "the database URL cannot be read: write postgresql+asyncpg://user:password@host:5432/name "
        "or sqlite+aiosqlite:////path/to/file.db",
        retry="WhenMended",
    )


def create_engine(url: DatabaseUrl, *, name: str) -> AsyncEngine:
    """Return an engine without a pool: a migration holds one session as long as it works.

    `name` is the application name, by which the server's operators see who it is.
    """
    if url.is_sqlite:
        return _sqlite_engine(url)
    settings = {
        "application_name": name[:63],
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
        "IntervalStyle": "iso_8601",
        "extra_float_digits": "1",
        # Compiling a batch's statement would take longer than running it does.
        "jit": "off",
        "bytea_output": "hex",
        # A worker whose node vanished must not hold its lock for the two hours of TCP's default.
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
    }
    return create_async_engine(
        url.value, poolclass=NullPool, connect_args={"server_settings": settings, "timeout": _CONNECT_SECONDS}
    )


def _sqlite_engine(url: DatabaseUrl) -> AsyncEngine:
    path = Path(str(url.value.database))
    if not path.is_file():
        raise MigrationError("DatabaseMissing", f"there is no SQLite file at {path}", retry="WhenMended")
    engine = create_async_engine(url.value, poolclass=NullPool, connect_args={"timeout": 30})

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _: Any) -> None:
        # The driver must not begin transactions by itself: `begin` below takes the write lock at once.
        connection.isolation_level = None
        register_functions(connection)
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


class Session:
    """One database session. Statements are given in the driver's own SQL, with numbered parameters."""

    def __init__(self, connection: AsyncConnection, *, source: "Source | None" = None) -> None:
        """`source` is the database that holds the tables to consolidate, if it is another."""
        self._connection = connection
        self.source = source

    @property
    def connection(self) -> AsyncConnection:
        """The SQLAlchemy connection, for statements built with SQLAlchemy Core."""
        return self._connection

    async def retiring_session(self, table: str) -> "Session":
        """Return the session with the database in which a table is retired: this, or the source's."""
        return self if self.source is None else await self.source.retiring_session(table)

    async def driver(self) -> Any:
        """Return the driver's own connection, for COPY."""
        return (await self._connection.get_raw_connection()).driver_connection

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a session with SQLite."""
        return self._connection.dialect.name == "sqlite"

    @asynccontextmanager
    async def transaction(self, *, isolation: Isolation = "REPEATABLE READ") -> AsyncIterator[None]:
        """Run the block in one transaction that sees one state of the database (SQLite: and holds its write lock).

        In READ COMMITTED each statement sees what is committed when it begins, and a row that another transaction
        changed meanwhile is judged again instead of failing the transaction (SQLite: no difference).
        """
        if not self.is_sqlite:
            await self._connection.execution_options(isolation_level=isolation)
        async with self._connection.begin():
            yield

    @asynccontextmanager
    async def rolled_back(self, *, isolation: Isolation = "REPEATABLE READ") -> AsyncIterator[None]:
        """Run the block in a transaction of which nothing stays."""
        if not self.is_sqlite:
            await self._connection.execution_options(isolation_level=isolation)
        transaction = await self._connection.begin()
        try:
            yield
        finally:
            # A connection that broke took its transaction along.
            if not self._connection.invalidated and transaction.is_active:
                await transaction.rollback()

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[None]:
        """Run the block's statements each for itself, as CREATE INDEX CONCURRENTLY and session locks need."""
        if not self.is_sqlite:
            await self._connection.execution_options(isolation_level="AUTOCOMMIT")
        async with self._connection.begin():
            yield

    async def execute(self, sql: str, *parameters: Any) -> int:
        """Run a statement and return the number of rows it changed."""
        result = await self._connection.exec_driver_sql(sql, parameters)
        return max(result.rowcount, 0)

    async def rows(self, sql: str, *parameters: Any) -> Sequence[Any]:
        """Run a query and return all its rows."""
        result = await self._connection.exec_driver_sql(sql, parameters)
        return result.fetchall()

    async def row(self, sql: str, *parameters: Any) -> Any:
        """Run a query and return its first row, if any."""
        found = await self.rows(sql, *parameters)
        return found[0] if found else None

    async def scalar(self, sql: str, *parameters: Any) -> Any:
        """Run a query and return the first value of its first row, or None."""
        found = await self.row(sql, *parameters)
        return found[0] if found is not None else None


async def connect(engine: AsyncEngine) -> AsyncConnection:
    """Open a session.

    Raises MigrationError with the reason that fits (unreachable, wrong password, ...).
    """
    try:
        return await engine.connect()
    except Exception as error:
        raise explain(error) from None
