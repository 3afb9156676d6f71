"""Another PostgreSQL as the source: COPY out of the one and into the other in the binary format, no value touched."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from shipkeeper.resources.migrationsteps import Consolidate

from .catalog import Column, Table, quoted_name, require_table
from .database import DatabaseUrl, Session, connect, create_engine
from .dialect import SqlValue, literal
from .errors import MigrationError, explain
from .ledger import Key
from .mapping import source_column
from .postgresql import PostgresqlDialect
from .source import (
    TEMPORARY_SCHEMA,
    StagedRange,
    Staging,
    count_statement,
    every_statement,
    of_the_source,
    original_statements,
    without_filter,
)

# Pieces of COPY's stream (of 64 KiB at most) that wait for the target.
_PIECES: Final = 16
_CLOSE_SECONDS: Final = 5.0
# Types that both servers know by the same name and write alike; any other (an enum, a domain, an extension's) is text.
_PLAIN_TYPES: Final = """
SELECT a.attname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
  AND t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype = 'b' AND t.typname NOT LIKE 'reg%'
"""
_MAY_RENAME: Final = """
SELECT pg_is_in_recovery(),
       coalesce((SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = to_regclass($1)), true)
"""


class PostgresqlSource:
    """A session with the source, opened when it is first needed, that only reads."""

    def __init__(self, url: DatabaseUrl, *, name: str) -> None:
        self._url = url
        self._name = name
        self._engine: AsyncEngine | None = None
        self._session: Session | None = None

    async def table(self, step: Consolidate, *, staging: str, used_by: str) -> "PostgresqlSourceTable":
        """Describe the table."""
        session = await self.reading()
        try:
            async with session.transaction():
                table = await require_table(session, step.source, sqlite=False, used_by=f"{used_by}, source database")
                plain = {name for (name,) in await session.rows(_PLAIN_TYPES, quoted_name(step.source))}
        except Exception as error:
            raise of_the_source(explain(error)) from None
        return PostgresqlSourceTable(session, step, table, plain=plain, staging=staging)

    async def table_bytes(self, name: str) -> int:
        """Return the table's size."""
        session = await self.reading()
        async with session.transaction():
            size = "SELECT coalesce(pg_total_relation_size(to_regclass($1)), 0)"
            return int(await session.scalar(size, quoted_name(name)))

    async def reading(self) -> Session:
        """Return the session."""
        if self._session is None:
            self._engine = create_engine(self._url, name=self._name)
            try:
                self._session = Session(await connect(self._engine))
                await self._set_access("READ ONLY")
            except Exception as error:
                raise of_the_source(explain(error)) from None
        return self._session

    async def retiring_session(self, table: str) -> Session:
        """Return the session, now allowed to write."""
        session = await self.reading()
        async with session.transaction():
            is_standby, is_owner = await session.row(_MAY_RENAME, quoted_name(table))
        if is_standby:
            raise MigrationError(
                "SourceReadOnly",
                f"source: {table} cannot be retired on a standby: give the primary's URL, or remove the retire step",
                retry="WhenMended",
            )
        if not is_owner:
            raise MigrationError(
                "PermissionDenied",
                f"source: {table} can be retired by its owner alone: give the owner's URL, or remove the retire step",
                retry="WhenMended",
            )
        await self._set_access("READ WRITE")
        return session

    async def _set_access(self, access: str) -> None:
        assert self._session is not None  # noqa: S101 # The callers opened it.
        async with self._session.statements():
            await self._session.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION {access}")

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            with contextlib.suppress(Exception):  # A server that is gone never answers a farewell.
                await asyncio.wait_for(self._session.connection.close(), timeout=_CLOSE_SECONDS)
        if self._engine is not None:
            await self._engine.dispose()


