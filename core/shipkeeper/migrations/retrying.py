"""Rejected rows tried again after a fix: those that convert now are copied and leave the reject table.

A batch is one transaction over a handful of keys, in which each key ends as copied, as already there, as rejected with
its reason of today, or as gone because the source holds it no more. The step's counts move by exactly that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .copying import MovedElsewhereError, RowErrorInBatch
from .database import Session
from .dialect import identifier
from .errors import MigrationError, is_row_error, server_message, sql_state
from .journal import ActionRecord, Journal
from .ledger import Ledger, StepRecord
from .preparation import Consolidation


@dataclass(frozen=True)
class _Now:
    """What a rejected row is today: why it does not convert (null: it does), and its values."""

    reason: str | None
    values: str


class RejectRetry:
    """Tries the rejected rows of one consolidation again."""

    def __init__(self, session: Session, ledger: Ledger, journal: Journal, ready: Consolidation) -> None:
        self._session = session
        self._ledger = ledger
        self._journal = journal
        self._ready = ready
        self._sql = ready.statements

    async def begin(self, number: int) -> None:
        """Enter this try, if it was not entered before.

        Names that stood for nothing, or for several rows, stand from now on for what they do now.
        """
        async with self._session.transaction():
            action = await self._journal.entry(self._ready.name, "Retry")
            if action is not None and action.number >= number:
                return
            for snapshot in self._sql.mapping.snapshots:
                for statement in snapshot.refresh_sql():
                    await self._session.execute(statement)
            await self._journal.begin(self._ready.name, "Retry", number=number)

    async def batch(self, *, size: int) -> int | None:
        """Try the next rejected rows in one transaction and return how many those were. None: there are no more.

        Raises RowErrorInBatch where the database refuses a row, MovedElsewhereError where another worker was faster.
        """
        async with self._session.transaction():
            action, record, keys = await self._next(size)
            if not keys:
                return None
            try:
                there, now = await self._account(record, keys)
            except Exception as error:
                if is_row_error(error):
                    raise RowErrorInBatch(len(keys), error) from error
                raise
            copied = [key for key, row in now.items() if row.reason is None and key not in there]
            existing = [key for key in now if key in there]
            gone = [key for key in keys if key not in now]
            await self._ledger.settle_rejects(
                self._ready.name, keys=(*copied, *existing, *gone), copied=len(copied), existing=len(existing)
            )
            for key, row in now.items():
                if row.reason is not None and key not in there:
                    await self._ledger.explain_reject(self._ready.name, key=key, values=row.values, reason=row.reason)
            await self._advance(action, keys[-1], rows=len(copied))
            return len(keys)

    async def refuse_next(self, cause: BaseException) -> None:
        """Keep the one next row as rejected: the database refused it, for the cause that is given."""
        async with self._session.transaction():
            action, _, keys = await self._next(1)
            if not keys:
                return
            state = sql_state(cause)
            reason = f"{server_message(cause)} ({state})" if state else server_message(cause)
            for key, row in (await self._read(keys)).items():
                await self._ledger.explain_reject(
                    self._ready.name, key=key, values=row.values, reason=(row.reason or reason)[:1024]
                )
            await self._advance(action, keys[-1], rows=0)

    async def _next(self, size: int) -> tuple[ActionRecord, StepRecord, Sequence[str]]:
        action = await self._journal.entry(self._ready.name, "Retry")
        record = await self._ledger.step(self._ready.name)
        assert action is not None  # noqa: S101 # The try was entered before.
        assert record is not None  # noqa: S101 # A row was rejected, so the step has begun.
        return action, record, await self._ledger.rejected_keys(self._ready.name, after=action.cursor, limit=size)

    async def _advance(self, action: ActionRecord, cursor: str, *, rows: int) -> None:
        if not await self._journal.advance(action, cursor=cursor, rows=rows):
            raise MovedElsewhereError

    async def _account(self, record: StepRecord, keys: Sequence[str]) -> tuple[set[str], dict[str, _Now]]:
        """Copy what converts now, and return the keys that are already there and what the source holds."""
        now = await self._read(keys)
        there = await self._already_there(record, [key for key in keys if key in now])
        convertible = [key for key, row in now.items() if row.reason is None and key not in there]
        if convertible:
            condition, parameters = self._sql.key_among(convertible)
            copied = await self._session.execute(self._sql.insert_where([condition, self._sql.filter()]), *parameters)
            if copied != len(convertible):
                raise MigrationError(
                    "CountMismatch",
                    f"{len(convertible)} rejected rows convert now, but {copied} were copied",
                    retry="Soon",
                    key=convertible[0],
                )
        return there, now

    async def _read(self, keys: Sequence[str]) -> dict[str, _Now]:
        condition, parameters = self._sql.key_among(keys)
        rows = self._sql.mapping.select([condition, self._sql.filter()], with_row=True)
        key = self._sql.selected_key("p")
        query = f"SELECT {key}, p.reason, p.row_values FROM ({rows}) AS p"
        return {key: _Now(reason, values) for key, reason, values in await self._session.rows(query, *parameters)}

    async def _already_there(self, record: StepRecord, keys: Sequence[str]) -> set[str]:
        """Return and note the rows that somebody else brought into the target since they were rejected."""
        if not keys:
            return set()
        marks = self._sql.text_parameters(len(keys))
        carried = (
            f"SELECT DISTINCT o.k FROM (SELECT {self._sql.origin_key('i')} AS k "
            f"FROM ({self._sql.origins()}) AS i) AS o WHERE o.k IN ({marks})"
        )
        found = {str(key) for (key,) in await self._session.rows(carried, *keys)}
        if found:
            await self._note(found)
        if self._ready.step.skip_existing is not None:
            condition, parameters = self._sql.key_among(keys)
            await self._session.execute(self._sql.note_existing_where([condition, self._sql.filter()]), *parameters)
        elif not found and record.existing_known == 0:
            return set()
        known = f"SELECT e.k FROM {identifier(self._sql.existing_table)} e WHERE e.k IN ({marks})"
        return {str(key) for (key,) in await self._session.rows(known, *keys)}

    async def _note(self, keys: set[str]) -> None:
        table = identifier(self._sql.existing_table)
        await self._session.execute(f"CREATE TABLE IF NOT EXISTS {table} (k text)")
        await self._session.execute(
            f"CREATE UNIQUE INDEX IF NOT EXISTS {identifier(self._sql.existing_table + '_k')} ON {table} (k)"
        )
        statement = f"INSERT INTO {table} (k) VALUES ({self._sql.text_parameters(1)}) ON CONFLICT (k) DO NOTHING"
        for key in sorted(keys):
            await self._session.execute(statement, key)


async def is_due(journal: Journal, record: StepRecord, *, number: int) -> bool:
    """Whether the rejected rows of the step are to be tried again under this number of the spec, or further tried."""
    if number == 0:
        return False
    action = await journal.entry(record.step, "Retry")
    if action is not None and action.number >= number:
        return action.finished_at is None
    return record.rows_rejected > 0
