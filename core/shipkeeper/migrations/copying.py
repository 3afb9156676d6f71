"""Copying a table in batches: the statements of one consolidation, and how one batch accounts for each of its rows.

A batch is a range of the source's key and one transaction: find the range, insert what can be converted, keep what
cannot, count what was already there, move the ledger's cursor. The three counts must add up to the rows of the range,
or the transaction is rolled back.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from shipkeeper.resources.migrationsteps import Consolidate, IdentityPart

from .catalog import quoted_name
from .database import Session
from .dialect import KEY_SEPARATOR, SqlValue, identifier, literal
from .errors import MigrationError, is_row_error, server_message, sql_state
from .ledger import REJECTS_TABLE, BatchCounts, Key, Ledger, StepRecord, utc_now
from .mapping import CompiledMapping, source_column

# Families of keys whose highest value needs no sorting, in every version of either database.
_WITH_MAXIMUM: Final = ("integer", "number", "text", "timestamp", "timestamptz", "date")


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """A committed batch."""

    cursor: Key
    counts: BatchCounts
    rows: int
    """Source rows in the range, with those that the filter leaves out."""
    milliseconds: int


class RowErrorInBatch(Exception):  # noqa: N818 # Not a failure yet: the batch is split to find the row.
    """A row of the batch cannot be written; the batch was rolled back."""

    def __init__(self, rows: int, cause: BaseException) -> None:
        super().__init__(server_message(cause))
        self.rows = rows
        self.cause = cause


class MovedElsewhereError(Exception):
    """Another worker moved the cursor: the batch was rolled back, and the ledger must be read again."""


class CopyStatements:
    """The SQL of one consolidation."""

    def __init__(self, step: Consolidate, mapping: CompiledMapping, *, prefix: str) -> None:
        self._step = step
        self.mapping = mapping
        self.existing_table = f"{prefix}_existing"
        self._dialect = mapping.dialect
        self._target = quoted_name(mapping.target.name)
        self._key = [source_column(column.name) for column in mapping.key]

    # What a row of the source is called.

    def row_key(self) -> SqlValue:
        """Return the source row's key as one text."""
        return self._dialect.joined_key(self.mapping.key_texts())

    def selected_key(self, alias: str) -> SqlValue:
        """Return the key of a row of the mapping's SELECT, as one text."""
        return self._dialect.joined_key([f"{alias}.k{index}" for index in range(len(self._key))])

    def key_among(self, keys: Sequence[str], *, first_parameter: int = 1) -> tuple[SqlValue, list[str]]:
        """Return the condition that the source row's key is one of these (as one text each), and its parameters."""
        width = len(self._key)
        parts = [part for key in keys for part in key.split(KEY_SEPARATOR)]
        bound = [
            self._dialect.key_parameter(first_parameter + index, self.mapping.key[index % width])
            for index in range(len(parts))
        ]
        if width == 1:
            return f"{self._key[0]} IN ({', '.join(bound)})", parts
        rows = [f"({', '.join(bound[index : index + width])})" for index in range(0, len(bound), width)]
        return f"({', '.join(self._key)}) IN (VALUES {', '.join(rows)})", parts

    def text_parameters(self, count: int, *, first_parameter: int = 1) -> SqlValue:
        """Return so many placeholders of text, with commas between them."""
        return ", ".join(self._dialect.parameter(first_parameter + index) for index in range(count))

    def filter(self) -> SqlValue:
        """Return the condition that a source row is to be copied."""
        return f"({self._step.filter})" if self._step.filter is not None else "1 = 1"

    def after(self, first_parameter: int) -> SqlValue:
        """Return the condition that the key lies above the one bound from that parameter on."""
        return self._compare(">", first_parameter)

    def up_to(self, first_parameter: int) -> SqlValue:
        """Return the condition that the key does not lie above the one bound from that parameter on."""
        return self._compare("<=", first_parameter)

    def _compare(self, operator: str, first: int) -> SqlValue:
        bound = [self._dialect.key_parameter(first + index, column) for index, column in enumerate(self.mapping.key)]
        if len(bound) == 1:
            return f"{self._key[0]} {operator} {bound[0]}"
        return f"({', '.join(self._key)}) {operator} ({', '.join(bound)})"

    # What a row of the target says of its origin.

    def origins(self, *, further: Sequence[SqlValue] = ()) -> str:
        """Return the query for the target rows that carry the identity's constants and a key.

        Its columns: o0.. (the parts of the source row's key, as text), and the further expressions over `t`.
        """
        by_source = {part.source: part for part in self._step.identity if part.source is not None}
        keys = [self._part(by_source[name], "t") for name in self._step.key]
        constants = [part for part in self._step.identity if part.constant is not None]
        # Plain columns first, so that a JSON text is read only where they match; and each field is read once.
        conditions = [self._equals(part, "t") for part in constants if part.field is None]
        fields = [part for part in constants if part.field is not None]
        read = [f"{key} AS o{index}" for index, key in enumerate(keys)]
        read += [f"{self._part(part, 't')} AS f{index}" for index, part in enumerate(fields)]
        read += further
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        inner = f"SELECT {', '.join(read)} FROM {self._target} t{where} {self._dialect.fence()}"
        matches = [f"i.f{index} = {literal(part.constant or '')}" for index, part in enumerate(fields)]
        matches += [f"i.o{index} IS NOT NULL" for index in range(len(keys))]
        return f"SELECT i.* FROM ({inner}) AS i WHERE {' AND '.join(matches)}"

    def origin_key(self, alias: str) -> SqlValue:
        """Return the key of the source row that a row of `origins` came from, as one text."""
        return self._dialect.joined_key([f"{alias}.o{index}" for index in range(len(self._step.key))])

    def is_ours(self, alias: str) -> SqlValue:
        """Return the condition that a target row carries the identity's constants."""
        conditions = [self._equals(part, alias) for part in self._step.identity if part.constant is not None]
        return " AND ".join(conditions) or "1 = 1"

    def has_plain_constants(self, alias: str) -> SqlValue:
        """Return the condition that a target row carries those constants that are no fields of a JSON object."""
        plain = [part for part in self._step.identity if part.constant is not None and part.field is None]
        return " AND ".join(self._equals(part, alias) for part in plain) or "1 = 1"

    def _equals(self, part: IdentityPart, alias: str) -> SqlValue:
        column = self.mapping.target.column(part.column, used_by="identity")
        if part.field is None and column.family == "text":  # An index on the column serves the comparison.
            return f"{alias}.{identifier(column.name)} = {literal(part.constant or '')}"
        return f"{self._part(part, alias)} = {literal(part.constant or '')}"

    def _part(self, part: IdentityPart, alias: str) -> SqlValue:
        column = self.mapping.target.column(part.column, used_by="identity")
        name = f"{alias}.{identifier(column.name)}"
        if part.field is not None:
            return self._dialect.json_field(name, part.field, column)
        return self._dialect.as_text(name)

    def is_known(self, key: SqlValue) -> SqlValue:
        """Return the condition that a row of this key was already there."""
        return f"EXISTS (SELECT 1 FROM {identifier(self.existing_table)} e WHERE e.k = {key})"

    # Statements.

    def create_existing(self) -> str:
        """Return the statement that notes which source rows the target already holds."""
        return (
            f"CREATE TABLE {identifier(self.existing_table)} AS "
            f"SELECT DISTINCT {self.origin_key('o')} AS k FROM ({self.origins()}) AS o"
        )

    def total(self) -> str:
        """Return the query for the number of rows to account for."""
        table = self.mapping.source.relation
        return f"SELECT count(*) FROM {table} AS source WHERE {self.filter()}"

    def last_key(self) -> str:
        """Return the query for the highest key."""
        order = ", ".join(f"{column} DESC" for column in self._key)
        table = self.mapping.source.relation
        return f"SELECT {', '.join(self.mapping.key_texts())} FROM {table} AS source ORDER BY {order} LIMIT 1"

    def next_range(self, *, from_start: bool) -> str:
        """Return the query for the last key, the rows and the wanted rows of the next range.

        Parameters: the key before (unless from the start), the upper bound, the number of rows.
        """
        width = len(self._key)
        conditions = [] if from_start else [self.after(1)]
        first_of_upper = 1 if from_start else width + 1
        conditions.append(self.up_to(first_of_upper))
        limit = f"CAST({self._dialect.parameter(first_of_upper + width)} AS INTEGER)"
        names = [f"r{index}" for index in range(width)]
        fields = ", ".join(f"{column} AS {name}" for column, name in zip(self._key, names, strict=True))
        rows = (
            f"SELECT {fields}, CASE WHEN {self.filter()} THEN 1 ELSE 0 END AS wanted "
            f"FROM {self.mapping.source.relation} AS source "
            f"WHERE {' AND '.join(conditions)} ORDER BY {', '.join(self._key)} LIMIT {limit}"
        )
        if width == 1 and self.mapping.key[0].family in _WITH_MAXIMUM:
            last_key = self._dialect.as_text("max(r.r0)")
            return f"SELECT {last_key}, count(*), sum(r.wanted) FROM ({rows}) AS r HAVING count(*) > 0"
        last = f"SELECT {', '.join(names)} FROM r ORDER BY {', '.join(f'{name} DESC' for name in names)} LIMIT 1"
        texts = ", ".join(self._dialect.as_text(f"last.{name}") for name in names)
        sums = "(SELECT count(*) FROM r), (SELECT coalesce(sum(wanted), 0) FROM r)"
        return f"WITH r AS ({rows}) SELECT {texts}, {sums} FROM ({last}) AS last"

    def in_range(self, *, from_start: bool) -> list[SqlValue]:
        """Return the conditions of a range. Parameters: the key before it (unless from the start), its last key."""
        width = len(self._key)
        conditions = [] if from_start else [self.after(1)]
        return [*conditions, self.up_to(1 if from_start else width + 1), self.filter()]

    def insert(self, *, from_start: bool, check_existing: bool) -> str:
        """Return the statement that copies the convertible rows of a range."""
        conditions = self.in_range(from_start=from_start)
        if check_existing:
            conditions.append(f"NOT {self.is_known(self.row_key())}")
        return self.insert_where(conditions)

    def insert_where(self, conditions: Sequence[SqlValue]) -> str:
        """Return the statement that copies the convertible rows of the source that meet all conditions."""
        names = ", ".join(identifier(column.name) for column in self.mapping.columns)
        values = ", ".join(f"p.c{index}" for index in range(len(self.mapping.columns)))
        return (
            f"INSERT INTO {self._target} ({names}) SELECT {values} "
            f"FROM ({self.mapping.select(conditions)}) AS p WHERE p.reason IS NULL"
        )

    def note_existing(self, *, from_start: bool) -> str:
        """Return the statement that notes rows which an earlier tool copied without leaving the identity."""
        return self.note_existing_where(self.in_range(from_start=from_start))

    def note_existing_where(self, where: Sequence[SqlValue]) -> str:
        """Return the statement that notes such rows among those that meet all conditions."""
        assert self._step.skip_existing is not None  # noqa: S101
        position = {column.name: index for index, column in enumerate(self.mapping.columns)}
        equal = []
        for name in self._step.skip_existing.columns:
            if name not in position:
                raise MigrationError(
                    "ColumnMissing", f"skipExisting.columns: {name} is not a mapped column", retry="Never"
                )
            equal.append(f"t.{identifier(name)} = p.c{position[name]}")
        conditions = [*where, f"NOT {self.is_known(self.row_key())}"]
        key = self.selected_key("p")
        ours = f"CASE WHEN {self.is_ours('t')} THEN 1 ELSE 0 END = 0"
        rows = self.mapping.select(conditions)
        return (
            f"INSERT INTO {identifier(self.existing_table)} (k) SELECT {key} FROM ({rows}) AS p "
            f"WHERE p.reason IS NULL AND EXISTS (SELECT 1 FROM {self._target} t WHERE {' AND '.join(equal)} AND {ours})"
        )

    def count_existing(self, *, from_start: bool) -> str:
        """Return the query for the rows of a range that were already there."""
        conditions = [*self.in_range(from_start=from_start), self.is_known(self.row_key())]
        table = self.mapping.source.relation
        return f"SELECT count(*) FROM {table} AS source WHERE {' AND '.join(conditions)}"

    def insert_rejects(self, *, from_start: bool, check_existing: bool) -> str:
        """Return the statement that keeps the rows of a range that cannot be converted.

        Further parameters after the range's: migration, revision, step, time.
        """
        conditions = self.in_range(from_start=from_start)
        if check_existing:
            conditions.append(f"NOT {self.is_known(self.row_key())}")
        first = (1 if from_start else 2) * len(self._key) + 1
        migration, revision, step, at = (self._dialect.parameter(first + index) for index in range(4))
        when = f"CAST({at} AS timestamp)" if self._dialect.name == "postgresql" else at
        key = self.selected_key("p")
        return (
            f"INSERT INTO {REJECTS_TABLE} (migration, revision, step, row_key, row_values, reason, rejected_at) "
            f"SELECT {migration}, CAST({revision} AS INTEGER), {step}, {key}, p.row_values, p.reason, {when} "
            f"FROM ({self.mapping.select(conditions, with_row=True)}) AS p WHERE p.reason IS NOT NULL"
        )

    def rejected_row(self, *, from_start: bool) -> str:
        """Return the query for the key and the values of the rows of a range, whatever they hold."""
        row = self._dialect.row_as_json("source", tuple(self.mapping.source.columns.values()))
        conditions = self.in_range(from_start=from_start)
        table = self.mapping.source.relation
        return f"SELECT {self.row_key()}, {row} FROM {table} AS source WHERE {' AND '.join(conditions)}"


