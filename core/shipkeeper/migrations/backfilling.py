"""Backfilling: setting columns of the rows that need it, in batches, while the application goes on writing.

A batch is the next rows, by key, that the condition selects, and one transaction: update them, move the ledger's
cursor. It runs in READ COMMITTED, so that a row which somebody changed meanwhile is judged again as it is now, instead
of failing the whole batch. A row that cannot be set, or that the condition still selects after it was, is found by
splitting its batch and kept as rejected, unchanged. When no row is left, the condition is asked of all rows once more.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from shipkeeper.resources.migrationjob import Locks
from shipkeeper.resources.migrationjob_status import Difference, StepVerification
from shipkeeper.resources.migrationsteps import Backfill
from shipkeeper.resources.schedule import milliseconds

from .catalog import Table, quoted_name, require_table
from .copying import BatchResult, MovedElsewhereError, RowErrorInBatch, shown_key
from .database import Session
from .dialect import Dialect, SqlValue, identifier, literal
from .errors import MigrationError, explain_at, is_row_error, server_message, sql_state
from .ledger import REJECTS_TABLE, BatchCounts, Key, Ledger, Owner, StepRecord, utc_now
from .preparation import dialect_of, refuse_key

MOST_PASSES: Final = 5
"""Passes over the table before the step gives up on writers that keep adding rows which need it."""
_MOST_DIFFERENCES: Final = 10


class StillSelectedError(Exception):
    """The condition selects a row after its columns were set, so that the step could never end."""

    def __init__(self) -> None:
        super().__init__("backfill.where still selects the row after its columns were set")


class BackfillStatements:
    """The SQL of one backfill. Columns are qualified by the table's own name, as in the user's expressions."""

    def __init__(self, step: Backfill, *, table: Table, dialect: Dialect, owner: Owner, name: str) -> None:
        self._step = step
        self._table = table
        self._dialect = dialect
        self._owner = owner
        self._name = name
        self._from = quoted_name(table.name)
        self._key_columns = [table.columns[column] for column in step.key]
        self._key = [f"{self._from}.{identifier(column)}" for column in step.key]

    def _compare(self, operator: str, first: int) -> SqlValue:
        bound = [self._dialect.key_parameter(first + index, column) for index, column in enumerate(self._key_columns)]
        if len(bound) == 1:
            return f"{self._key[0]} {operator} {bound[0]}"
        return f"({', '.join(self._key)}) {operator} ({', '.join(bound)})"

    def _row_key(self) -> SqlValue:
        return self._dialect.joined_key([self._dialect.as_text(column) for column in self._key])

    def _wanted(self, *, some_rejected: bool) -> SqlValue:
        """Return the condition that a row needs the backfill. A rejected row needs a person first."""
        if not some_rejected:
            return f"({self._step.where})"
        return (
            f"({self._step.where}) AND NOT EXISTS (SELECT 1 FROM {REJECTS_TABLE} x WHERE "
            f"x.migration = {literal(self._owner.migration)} AND x.revision = {self._owner.revision} "
            f"AND x.step = {literal(self._name)} AND x.row_key = {self._row_key()})"
        )

    def _range(self, *, from_start: bool, some_rejected: bool) -> str:
        """Return the conditions of a range. Parameters: the key before it (unless from the start), its last key."""
        after = [] if from_start else [self._compare(">", 1)]
        up_to = self._compare("<=", 1 if from_start else len(self._key) + 1)
        return " AND ".join([*after, up_to, self._wanted(some_rejected=some_rejected)])

    def explain(self) -> str:
        """Return the statement that has the database check names and types, and changes nothing."""
        return f"EXPLAIN UPDATE {self._from} SET {self._assignments()} WHERE ({self._step.where})"

    def _assignments(self) -> str:
        return ", ".join(f"{identifier(each.name)} = ({each.expression})" for each in self._step.assignments)

    def total(self) -> str:
        """Return the query for the number of rows that need it."""
        return f"SELECT count(*) FROM {self._from} WHERE ({self._step.where})"

    def last_key(self) -> str:
        """Return the query for the highest key."""
        order = ", ".join(f"{column} DESC" for column in self._key)
        texts = ", ".join(self._dialect.as_text(column) for column in self._key)
        return f"SELECT {texts} FROM {self._from} ORDER BY {order} LIMIT 1"

    def next_range(self, *, from_start: bool, some_rejected: bool) -> str:
        """Return the query for the last key and the number of the next rows that need it.

        Parameters: the key before (unless from the start), the upper bound, the number of rows.
        """
        width = len(self._key)
        limit = f"CAST({self._dialect.parameter((1 if from_start else 2) * width + 1)} AS INTEGER)"
        names = [f"r{index}" for index in range(width)]
        fields = ", ".join(f"{column} AS {name}" for column, name in zip(self._key, names, strict=True))
        rows = (
            f"SELECT {fields} FROM {self._from} WHERE "
            f"{self._range(from_start=from_start, some_rejected=some_rejected)} "
            f"ORDER BY {', '.join(self._key)} LIMIT {limit}"
        )
        last = f"SELECT {', '.join(names)} FROM r ORDER BY {', '.join(f'{name} DESC' for name in names)} LIMIT 1"
        texts = ", ".join(self._dialect.as_text(f"last.{name}") for name in names)
        return f"WITH r AS ({rows}) SELECT {texts}, (SELECT count(*) FROM r) FROM ({last}) AS last"

    def update(self, *, from_start: bool, some_rejected: bool) -> str:
        """Return the statement that sets the columns of a range."""
        where = self._range(from_start=from_start, some_rejected=some_rejected)
        return f"UPDATE {self._from} SET {self._assignments()} WHERE {where}"

    def update_counted(self, *, from_start: bool, some_rejected: bool) -> str:
        """Return `update` as a query for the rows changed and those of them that are still selected (PostgreSQL)."""
        update = self.update(from_start=from_start, some_rejected=some_rejected)
        still = f"CASE WHEN ({self._step.where}) THEN 1 ELSE 0 END"
        return (
            f"WITH changed AS ({update} RETURNING {still} AS still) "
            "SELECT count(*), coalesce(sum(still), 0) FROM changed"
        )

    def selected(self, *, from_start: bool, some_rejected: bool) -> str:
        """Return the query for the number of rows of a range that need it."""
        where = self._range(from_start=from_start, some_rejected=some_rejected)
        return f"SELECT count(*) FROM {self._from} WHERE {where}"

    def next_row(self, *, from_start: bool, some_rejected: bool) -> str:
        """Return the query for the text of the key and the values of the rows of a range."""
        row = self._dialect.row_as_json(self._from, tuple(self._table.columns.values()))
        where = self._range(from_start=from_start, some_rejected=some_rejected)
        return f"SELECT {self._row_key()}, {row} FROM {self._from} WHERE {where}"

    def check(self, *, some_rejected: bool) -> str:
        """Return the query for all rows up to the upper bound and those of them that need it."""
        still = f"CASE WHEN {self._wanted(some_rejected=some_rejected)} THEN 1 ELSE 0 END"
        return f"SELECT count(*), coalesce(sum({still}), 0) FROM {self._from} WHERE {self._compare('<=', 1)}"

    def remaining_keys(self, *, some_rejected: bool) -> str:
        """Return the query for the first keys up to the upper bound that need it."""
        where = self._range(from_start=True, some_rejected=some_rejected)
        order = ", ".join(self._key)
        return f"SELECT {self._row_key()} FROM {self._from} WHERE {where} ORDER BY {order} LIMIT {_MOST_DIFFERENCES}"


class Backfiller:
    """Sets the columns of one table, batch by batch."""

    def __init__(
        self, session: Session, ledger: Ledger, *, name: str, statements: BackfillStatements, lock_milliseconds: int
    ) -> None:
        self._session = session
        self._ledger = ledger
        self._name = name
        self._sql = statements
        self._lock_milliseconds = lock_milliseconds

    async def prepare(self) -> StepRecord:
        """Check the statement and enter the step with its upper bound and its rows, in the caller's transaction."""
        try:
            await self._session.rows(self._sql.explain())
        except Exception as error:
            if (failure := explain_at(error, f"step {self._name}, backfill")) is None:
                raise
            raise failure from error
        last = await self._session.row(self._sql.last_key())
        await self._ledger.begin_step(
            self._name,
            upper=tuple(last) if last is not None else None,
            rows_total=await self._session.scalar(self._sql.total()),
            existing_known=0,
            started_at=utc_now(),
        )
        record = await self._ledger.step(self._name)
        assert record is not None  # noqa: S101 # It was just entered in this transaction.
        return record

    async def batch(self, record: StepRecord, *, size: int) -> BatchResult | None:
        """Set the columns of the next rows in one transaction. None: no row up to the upper bound needs it.

        Raises RowErrorInBatch where a row cannot be set, MovedElsewhereError where another worker was faster.
        """
        async with self._session.transaction(isolation="READ COMMITTED"):
            return await self.batch_in_transaction(record, size=size)

    async def batch_in_transaction(self, record: StepRecord, *, size: int) -> BatchResult | None:
        """Set the columns of the next rows in the caller's transaction."""
        if record.upper is None:
            return None
        began = time.monotonic()
        if not self._session.is_sqlite:
            await self._session.execute(f"SET LOCAL lock_timeout = {self._lock_milliseconds}")
        found = await self._next_range(record, size=size)
        if found is None:
            return None
        cursor, rows = found
        try:
            changed, still = await self._update(record, cursor)
        except Exception as error:
            if is_row_error(error):
                raise RowErrorInBatch(rows, error) from error
            raise
        if still:
            raise RowErrorInBatch(rows, StillSelectedError())
        return await self._commit(record, cursor=cursor, counts=BatchCounts(copied=changed), rows=rows, began=began)

    async def _next_range(self, record: StepRecord, *, size: int) -> tuple[Key, int] | None:
        assert record.upper is not None  # noqa: S101 # The callers looked.
        query = self._sql.next_range(from_start=record.cursor is None, some_rejected=record.rows_rejected > 0)
        found = await self._session.row(query, *(record.cursor or ()), *record.upper, str(size))
        return (tuple(found[:-1]), int(found[-1])) if found is not None else None

    async def _update(self, record: StepRecord, cursor: Key) -> tuple[int, int]:
        """Set the columns of the rows up to the key; return how many, and how many of them are still selected."""
        bounds: Sequence[str] = (*(record.cursor or ()), *cursor)
        from_start, some_rejected = record.cursor is None, record.rows_rejected > 0
        if not self._session.is_sqlite:
            query = self._sql.update_counted(from_start=from_start, some_rejected=some_rejected)
            changed, still = await self._session.row(query, *bounds)
            return int(changed), int(still)
        # Nobody else writes while this transaction has the file's write lock, so counting afterwards is exact.
        statement = self._sql.update(from_start=from_start, some_rejected=some_rejected)
        changed = await self._session.execute(statement, *bounds)
        still = await self._session.scalar(
            self._sql.selected(from_start=from_start, some_rejected=some_rejected), *bounds
        )
        return changed, int(still)

    async def _commit(
        self, record: StepRecord, *, cursor: Key, counts: BatchCounts, rows: int, began: float
    ) -> BatchResult:
        took = round((time.monotonic() - began) * 1000)
        if not await self._ledger.advance(record, cursor=cursor, counts=counts, milliseconds=took):
            raise MovedElsewhereError
        return BatchResult(cursor=cursor, counts=counts, rows=rows, milliseconds=took)

    async def reject_next(self, record: StepRecord, cause: BaseException) -> BatchResult | None:
        """Keep the one next row as rejected, unchanged, for the cause that is given."""
        began = time.monotonic()
        async with self._session.transaction():
            found = await self._next_range(record, size=1)
            if found is None:
                return None
            cursor, _ = found
            query = self._sql.next_row(from_start=record.cursor is None, some_rejected=record.rows_rejected > 0)
            key, values = await self._session.row(query, *(record.cursor or ()), *cursor)
            state = sql_state(cause)
            reason = f"{server_message(cause)} ({state})" if state else server_message(cause)
            await self._ledger.reject(self._name, key=key, values=values, reason=reason[:1024])
            return await self._commit(record, cursor=cursor, counts=BatchCounts(rejected=1), rows=1, began=began)

    async def check(self, record: StepRecord) -> StepVerification:
        """Ask the condition of all rows up to the upper bound, in the caller's transaction."""
        began = time.monotonic()
        if record.upper is None:
            return StepVerification(result="Equal")
        some_rejected = record.rows_rejected > 0
        rows, still = await self._session.row(self._sql.check(some_rejected=some_rejected), *record.upper)
        keys: Sequence[Any] = ()
        if still:
            keys = await self._session.rows(self._sql.remaining_keys(some_rejected=some_rejected), *record.upper)
        return StepVerification(
            result="Different" if still else "Equal",
            ranges=1,
            rows=int(rows),
            different_ranges=1 if still else 0,
            differences=tuple(
                Difference(range="rows that where selects", key=shown_key(key)[:256], kind="Unset") for (key,) in keys
            ),
            milliseconds=round((time.monotonic() - began) * 1000),
        )

    async def verify(self) -> StepVerification:
        """Check, and keep in the ledger what was found."""
        async with self._session.transaction():
            record = await self._ledger.step(self._name)
            assert record is not None  # noqa: S101 # The step has begun.
            found = await self.check(record)
            await self._keep(found)
        return found

    async def _keep(self, found: StepVerification) -> None:
        await self._ledger.keep_verification(self._name, found.model_dump_json(by_alias=True, exclude_none=True))

    async def conclude(self, *, may_go_on: bool) -> StepVerification:
        """Check, and mark the step done where no row needs it any more; else begin another pass, if it may go on.

        One transaction: what was found and what follows from it stand together.
        """
        async with self._session.transaction():
            record = await self._ledger.step(self._name)
            assert record is not None  # noqa: S101 # Its batches were run.
            found = await self.check(record)
            if found.result == "Equal":
                await self._ledger.settle_step(record)
                await self._ledger.finish_step(self._name)
            else:
                selected = self._sql.selected(from_start=True, some_rejected=record.rows_rejected > 0)
                further = int(await self._session.scalar(selected, *(record.upper or ())))
                await self._ledger.rewind_step(record, further=further)
            if found.result == "Equal" or not may_go_on:
                await self._keep(found)
        return found