class PostgresqlSourceTable:
    """A table of the source."""

    def __init__(self, session: Session, step: Consolidate, table: Table, *, plain: set[str], staging: str) -> None:
        self._session = session
        self._relation = table.relation
        columns = tuple(column if column.name in plain else _as_text(column) for column in table.columns.values())
        self._staging = Staging(name=staging, columns=columns)
        self._fields = ", ".join(
            source_column(name) if name in plain else f"CAST({source_column(name)} AS text)" for name in table.columns
        )
        self.staged = self._staging.stands_for(table)
        self.original = original_statements(step, table, PostgresqlDialect())
        self._paging = original_statements(without_filter(step), table, PostgresqlDialect())
        self._key = self.original.mapping.key

    async def last_key(self) -> Key | None:
        """Return the highest key."""
        found = await self._answer(self._paging.last_key())
        return tuple(found[0]) if found else None

    async def count(self, upper: Key) -> int:
        """Return the number of rows up to the key."""
        return int((await self._answer(count_statement(self._paging), *upper))[0][0])

    async def every(self, size: int, *, upper: Key) -> Sequence[str]:
        """Return the first part of every size-th key."""
        return [str(key) for (key,) in await self._answer(every_statement(self._paging, size), *upper)]

    async def _answer(self, query: str, *parameters: str) -> Sequence[Any]:
        try:
            async with self._session.transaction():
                return await self._session.rows(query, *parameters)
        except Exception as error:
            raise of_the_source(explain(error)) from None

    async def stage(self, target: Session, *, after: Key | None, upper: Key, size: int) -> StagedRange | None:
        """Bring the next rows over, from one state of the source."""
        await self._staging.create(target)
        async with self._session.transaction():
            found = await self._next_range(after, upper, size)
            if found is None:
                return None
            last: Key = tuple(found[:-2])
            rows = await self._copy(target, self._query(after, last))
        return StagedRange(last=last, rows=rows)

    async def _next_range(self, after: Key | None, upper: Key, size: int) -> Any:
        query = self._paging.next_range(from_start=after is None)
        try:
            return await self._session.row(query, *(after or ()), *upper, str(size))
        except Exception as error:
            raise of_the_source(explain(error)) from None

    async def _copy(self, target: Session, query: str) -> int:
        connection = await target.driver()
        stream = _CopyOut(await self._session.driver(), query)
        try:
            status = await connection.copy_to_table(
                self._staging.name,
                schema_name=TEMPORARY_SCHEMA,
                source=stream.pieces(),
                columns=self._staging.column_names,
                format="binary",
            )
        except Exception:
            if stream.failure is not None:
                raise of_the_source(explain(stream.failure)) from None
            raise
        finally:
            await stream.end()
        return int(str(status).rpartition(" ")[2])

    def _query(self, after: Key | None, last: Key) -> str:
        """Return the query for the rows of a range. COPY takes no parameters, so the keys stand in it."""
        conditions = [self._compare("<=", last)]
        if after is not None:
            conditions.append(self._compare(">", after))
        return f"SELECT {self._fields} FROM {self._relation} AS source WHERE {' AND '.join(conditions)}"

    def _compare(self, operator: str, key: Key) -> SqlValue:
        names = ", ".join(source_column(column.name) for column in self._key)
        values = ", ".join(
            f"CAST({literal(part)} AS {column.type})" for part, column in zip(key, self._key, strict=True)
        )
        return f"({names}) {operator} ({values})"


class _CopyOut:
    """COPY TO STDOUT as a stream of pieces, a few ahead of who takes them."""

    def __init__(self, connection: Any, query: str) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=_PIECES)
        self.failure: BaseException | None = None
        self._task = asyncio.create_task(self._copy(connection, query))

    async def _copy(self, connection: Any, query: str) -> None:
        try:
            await connection.copy_from_query(query, output=self._pieces.put, format="binary")
        except Exception as error:
            self.failure = error
        await self._pieces.put(None)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the pieces. Raises what the source failed with."""
        while (piece := await self._pieces.get()) is not None:
            yield piece
        if self.failure is not None:
            raise self.failure

    async def end(self) -> None:
        """Stop, where the taker did not take all."""
        if not self._task.done():
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _as_text(column: Column) -> Column:
    return Column(
        name=column.name, type="text", family="text", nullable=column.nullable, has_default=column.has_default
    )
