"""A real PostgreSQL for all tests of this folder, and a database of its own for each test, on both kinds of server."""

import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from support.birthday_data import POSTGRESQL_SCHEMA, SQLITE_SCHEMA, Legacy
from support.migration_databases import (
    interactions_in_postgresql,
    interactions_in_sqlite,
    load_postgresql,
    load_sqlite,
)
from support.postgres_server import PostgresServer, running_postgres

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server that all tests share; a test that restarts one starts its own."""
    with running_postgres() as server:
        yield server


@dataclass
class PostgresqlDatabase:
    """A database of the application on PostgreSQL."""

    url: str
    connection: "asyncpg.Connection"

    async def load(self, legacy: Legacy) -> None:
        """Create the application's tables and fill them."""
        await self.connection.execute(POSTGRESQL_SCHEMA)
        await load_postgresql(self.connection, legacy)

    async def execute(self, sql: str) -> None:
        """Run statements."""
        await self.connection.execute(sql)

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a query."""
        return [tuple(row) for row in await self.connection.fetch(sql)]

    async def interactions(self) -> Any:
        """Return the multiset of interactions."""
        return await interactions_in_postgresql(self.connection)


@dataclass
class SqliteDatabase:
    """A database of the application in a SQLite file."""

    url: str
    path: Path

    async def load(self, legacy: Legacy) -> None:
        """Create the application's tables and fill them."""
        load_sqlite(self.path, SQLITE_SCHEMA, legacy)

    async def execute(self, sql: str) -> None:
        """Run statements."""
        connection = sqlite3.connect(self.path)
        connection.executescript(sql)
        connection.close()

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a query."""
        connection = sqlite3.connect(self.path)
        found = connection.execute(sql).fetchall()
        connection.close()
        return found

    async def interactions(self) -> Any:
        """Return the multiset of interactions."""
        return interactions_in_sqlite(self.path)


Database = PostgresqlDatabase | SqliteDatabase


@pytest_asyncio.fixture
async def postgresql(postgres: PostgresServer) -> AsyncIterator[PostgresqlDatabase]:
    """An empty database on PostgreSQL."""
    name = f"test_{next(_NUMBERS)}"
    url = await postgres.create_database(name)
    connection = await postgres.connect(name)
    try:
        yield PostgresqlDatabase(url, connection)
    finally:
        await connection.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteDatabase:
    """A SQLite file that does not exist yet."""
    path = tmp_path / "app.db"
    return SqliteDatabase(f"sqlite+aiosqlite:///{path}", path)


@pytest_asyncio.fixture(params=["postgresql", "sqlite"])
async def database(request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[Database]:
    """An empty database of either kind: what holds for one must hold for the other."""
    if request.param == "sqlite":
        path = tmp_path / "app.db"
        yield SqliteDatabase(f"sqlite+aiosqlite:///{path}", path)
        return
    name = f"test_{next(_NUMBERS)}"
    url = await postgres.create_database(name)
    connection = await postgres.connect(name)
    try:
        yield PostgresqlDatabase(url, connection)
    finally:
        await connection.close()
