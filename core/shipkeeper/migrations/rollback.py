"""Undoing a consolidation: exactly the rows that it wrote are removed from the target, in batches, as they were copied.

First, in one transaction and before anything is removed, the rows are listed: those that carry the identity, were not
there before and were not rejected. Each must be what the mapping makes of its source row still, and nothing may
reference it; otherwise the key is named and nothing is removed. Then batches remove what the list says, each row only
if its content is still the listed one.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationjob_status import Plan, PlannedStep
from shipkeeper.resources.migrationsteps import Step

from .addresses import Addresses
from .catalog import quoted_name
from .copying import MovedElsewhereError, shown_key
from .database import Session
from .dialect import SqlValue, identifier
from .errors import MigrationError, Retry
from .journal import Journal
from .ledger import Ledger, StepRecord
from .preparation import Consolidation
from .references import Reference, references_to
from .verification import Verifier

_SHOWN: Final = 10


@dataclass(frozen=True)
class RemovedBatch:
    """A committed batch."""

    listed: int
    """Rows of the list that it dealt with."""
    removed: int
    """Rows that it removed; the others had been removed by somebody else."""


class RollBack:
    """Removes what one consolidation wrote."""

    def __init__(
        self, session: Session, ledger: Ledger, journal: Journal, ready: Consolidation, verifier: Verifier
    ) -> None:
        self._session = session
        self._ledger = ledger
        self._journal = journal
        self._ready = ready
        self._verifier = verifier
        self._sql = ready.statements
        self._addresses = Addresses(session.is_sqlite)
        self._target = quoted_name(ready.step.target)
        self._list = identifier(f"{ledger.owner.table_prefix(ready.name)}_undo")

    async def begin(self) -> None:
        """List the rows and look at each of them. A rollback that goes on lists anew what is still there.

        Raises MigrationError (RowChanged, RowDoubled, SourceRowGone, RowReferenced) where one must not be removed.
        """
        async with self._session.transaction():
            record = await self._record()
            await self._list_rows(record)
            await self._refuse_doubled()
            await self._refuse_changed(record)
            for reference in await references_to(self._session, self._ready.step.target):
                await self._refuse_referenced(reference, "1 = 1")
            if await self._journal.entry(self._ready.name, "Rollback") is None:
                await self._journal.begin(self._ready.name, "Rollback")
            else:
                await self._journal.rewind(self._ready.name, "Rollback")

    async def batch(self, *, size: int) -> RemovedBatch | None:
        """Remove the next rows of the list in one transaction. None: there are no more.

        Raises MigrationError (RowMoved) where a row stands elsewhere now, and MovedElsewhereError where another worker
        was faster.
        """
        async with self._session.transaction():
            action = await self._journal.entry(self._ready.name, "Rollback")
            assert action is not None  # noqa: S101 # It was begun before.
            chosen = f"u.n > {int(action.cursor or 0)} AND u.n <= {int(action.cursor or 0) + size}"
            last, listed = await self._session.row(f"SELECT max(u.n), count(*) FROM {self._list} AS u WHERE {chosen}")
            if last is None:
                return None
            for reference in await references_to(self._session, self._ready.step.target):
                await self._refuse_referenced(reference, chosen)
            removed = await self._session.execute(self.delete_sql(chosen))
            if removed < listed:
                await self._refuse_moved(chosen)
            if not await self._journal.advance(action, cursor=str(last), rows=removed):
                raise MovedElsewhereError
            return RemovedBatch(listed=int(listed), removed=removed)

    def delete_sql(self, chosen: SqlValue) -> str:
        """Return the statement that removes rows of the list, each only where its content is the listed one."""
        places = f"SELECT u.loc FROM {self._list} AS u WHERE {chosen}"
        same = (
            f"SELECT 1 FROM {self._list} AS u WHERE {chosen} AND {self._addresses.is_at('t', 'u')} "
            f"AND u.digest = {self._digest_of('t')}"
        )
        return f"DELETE FROM {self._target} AS t WHERE {self._addresses.is_among('t', places)} AND EXISTS ({same})"

    async def finish(self) -> None:
        """Let go of what the step kept for itself, and mark its rollback finished."""
        async with self._session.transaction():
            tables = [self._list, identifier(self._sql.existing_table)]
            tables += [identifier(snapshot.name) for snapshot in self._sql.mapping.snapshots]
            for table in tables:
                await self._session.execute(f"DROP TABLE IF EXISTS {table}")
            await self._journal.finish(self._ready.name, "Rollback")

    async def _record(self) -> StepRecord:
        record = await self._ledger.step(self._ready.name)
        assert record is not None  # noqa: S101 # Only a step that has begun is rolled back.
        return record

    # The list.

    async def _list_rows(self, record: StepRecord) -> None:
        """Number the rows that the copy wrote by where they stand, so that a batch reads few pages."""
        address = self._addresses.columns("t")
        origins = self._sql.origins(further=[f"{self._digest_of('t')} AS digest", *address])
        key = self._sql.origin_key("o")
        conditions = [f"NOT {self._verifier.is_rejected(key)}"] if record.rows_rejected else []
        if self._ready.copier.checks_existing(record):
            conditions.append(f"NOT {self._sql.is_known(key)}")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        await self._session.execute(f"DROP TABLE IF EXISTS {self._list}")
        await self._session.execute(
            f"CREATE TABLE {self._list} AS SELECT row_number() OVER (ORDER BY o.tab, o.loc) AS n, {key} AS k, "
            f"o.digest AS digest, o.tab AS tab, o.loc AS loc FROM ({origins}) AS o{where}"
        )
        if record.cursor is not None and record.cursor != record.upper:
            # The copy did not come so far: what carries these keys was written by somebody else.
            source = quoted_name(self._ready.step.source)
            beyond = f"SELECT {self._sql.row_key()} FROM {source} AS source WHERE {self._sql.after(1)}"
            await self._session.execute(f"DELETE FROM {self._list} WHERE k IN ({beyond})", *record.cursor)
        name = self._list.strip('"')
        await self._session.execute(f"CREATE UNIQUE INDEX {identifier(name + '_n')} ON {self._list} (n)")
        if self._session.is_sqlite:  # PostgreSQL goes to a row by its place, and needs no index for it.
            await self._session.execute(f"CREATE INDEX {identifier(name + '_loc')} ON {self._list} (loc)")
        await self._session.execute(f"ANALYZE {self._list}")

    def _digest_of(self, alias: str) -> SqlValue:
        columns = self._sql.mapping.columns
        values = [f"{alias}.{identifier(column.name)}" for column in columns]
        return self._sql.mapping.dialect.digest(values, columns)

    # What must not be removed.

    async def _refuse_doubled(self) -> None:
        keys = await self._session.rows(f"SELECT u.k FROM {self._list} AS u GROUP BY u.k HAVING count(*) > 1")
        self._refuse(
            "RowDoubled",
            [key for (key,) in keys],
            "it stands there more than once: remove the one that the migration did not write",
        )

    async def _refuse_changed(self, record: StepRecord) -> None:
        """Compare the list with what the mapping makes of the source."""
        mapping = self._sql.mapping
        digest = mapping.dialect.digest([f"p.c{index}" for index in range(len(mapping.columns))], mapping.columns)
        where = [self._sql.filter()]
        parameters: Sequence[str] = ()
        if record.cursor is not None:
            where.append(self._sql.up_to(1))
            parameters = record.cursor
        source = (
            f"SELECT {self._sql.selected_key('p')} AS k, {digest} AS digest "
            f"FROM ({mapping.select(where, for_digest=True)}) AS p"
        )
        differs = (
            f"SELECT u.k, CASE WHEN s.k IS NULL THEN 1 ELSE 0 END FROM {self._list} AS u "
            f"LEFT JOIN ({source}) AS s ON s.k = u.k WHERE s.digest IS NULL OR s.digest <> u.digest "
            f"ORDER BY u.n LIMIT {_SHOWN}"
        )
        found = await self._session.rows(differs, *parameters)
        self._refuse(
            "SourceRowGone",
            [key for key, gone in found if gone],
            f"its row in {self._ready.step.source} is gone, so that the target holds the only copy: "
            "bring it back, or take the identity out of the target's row to keep it",
        )
        self._refuse(
            "RowChanged",
            [key for key, gone in found if not gone],
            "the row differs from what was copied, since it or its source row was changed: set it back, "
            "or take the identity out of the target's row to keep it",
        )

    async def _refuse_referenced(self, reference: Reference, chosen: str) -> None:
        query = (
            f"SELECT u.k FROM {self._list} AS u JOIN {self._target} AS t ON {self._addresses.is_at('t', 'u')} "
            f"WHERE {chosen} AND {reference.points_at('t')} LIMIT {_SHOWN}"
        )
        keys = [key for (key,) in await self._session.rows(query)]
        self._refuse("RowReferenced", keys, f"{reference} references the row: remove or change that first")

    async def _refuse_moved(self, chosen: str) -> None:
        """Refuse a batch of which a row is there still, but elsewhere or with other content."""
        left = (
            f"SELECT o.k FROM (SELECT {self._sql.origin_key('i')} AS k FROM ({self._sql.origins()}) AS i) AS o "
            f"WHERE o.k IN (SELECT u.k FROM {self._list} AS u WHERE {chosen}) LIMIT {_SHOWN}"
        )
        keys = [key for (key,) in await self._session.rows(left)]
        # The next attempt lists the rows anew, and tells one that was changed from one that only moved.
        self._refuse("RowMoved", keys, "it was written to after the rollback had begun", retry="Soon")

    def _refuse(self, reason: str, keys: Sequence[Any], why: str, *, retry: Retry = "WhenMended") -> None:
        if not keys:
            return
        shown = shown_key(str(keys[0]))
        raise MigrationError(
            reason,
            f"step {self._ready.name}: the row of key {shown} in {self._ready.step.target} cannot be removed: {why}",
            retry=retry,
            key=shown,
        )


def rollback_plan(spec: MigrationJobSpec, records: Mapping[str, StepRecord], *, sqlite: bool) -> Plan:
    """Return the plan of a rollback: what it removes, and what it leaves as it is."""
    steps = tuple(_planned(step, records.get(step.name), sqlite=sqlite) for step in reversed(spec.steps))
    statements = [(step.name, step.sql, step.destructive) for step in steps]
    canonical = json.dumps(["rollback", spec.work(), statements], sort_keys=True)
    return Plan(hash=hashlib.sha256(canonical.encode()).hexdigest()[:16], steps=steps, planned_at=datetime.now(UTC))


def _planned(step: Step, record: StepRecord | None, *, sqlite: bool) -> PlannedStep:
    work = step.consolidate
    if work is None:
        return PlannedStep(name=step.name, action="stays as it is: a rollback removes copied rows only")
    rows = record.rows_copied if record is not None else 0
    identity = " AND ".join(
        f"{part.column}{f' ->> {part.field}' if part.field else ''} = "
        f"{part.constant if part.source is None else f'{work.source}.{part.source}'}"
        for part in work.identity
    )
    return PlannedStep(
        name=step.name,
        action=f"remove the rows that were copied into {work.target}, each only if nobody changed or references it",
        sql=(f"DELETE FROM {quoted_name(work.target)} WHERE {identity}"[:8192],),
        rows=rows,
        destructive=True,
        locks="the file's writers wait for one batch" if sqlite else "ROW EXCLUSIVE: reads and writes go on",
    )
