"""Indexes: build what is missing, and drop and rebuild what is invalid or differs from its definition.

An index is judged by its definition, not by its name. PostgreSQL compares exactly: the declared index is made on an
empty copy of the table, in a transaction that is rolled back, and the server's own text of both is compared.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy.exc import DBAPIError

from shipkeeper.resources.migrationjob import Locks
from shipkeeper.resources.migrationjob_status import IndexStatus
from shipkeeper.resources.migrationsteps import Index
from shipkeeper.resources.schedule import milliseconds

from .catalog import quoted_name, require_table
from .database import Session
from .dialect import identifier, literal
from .errors import MigrationError, server_message, sql_state

IndexState = Literal["Missing", "Invalid", "Differs", "Building", "Valid"]
_LOCK_TIMEOUT: Final = "55P03"
_UNIQUE_VIOLATION: Final = "23505"
_FIRST_PAUSE_SECONDS: Final = 0.5

_POSTGRESQL_INDEX: Final = """
SELECT i.indisvalid AND i.indisready AND i.indislive, i.indisunique, pg_get_indexdef(i.indexrelid),
       i.indrelid = to_regclass($2), quote_ident(n.nspname) || '.' || quote_ident(c.relname),
       EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_index i ON i.indexrelid = c.oid
WHERE c.relname = $1 AND n.oid = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($2))
"""


@dataclass(frozen=True)
class _Found:
    state: IndexState
    name: str
    """The index's name in SQL, with its schema."""


def create_sql(index: Index, *, sqlite: bool, table: str | None = None, name: str | None = None) -> str:
    """Return the statement that creates the index (on PostgreSQL CONCURRENTLY, where it is on its own table)."""
    keys = []
    for key in index.keys:
        part = identifier(key.column) if key.column is not None else f"({key.expression})"
        keys.append(f"{part} DESC" if key.order == "Descending" else part)
    unique = "UNIQUE " if index.unique else ""
    concurrently = "" if sqlite or table is not None else "CONCURRENTLY "
    method = "" if sqlite else f" USING {index.method.lower()}"
    include = f" INCLUDE ({', '.join(identifier(column) for column in index.include)})" if index.include else ""
    where = f" WHERE {index.where}" if index.where is not None else ""
    on = table or quoted_name(index.table)
    return (
        f"CREATE {unique}INDEX {concurrently}{identifier(name or index.name)} ON {on}{method} ({', '.join(keys)})"
        f"{include}{where}"
    )


async def index_state(session: Session, index: Index) -> IndexState:
    """Return the state of an index, by its definition. Needs a session outside of a transaction."""
    return (await _find(session, index)).state


async def _find(session: Session, index: Index) -> _Found:
    async with session.rolled_back():
        table = await require_table(session, index.table, sqlite=session.is_sqlite, used_by=f"index {index.name}")
        for column in [key.column for key in index.keys if key.column is not None] + list(index.include):
            table.column(column, used_by=f"index {index.name}")
        return await (_find_sqlite(session, index) if session.is_sqlite else _find_postgresql(session, index))


async def _find_postgresql(session: Session, index: Index) -> _Found:
    found = await session.row(_POSTGRESQL_INDEX, index.name, quoted_name(index.table))
    if found is None:
        return _Found("Missing", "")
    valid, unique, definition, on_table, name, constraint = found
    if not on_table or constraint:
        what = "the index of a constraint" if constraint else "an index of another table"
        raise MigrationError(
            "IndexNameTaken", f"index {index.name}: {name} is {what}; give the index another name", retry="Never"
        )
    if not valid:
        return _Found("Invalid", name)
    # Temporary tables are of this session alone, and the transaction is rolled back.
    await session.execute(f"CREATE TEMP TABLE shipkeeper_probe (LIKE {quoted_name(index.table)})")
    await session.execute(
        create_sql(index, sqlite=False, table="pg_temp.shipkeeper_probe", name="shipkeeper_probe_index")
    )
    declared = await session.scalar("SELECT pg_get_indexdef('pg_temp.shipkeeper_probe_index'::regclass)")
    same = unique == index.unique and _after_table(definition) == _after_table(declared)
    return _Found("Valid" if same else "Differs", name)


