"""The step `sql`: one statement behind a guard, run exactly once.

Guard, statement, guard again and the ledger's entry are one transaction: a crash leaves all of it or nothing, and
whoever comes second finds the entry. A statement that cannot run in a transaction is refused, because what it did
before a crash could not be known.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from shipkeeper.resources.migrationjob import Locks
from shipkeeper.resources.migrationsteps import Sql, Step
from shipkeeper.resources.schedule import milliseconds

from .database import Session
from .errors import MigrationError, explain_at, server_message, sql_state
from .ledger import Ledger, StepRecord
from .sqltext import SqlText, read_guard, read_statement, require_transactional

_LOCK_TIMEOUT: Final = "55P03"
_CANCELED: Final = "57014"
_IN_TRANSACTION: Final = "25001"
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 10.0


class GuardedStatement:
    """A statement and its guard, read and found fit to run."""

    def __init__(self, session: Session, *, name: str, step: Sql) -> None:
        """Raises MigrationError (StatementRefused) for what cannot be run exactly once."""
        self._session = session
        self._name = name
        self._step = step
        where = f"step {name}, sql"
        self.statement: SqlText = read_statement(step.statement, field=f"{where}.statement")
        require_transactional(self.statement, field=f"{where}.statement")
        self._guard = read_guard(step.unless, field=f"{where}.unless")

    @property
    def destructive(self) -> bool:
        """Whether it may lose data: it is declared so, or it drops, truncates or deletes."""
        return self._step.destructive or self.statement.loses_data

    async def is_done(self) -> bool:
        """Ask the guard, in the caller's transaction."""
        # As a subquery it can only be a query. A comment at its end must not swallow the parenthesis.
        query = f"SELECT 1 FROM (\n{self._guard.text}\n) AS guard LIMIT 1"
        try:
            return await self._session.row(query) is not None
        except Exception as error:
            if (failure := self._explained(error, "unless")) is None:
                raise
            raise failure from error

    async def run(self, ledger: Ledger, *, locks: Locks) -> None:
        """Run it unless it is done, and mark the step done in the same transaction.

        Raises MigrationError where a lock, the time or the statement itself fails; nothing of it stays then.
        """
        for attempt in range(1, locks.attempts + 1):
            try:
                await self._once(ledger, locks)
                return
            except Exception as error:
                if sql_state(error) != _LOCK_TIMEOUT or attempt == locks.attempts:
                    raise
            # Between attempts those who queued behind this statement have their turn.
            await asyncio.sleep(min(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS))

    async def _once(self, ledger: Ledger, locks: Locks) -> None:
        async with self._session.transaction(isolation="READ COMMITTED"), self._bounded(locks):
            # First, so that another worker waits here, and then finds the step done.
            if not await ledger.finish_step(self._name) or await self.is_done():
                return
            try:
                await self._session.execute(self.statement.text)
            except Exception as error:
                if (failure := self._explained(error, "statement")) is None:
                    raise
                raise failure from error
            if not await self.is_done():
                raise MigrationError(
                    "GuardNotSatisfied",
                    f"step {self._name}: after the statement sql.unless still gives no row, so it was rolled back: "
                    "correct unless, or the statement",
                    retry="Never",
                )

    @asynccontextmanager
    async def _bounded(self, locks: Locks) -> AsyncIterator[None]:
        """Bound the wait for locks and the duration of each statement of the transaction."""
        limit = milliseconds(self._step.timeout)
        if not self._session.is_sqlite:
            await self._session.execute(f"SET LOCAL lock_timeout = {milliseconds(locks.table_timeout)}")
            await self._session.execute(f"SET LOCAL statement_timeout = {limit}")
            yield
            return
        raw = await self._session.connection.get_raw_connection()
        watch = asyncio.ensure_future(_interrupt_after(raw.driver_connection, limit / 1000))
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    def _explained(self, error: Exception, field: str) -> MigrationError | None:
        """Return the failure with the step's name; None for one that may pass by itself."""
        where = f"step {self._name}, sql.{field}"
        state = sql_state(error)
        if state == _CANCELED or server_message(error) == "interrupted":
            return MigrationError(
                "StatementTimeout",
                f"{where}: {server_message(error)}, and it was rolled back: raise sql.timeout ({self._step.timeout}), "
                "or do it in smaller parts (backfill)",
                retry="WhenMended",
                sql_state=state,
            )
        if state == _IN_TRANSACTION:
            return MigrationError(
                "StatementRefused", f"{where}: {server_message(error)}", retry="Never", sql_state=state
            )
        return explain_at(error, where)


async def _interrupt_after(connection: Any, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await connection.interrupt()


def require_verified(name: str, before: tuple[Step, ...], records: Mapping[str, StepRecord]) -> None:
    """Raise MigrationError (NotVerified) unless each step before that moves rows is done and verified."""
    for step in before:
        if step.consolidate is None and step.backfill is None:
            continue
        record = records.get(step.name)
        if record is None or not record.is_proven:
            raise MigrationError(
                "NotVerified", f"step {name} may lose data: it runs only after {step.name} is verified", retry="Never"
            )