@dataclass(frozen=True, kw_only=True)
class Backfilling:
    """A backfill that is ready to run."""

    name: str
    step: Backfill
    statements: BackfillStatements
    copier: Backfiller

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that batches read or write."""
        return (self.step.table,)


async def prepare_backfill(session: Session, ledger: Ledger, *, name: str, step: Backfill, locks: Locks) -> Backfilling:
    """Read the table and make the statements, in the caller's transaction.

    Raises MigrationError naming what is missing: the table, a column, a unique key.
    """
    where = f"step {name}"
    table = await require_table(session, step.table, sqlite=session.is_sqlite, used_by=where)
    refuse_key(step.key, table, field="backfill.key")
    for each in step.assignments:
        table.column(each.name, used_by=f"{where}, assignments")
    statements = BackfillStatements(step, table=table, dialect=dialect_of(session), owner=ledger.owner, name=name)
    copier = Backfiller(
        session, ledger, name=name, statements=statements, lock_milliseconds=milliseconds(locks.table_timeout)
    )
    return Backfilling(name=name, step=step, statements=statements, copier=copier)


def rows_remain(name: str, found: StepVerification) -> MigrationError:
    """Return the failure of a backfill whose condition still selects rows."""
    keys = ", ".join(each.key for each in found.differences[:3])
    return MigrationError(
        "BackfillRowsRemain",
        f"step {name}: rows that backfill.where selects keep coming (first keys: {keys}): let the application set "
        "the columns itself, or stop what writes such rows; then it goes on",
        retry="WhenMended",
        key=found.differences[0].key if found.differences else None,
    )