def _after_table(definition: str) -> str:
    return definition[definition.index(" USING ") :]


async def _find_sqlite(session: Session, index: Index) -> _Found:
    row = await session.row("SELECT tbl_name, sql FROM sqlite_master WHERE type = 'index' AND name = ?1", index.name)
    if row is None:
        return _Found("Missing", "")
    if row[0].lower() != index.table.lower() or row[1] is None:
        raise MigrationError(
            "IndexNameTaken",
            f"index {index.name}: the name is taken by table {row[0]}; give the index another name",
            retry="Never",
        )
    same = _canonical(row[1]) == _canonical(create_sql(index, sqlite=True))
    return _Found("Valid" if same else "Differs", identifier(index.name))


def _canonical(sql: str) -> str:
    """Reduce SQLite's text of an index to what it means: without case, quotes, spaces and ASC."""
    text = sql.lower().replace("if not exists", "")
    text = re.sub(r"\basc\b", "", text)
    return re.sub(r"[\s\"`\[\];]+", "", text)


class IndexBuilder:
    """Brings indexes to their definitions."""

    def __init__(self, session: Session, *, locks: Locks, report: Callable[[IndexStatus], Awaitable[None]]) -> None:
        self._session = session
        self._locks = locks
        self._report = report

    async def ensure(self, index: Index) -> IndexStatus:
        """Build or repair one index and return its state."""
        found = await _find(self._session, index)
        if found.state == "Valid":
            status = _status(index, "Valid", "None")
            await self._report(status)
            return status
        action: Literal["Created", "Repaired"] = "Created" if found.state == "Missing" else "Repaired"
        await self._report(_status(index, "Building", action))
        for attempt in range(1, self._locks.attempts + 1):
            try:
                await self._rebuild(index, found)
                break
            except DBAPIError as error:
                if sql_state(error) == _UNIQUE_VIOLATION or "UNIQUE constraint" in server_message(error):
                    raise await self._not_unique(index, error) from error
                if sql_state(error) != _LOCK_TIMEOUT or attempt == self._locks.attempts:
                    raise
            await asyncio.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            found = await _find(self._session, index)
        after = await _find(self._session, index)
        if after.state != "Valid":
            raise MigrationError(
                "IndexNotValid", f"index {index.name} is {after.state} after it was built", retry="Soon"
            )
        status = _status(index, "Valid", action)
        await self._report(status)
        return status

    async def _rebuild(self, index: Index, found: _Found) -> None:
        if self._session.is_sqlite:
            async with self._session.transaction():
                # Looked at again under the file's write lock: another worker may have built it meanwhile.
                found = await _find_sqlite(self._session, index)
                if found.state == "Valid":
                    return
                if found.state != "Missing":
                    await self._session.execute(f"DROP INDEX {found.name}")
                await self._session.execute(create_sql(index, sqlite=True))
            return
        async with self._session.statements():
            await self._set_lock_timeout(self._locks.index_build_timeout)
            try:
                if found.state != "Missing":
                    await self._session.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {found.name}")
                await self._session.execute(create_sql(index, sqlite=False))
            finally:
                await self._set_lock_timeout("0s")

    async def _set_lock_timeout(self, span: str) -> None:
        await self._session.rows(f"SELECT set_config('lock_timeout', {literal(str(milliseconds(span)))}, false)")

    async def _not_unique(self, index: Index, error: BaseException) -> MigrationError:
        """Remove what a failed build left and say which rows share a key."""
        if not self._session.is_sqlite:
            found = await _find(self._session, index)
            if found.state == "Invalid":
                async with self._session.statements():
                    await self._session.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {found.name}")
        return MigrationError(
            "IndexNotUnique",
            f"index {index.name}: {server_message(error)}: remove the duplicates, or declare it without unique",
            retry="WhenMended",
            sql_state=sql_state(error),
        )


def _status(index: Index, state: IndexState, action: Literal["None", "Created", "Repaired"]) -> IndexStatus:
    return IndexStatus(name=index.name, table=index.table, state=state, action=action)