class Copier:
    """Copies one table, batch by batch."""

    def __init__(self, session: Session, ledger: Ledger, *, name: str, step: Consolidate, statements: CopyStatements):
        self._session = session
        self._ledger = ledger
        self._name = name
        self._step = step
        self._sql = statements

    async def prepare(self, *, started_at: datetime) -> StepRecord:
        """Note what the step starts from: its upper bound, what is already there, what names stand for.

        Runs in the caller's transaction, in which the ledger enters the step.
        """
        for snapshot in self._sql.mapping.snapshots:
            await self._session.execute(f"DROP TABLE IF EXISTS {identifier(snapshot.name)}")
            await self._session.execute(snapshot.create_sql())
            await self._session.execute(snapshot.index_sql())
            await self._session.execute(f"ANALYZE {identifier(snapshot.name)}")
        upper = await self._last_key()
        await self._ledger.begin_step(
            self._name,
            upper=upper,
            rows_total=await self._total(upper),
            existing_known=await self._note_existing(),
            started_at=started_at,
        )
        record = await self._ledger.step(self._name)
        assert record is not None  # noqa: S101 # It was just entered in this transaction.
        return record

    async def _last_key(self) -> Key | None:
        last = await self._session.row(self._sql.last_key())
        return tuple(last) if last is not None else None

    async def _total(self, upper: Key | None) -> int:
        return int(await self._session.scalar(self._sql.total()))

    async def _note_existing(self) -> int:
        table = identifier(self._sql.existing_table)
        await self._session.execute(f"DROP TABLE IF EXISTS {table}")
        await self._session.execute(self._sql.create_existing())
        known = int(await self._session.scalar(f"SELECT count(*) FROM {table}"))
        if known == 0 and self._step.skip_existing is None:
            await self._session.execute(f"DROP TABLE {table}")
            return 0
        await self._session.execute(f"CREATE UNIQUE INDEX {identifier(self._sql.existing_table + '_k')} ON {table} (k)")
        await self._session.execute(f"ANALYZE {table}")
        return known

    def checks_existing(self, record: StepRecord) -> bool:
        """Whether there is a table of rows that were already there."""
        return record.existing_known > 0 or self._step.skip_existing is not None

    async def batch(self, record: StepRecord, *, size: int) -> BatchResult | None:
        """Copy the next range in one transaction. None: there is no row left.

        Raises RowErrorInBatch where a row cannot be written, MovedElsewhereError where another worker was faster.
        """
        async with self._session.transaction():
            return await self.batch_in_transaction(record, size=size)

    async def batch_in_transaction(self, record: StepRecord, *, size: int) -> BatchResult | None:
        """Copy the next range in the caller's transaction."""
        if record.upper is None:
            return None
        began = time.monotonic()
        before: Sequence[str] = record.cursor or ()
        found = await self._next_range(record, size=size)
        if found is None:
            return None
        *last, rows, wanted = found
        cursor: Key = tuple(last)
        try:
            counts = await self._account(record, (*before, *cursor), wanted=int(wanted))
        except Exception as error:
            if is_row_error(error):
                raise RowErrorInBatch(int(rows), error) from error
            raise
        return await self._commit(record, cursor=cursor, counts=counts, rows=int(rows), began=began)

    async def _next_range(self, record: StepRecord, *, size: int) -> Any:
        """Return the last key (its parts), the rows and the wanted rows of the next range, if a row is left."""
        query = self._sql.next_range(from_start=record.cursor is None)
        return await self._session.row(query, *(record.cursor or ()), *(record.upper or ()), str(size))

    async def _commit(
        self, record: StepRecord, *, cursor: Key, counts: BatchCounts, rows: int, began: float
    ) -> BatchResult:
        milliseconds = round((time.monotonic() - began) * 1000)
        if not await self._ledger.advance(record, cursor=cursor, counts=counts, milliseconds=milliseconds):
            raise MovedElsewhereError
        return BatchResult(cursor=cursor, counts=counts, rows=rows, milliseconds=milliseconds)

    async def _account(self, record: StepRecord, bounds: Key, *, wanted: int) -> BatchCounts:
        """Copy, keep or count each row of the range."""
        from_start = record.cursor is None
        check = self.checks_existing(record)
        if self._step.skip_existing is not None:
            await self._session.execute(self._sql.note_existing(from_start=from_start), *bounds)
        copied = await self._session.execute(self._sql.insert(from_start=from_start, check_existing=check), *bounds)
        existing = rejected = 0
        if copied < wanted:
            if check:
                existing = int(await self._session.scalar(self._sql.count_existing(from_start=from_start), *bounds))
            statement = self._sql.insert_rejects(from_start=from_start, check_existing=check)
            rejected = await self._session.execute(statement, *bounds, *self._reject_parameters())
        if copied + existing + rejected != wanted:
            raise MigrationError(
                "CountMismatch",
                f"a range of {wanted} rows gave {copied} copied, {existing} already there and {rejected} rejected",
                retry="Soon",
                key=", ".join(bounds[-len(self._step.key) :]),
            )
        return BatchCounts(copied=copied, existing=existing, rejected=rejected)

    def _reject_parameters(self) -> tuple[str, ...]:
        owner = self._ledger.owner
        at = utc_now().isoformat(sep=" ", timespec="microseconds")
        return owner.migration, str(owner.revision), self._name, at

    async def reject_next(self, record: StepRecord, cause: BaseException) -> BatchResult | None:
        """Keep the one next row as rejected: the database refused it, for the cause that is given."""
        assert record.upper is not None  # noqa: S101 # A row failed, so there is one.
        began = time.monotonic()
        from_start = record.cursor is None
        before: Sequence[str] = record.cursor or ()
        async with self._session.transaction():
            found = await self._next_range(record, size=1)
            if found is None:
                return None
            cursor: Key = tuple(found[:-2])
            refused = await self._session.row(self._sql.rejected_row(from_start=from_start), *before, *cursor)
            counts = BatchCounts()
            if refused is not None:
                state = sql_state(cause)
                reason = f"{server_message(cause)} ({state})" if state else server_message(cause)
                await self._ledger.reject(self._name, key=refused[0], values=refused[1], reason=reason[:1024])
                counts = BatchCounts(rejected=1)
            return await self._commit(record, cursor=cursor, counts=counts, rows=1, began=began)


def shown_key(key: str) -> str:
    """Return a key's text for people."""
    return key.replace(KEY_SEPARATOR, ", ")
