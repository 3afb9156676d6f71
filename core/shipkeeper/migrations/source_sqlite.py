"""A SQLite file as the source: read in a thread of its own, ahead of the copy, and never written.

A SQLite column may hold anything. SQLite itself says which rows hold only what their columns can take (nearly all; they
go to COPY as they are); the others are looked at one by one, and a value that does not fit is named in MISFIT_COLUMN,
which rejects its row.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from shipkeeper.resources.migrationsteps import Consolidate

from .catalog import Column, Table, require_table
from .database import DatabaseUrl, Session
from .errors import MigrationError
from .ledger import Key
from .mapping import source_column
from .source import (
    MISFIT_COLUMN,
    TEMPORARY_SCHEMA,
    StagedRange,
    Staging,
    count_statement,
    every_statement,
    of_the_source,
    original_statements,
    without_filter,
)
from .sqlite import SqliteDialect
from .sqlite_values import fitting, staged_column
from .used_columns import used_columns

_Found = TypeVar("_Found")

_BUSY_SECONDS: Final = 10
# Chunks that wait for the copy; each is read in a transaction of its own, so that writers never wait long.
_CHUNKS_AHEAD: Final = 3
_CHUNK_BYTES: Final = 2_000_000
_MOST_CHUNK_ROWS: Final = 4_000
_FIRST_CHUNK_ROWS: Final = 50


class SqliteSource:
    """The file, opened read-only when it is first needed."""

    def __init__(self, url: DatabaseUrl) -> None:
        self._path = Path(str(url.value.database))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite-source")
        self._connection: sqlite3.Connection | None = None
        self._tables: list[SqliteSourceTable] = []

    async def rows(self, sql: str, *parameters: Any) -> Sequence[Any]:
        """Run a query and return all its rows."""
        return await self.run(lambda connection: connection.execute(sql, parameters).fetchall())

    async def run(self, work: Callable[[sqlite3.Connection], _Found]) -> _Found:
        """Call with the connection, in the thread.

        Raises MigrationError with the reason that fits.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    def _guarded(self, work: Callable[[sqlite3.Connection], _Found]) -> _Found:
        try:
            if self._connection is None:
                self._connection = _open(self._path)
            return work(self._connection)
        except sqlite3.Error as error:
            raise _explained(error, self._path) from None

    async def table(self, step: Consolidate, *, staging: str, used_by: str) -> "SqliteSourceTable":
        """Describe the table."""
        try:
            table = await require_table(self, step.source, sqlite=True, used_by=f"{used_by}, source database")
        except MigrationError as error:
            raise of_the_source(error) from None
        keys = {name: await self._key_column(table, name) for name in step.key}
        table = Table(name=table.name, columns={**table.columns, **keys}, unique_keys=table.unique_keys)
        found = SqliteSourceTable(self, step, table, staging=staging)
        self._tables.append(found)
        return found

    async def _key_column(self, table: Table, name: str) -> Column:
        """Return a key's column with the family that its values really have.

        Raises MigrationError where they are not all whole numbers, or all text: they have no order that both know.
        """
        column = table.column(name, used_by="consolidate.key")
        value = source_column(name)
        kind = f"CASE WHEN instr({value}, char(0)) > 0 THEN 'text with a NUL' ELSE typeof({value}) END"
        found = {kind for (kind,) in await self.rows(f"SELECT DISTINCT {kind} FROM {table.relation} AS source")}
        if not found or found == {"integer"}:
            is_integer = bool(found) or column.family == "integer"
        elif found == {"text"}:
            is_integer = False
        else:
            raise MigrationError(
                "KeyNotUnique",
                f"source: consolidate.key: {name} of {table.name} holds {' and '.join(sorted(found))}: "
                "a key is of whole numbers alone, or of text alone",
                retry="WhenMended",
            )
        return Column(
            name=name,
            type="bigint" if is_integer else "text",
            family="integer" if is_integer else "text",
            nullable=column.nullable,
            has_default=column.has_default,
        )

    async def table_bytes(self, name: str) -> int:
        """Return the file's size; which table takes what of it SQLite does not say."""
        return self._path.stat().st_size

    async def retiring_session(self, table: str) -> Session:
        """Refuse: the file is only read."""
        raise MigrationError(
            "SourceReadOnly",
            f"source: {table} is in a SQLite file, which is only read: remove the retire step",
            retry="Never",
        )

    async def close(self) -> None:
        """Close the file."""
        for table in self._tables:
            await table.close()
        if self._connection is not None:
            self._connection.interrupt()
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise MigrationError("DatabaseMissing", f"source: there is no SQLite file at {path}", retry="WhenMended")
    try:
        return _connected(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # A file in WAL mode needs two more files beside it, which a read-only volume refuses. Without a log or journal
        # that holds anything, nobody has the file open, and it can be read as one that does not change.
        refused = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if not refused or _has_log(path, "-wal") or _has_log(path, "-journal"):
            raise
        return _connected(path, "immutable=1")


def _connected(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?{how}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_SECONDS,
        detect_types=sqlite3.PARSE_COLNAMES,
    )
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _has_log(path: Path, ending: str) -> bool:
    log = path.with_name(path.name + ending)
    return log.is_file() and log.stat().st_size > 0


def _explained(error: sqlite3.Error, path: Path) -> MigrationError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    words = f"source: {error}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return MigrationError("LockTimeout", f"{words}: another process writes to {path}", retry="Soon")
    if code == sqlite3.SQLITE_IOERR:
        return MigrationError("DatabaseUnreachable", f"{words}: check the volume of {path}", retry="Soon")
    if code == sqlite3.SQLITE_NOTADB:
        advice = f"{path} is no SQLite database, or an encrypted one: correct the path"
    elif code == sqlite3.SQLITE_CORRUPT:
        advice = f"{path} is damaged: mend a copy of it with the .recover command of sqlite3"
    elif code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        advice = (
            f"{path} can only be read once its journal is written back: stop the application, "
            "run PRAGMA wal_checkpoint(TRUNCATE) in sqlite3, and see that the worker may read the file"
        )
    else:
        advice = f"correct the step, or {path}"
    return MigrationError("SourceUnreadable", f"{words}: {advice}", retry="WhenMended")


class SqliteSourceTable:
    """A table of the file."""

    def __init__(self, source: SqliteSource, step: Consolidate, table: Table, *, staging: str) -> None:
        self._source = source
        used = used_columns(step, tuple(table.columns))
        self._columns = tuple(
            staged_column(column, is_used=column.name in used, is_key=column.name in step.key)
            for column in table.columns.values()
        )
        misfit = Column(name=MISFIT_COLUMN, type="text", family="text", nullable=True, has_default=False)
        self._staging = Staging(name=staging, columns=(*(each.staged for each in self._columns), misfit))
        self.staged = self._staging.stands_for(table)
        self.original = original_statements(step, table, SqliteDialect())
        self._paging = original_statements(without_filter(step), table, SqliteDialect())
        self._keys = [table.column(name, used_by="consolidate.key") for name in step.key]
        names = list(table.columns)
        self._key_positions = [names.index(name) for name in step.key]
        self._exact = [index for index, each in enumerate(self._columns) if each.kind == "numeric"]
        self._stream: _Stream | None = None
        self._chunk_rows = _FIRST_CHUNK_ROWS

    async def last_key(self) -> Key | None:
        """Return the highest key."""
        found = await self._source.rows(self._paging.last_key())
        return tuple(found[0]) if found else None

    async def count(self, upper: Key) -> int:
        """Return the number of rows up to the key."""
        return int((await self._source.rows(count_statement(self._paging), *upper))[0][0])

    async def every(self, size: int, *, upper: Key) -> Sequence[str]:
        """Return the first part of every size-th key."""
        return [str(key) for (key,) in await self._source.rows(every_statement(self._paging, size), *upper)]

    async def close(self) -> None:
        """Stop reading ahead."""
        if self._stream is not None:
            await self._stream.close()
        self._stream = None

    async def stage(self, target: Session, *, after: Key | None, upper: Key, size: int) -> StagedRange | None:
        """Bring the next rows over. While the target works on them, the next ones are read."""
        await self._staging.create(target)
        stream = await self._stream_from(after, upper)
        try:
            last, rows = await self._copy(target, stream, size)
        except BaseException:
            await stream.close()
            raise
        if last is None:
            await stream.close()
            return None
        stream.position = last
        self._stream = stream
        return StagedRange(last=last, rows=rows)

    async def _stream_from(self, after: Key | None, upper: Key) -> "_Stream":
        """Take the stream that stands there; else begin one, as after a batch that was rolled back."""
        stream, self._stream = self._stream, None
        if stream is not None and stream.position == after and stream.upper == upper:
            return stream
        if stream is not None:
            await stream.close()
        return _Stream(self, after, upper)

    async def _copy(self, target: Session, stream: "_Stream", size: int) -> tuple[Key | None, int]:
        connection = await target.driver()
        last, rows = None, 0
        while rows < size and (chunk := await stream.take(size - rows)):
            await connection.copy_records_to_table(
                self._staging.name,
                schema_name=TEMPORARY_SCHEMA,
                records=chunk,
                columns=self._staging.column_names,
            )
            rows += len(chunk)
            last = self.key_of(chunk[-1])
        return last, rows

    def key_of(self, row: Sequence[Any]) -> Key:
        """Return the key of a row."""
        return tuple(str(row[position]) for position in self._key_positions)

    async def chunk(self, after: Key | None, upper: Key) -> list[Sequence[Any]]:
        """Read the next rows, as COPY takes them: about so many as are quick to read and light to hold."""
        return await self._source.run(lambda connection: self._read(connection, after, upper))

    def _read(self, connection: sqlite3.Connection, after: Key | None, upper: Key) -> list[Sequence[Any]]:
        query = self._query(from_start=after is None)
        parameters = (*(after or ()), *upper, self._chunk_rows)
        try:
            rows = connection.execute(query, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if "Could not decode" not in str(error):
                raise
            rows = [_flagged(row) for row in self._read_undecodable(connection, query, parameters)]
        if rows:
            self._adapt_chunk(rows)
        return self._fitted(rows)

    def _query(self, *, from_start: bool) -> str:
        fields = ", ".join(each.read_sql() for each in self._columns)
        fits = " AND ".join(each.fits_sql() for each in self._columns)
        width = len(self._keys)
        conditions = [] if from_start else [self._paging.after(1)]
        conditions.append(self._paging.up_to(1 if from_start else width + 1))
        order = ", ".join(source_column(column.name) for column in self._keys)
        limit = f"?{(1 if from_start else 2) * width + 1}"
        return (
            f"SELECT {fields}, CASE WHEN {fits} THEN NULL ELSE 1 END FROM {self.original.mapping.source.relation} "
            f"AS source WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT {limit}"
        )

    def _read_undecodable(
        self, connection: sqlite3.Connection, query: str, parameters: Sequence[Any]
    ) -> list[Sequence[Any]]:
        """Read rows of which some hold text that is no UTF-8, byte for byte."""
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        try:
            return connection.execute(query, parameters).fetchall()
        finally:
            connection.text_factory = str

    def _adapt_chunk(self, rows: Sequence[Sequence[Any]]) -> None:
        sample = rows[:: max(len(rows) // 20, 1)]
        size = sum(len(value) if isinstance(value, (str, bytes)) else 8 for row in sample for value in row)
        self._chunk_rows = max(1, min(_MOST_CHUNK_ROWS, _CHUNK_BYTES * len(sample) // max(size, 1)))

    def _fitted(self, rows: list[Sequence[Any]]) -> list[Sequence[Any]]:
        for position, row in enumerate(rows):
            if row[-1] is not None:
                rows[position] = fitting(row, self._columns)
        if self._exact:
            rows = [self._with_exact_numbers(row) for row in rows]
        return rows

    def _with_exact_numbers(self, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for position in self._exact:
            if isinstance(values[position], float):
                values[position] = Decimal(repr(values[position]))
        return values


def _flagged(row: Sequence[Any]) -> Sequence[Any]:
    return (*row[:-1], 1)


class _Stream:
    """Reads chunk after chunk, a few ahead of who takes them."""

    def __init__(self, table: SqliteSourceTable, after: Key | None, upper: Key) -> None:
        self._table = table
        self.position = after
        self.upper = upper
        self._chunks: asyncio.Queue[list[Sequence[Any]] | Exception] = asyncio.Queue(maxsize=_CHUNKS_AHEAD)
        self._rest: list[Sequence[Any]] = []
        self._ended = False
        self._task = asyncio.create_task(self._read(after))

    async def _read(self, after: Key | None) -> None:
        """Put chunks, and at the end an empty one or what went wrong."""
        try:
            while chunk := await self._table.chunk(after, self.upper):
                after = self._table.key_of(chunk[-1])
                await self._chunks.put(chunk)
            await self._chunks.put([])
        except Exception as error:
            await self._chunks.put(error)

    async def take(self, most: int) -> list[Sequence[Any]]:
        """Return the next rows, at most so many; none at the end."""
        if not self._rest and not self._ended:
            chunk = await self._chunks.get()
            if isinstance(chunk, Exception):
                self._ended = True
                raise chunk
            self._rest, self._ended = chunk, not chunk
        rows, self._rest = self._rest[:most], self._rest[most:]
        return rows

    async def close(self) -> None:
        """Stop reading."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
