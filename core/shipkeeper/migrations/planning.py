"""The plan: what each step would do, read from the database as it is, measured with a batch that is rolled back."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationjob_status import Plan, PlannedStep
from shipkeeper.resources.migrationsteps import Consolidate, Step

from .backfilling import prepare_backfill
from .catalog import quoted_name
from .copying import RowErrorInBatch
from .database import Session
from .dropping import drop_sql
from .errors import MigrationError, explain, sql_state
from .guarding import GuardedStatement
from .indexes import create_sql, index_state
from .ledger import Ledger, StepRecord, utc_now
from .preparation import prepare_consolidation, shown_start
from .retiring import is_retired, rename_sql, retired_table

_LONGEST_SQL: Final = 8192
# What is missing now may be what an earlier statement of the same plan creates.
_CREATED_BY_STATEMENTS: Final = ("TableMissing", "ColumnMissing", "KeyNotUnique")
_BUSY: Final = ("40001", "40P01", "55P03")
_WAL: Final = "SELECT CAST(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') AS bigint)"


class Planner:
    """Makes the plan of a migration. Changes nothing: what it tries, it rolls back."""

    def __init__(self, session: Session, ledger: Ledger, spec: MigrationJobSpec) -> None:
        self._session = session
        self._ledger = ledger
        self._spec = spec

    async def plan(self, records: Mapping[str, StepRecord]) -> Plan:
        """Return the plan of all steps; what the ledger knows as done needs its tables no more.

        Raises MigrationError where a step cannot be carried out: a table or column missing, a key not unique, ...
        """
        steps: list[PlannedStep] = []
        statement: str | None = None
        for step in self._spec.steps:
            planned = await self._step_after(statement, step, records.get(step.name))
            steps.append(planned)
            if step.sql is not None and planned.sql:
                statement = step.name
        return Plan(hash=self._hash(steps), steps=tuple(steps), planned_at=datetime.now(UTC))

    async def _step_after(self, statement: str | None, step: Step, record: StepRecord | None) -> PlannedStep:
        """Plan a step that may need what a statement before it is to create, and which nobody can look at yet."""
        try:
            return await self._step(step, record)
        except Exception as error:
            failure = explain(error)
            if statement is None or failure.reason not in _CREATED_BY_STATEMENTS:
                raise
            return PlannedStep(
                name=step.name,
                action=f"looked at when step {statement} has run; before it: {failure.message}"[:1024],
                destructive=step.retire is not None or (step.sql is not None and step.sql.destructive),
            )

    def _hash(self, steps: Sequence[PlannedStep]) -> str:
        """Hash what will be done: rows and sizes change from hour to hour, and are not part of it."""
        statements = [(step.name, step.sql, step.destructive) for step in steps]
        canonical = json.dumps([self._spec.work(), statements], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    async def _step(self, step: Step, record: StepRecord | None) -> PlannedStep:
        if record is not None and record.done:
            return PlannedStep(name=step.name, action="done", rows=record.rows_total or None)
        if step.create_indexes is not None:
            return await self._indexes(step)
        if step.consolidate is not None:
            return await self._consolidate(step, record)
        if step.backfill is not None:
            return await self._backfill(step, record)
        if step.sql is not None:
            return await self._sql(step)
        if step.retire is not None:
            return await self._retire(step)
        raise MigrationError("UnsupportedField", f"step {step.name} has work the engine does not know", retry="Never")

    async def _indexes(self, step: Step) -> PlannedStep:
        assert step.create_indexes is not None  # noqa: S101 # The caller looked.
        statements, actions, tables = [], [], set()
        for index in step.create_indexes.indexes:
            state = await index_state(self._session, index)
            tables.add(index.table)
            if state != "Valid":
                if state != "Missing":
                    concurrently = "" if self._session.is_sqlite else "CONCURRENTLY "
                    statements.append(f'DROP INDEX {concurrently}"{index.name}"')
                statements.append(create_sql(index, sqlite=self._session.is_sqlite))
                actions.append(f"{'create' if state == 'Missing' else 'rebuild'} {index.name}")
        return PlannedStep(
            name=step.name,
            action=(", ".join(actions) or "all indexes are valid")[:1024],
            sql=tuple(statement[:_LONGEST_SQL] for statement in statements[:64]),
            table_bytes=await self._bytes(tables),
            locks="SHARE UPDATE EXCLUSIVE: reads and writes go on"
            if not self._session.is_sqlite
            else "the file's writers wait",
        )

    async def _consolidate(self, step: Step, record: StepRecord | None) -> PlannedStep:
        assert step.consolidate is not None  # noqa: S101 # The caller looked.
        work = step.consolidate
        trial: dict[str, Any] = {}
        async with self._session.rolled_back():
            started_at = record.started_at if record is not None else utc_now()
            ready = await prepare_consolidation(
                self._session, self._ledger, name=step.name, step=work, started_at=started_at
            )
            insert = ready.statements.insert(from_start=False, check_existing=work.skip_existing is not None)
            insert = insert.replace(shown_start(started_at), "<start of the step>")
            rows = record.rows_total - record.rows_done if record is not None else None
            if record is None:
                # The ledger's tables are part of what is tried.
                await self._ledger.create_tables()
                record = await ready.copier.prepare(started_at=started_at)
                rows = record.rows_total
                trial = await self._try(ready.copier.batch_in_transaction, record)
        return PlannedStep(
            name=step.name,
            action=f"copy {work.source}{self._from()} into {work.target} in batches, verify by content",
            sql=(insert[:_LONGEST_SQL],),
            rows=rows,
            table_bytes=await self._bytes_of(work),
            locks="ROW EXCLUSIVE on the target: reads and writes go on"
            if not self._session.is_sqlite
            else "the file's writers wait for one batch",
            **trial,
        )

    async def _backfill(self, step: Step, record: StepRecord | None) -> PlannedStep:
        assert step.backfill is not None  # noqa: S101 # The caller looked.
        work = step.backfill
        trial: dict[str, Any] = {}
        # The trial must not fail for a row that the application changes meanwhile, as no batch will.
        async with self._session.rolled_back(isolation="READ COMMITTED"):
            ready = await prepare_backfill(
                self._session, self._ledger, name=step.name, step=work, locks=self._spec.locks
            )
            update = ready.statements.update(from_start=False, some_rejected=False)
            if record is None:
                await self._ledger.create_tables()
                record = await ready.copier.prepare()
                trial = await self._try(ready.copier.batch_in_transaction, record)
        return PlannedStep(
            name=step.name,
            action=f"set {', '.join(each.name for each in work.assignments)} of {work.table} in batches, "
            "verify that no row needs it any more"[:1024],
            sql=(update[:_LONGEST_SQL],),
            rows=max(record.rows_total - record.rows_done, 0),
            table_bytes=await self._bytes({work.table}),
            locks="ROW EXCLUSIVE on the table: others wait for at most one batch's rows"
            if not self._session.is_sqlite
            else "the file's writers wait for one batch",
            **trial,
        )

    async def _sql(self, step: Step) -> PlannedStep:
        assert step.sql is not None  # noqa: S101 # The caller looked.
        guarded = GuardedStatement(self._session, name=step.name, step=step.sql)
        async with self._session.rolled_back():
            done = await guarded.is_done()
        if done:
            return PlannedStep(name=step.name, action="nothing: unless gives a row")
        return PlannedStep(
            name=step.name,
            action=f"run the statement once, in a transaction, unless this gives a row: {step.sql.unless}"[:1024],
            sql=(step.sql.statement,),
            destructive=guarded.destructive,
            locks=f"those of the statement, for at most {step.sql.timeout}, after at most locks.tableTimeout"
            if not self._session.is_sqlite
            else f"the file's writers wait, for at most {step.sql.timeout}",
        )

    async def _try(self, batch: Any, record: StepRecord) -> dict[str, Any]:
        """Measure one batch in the transaction that is rolled back."""
        before = await self._wal()
        began = time.monotonic()
        try:
            result = await batch(record, size=self._spec.batch.initial_size)
        except RowErrorInBatch:
            return {}  # A row of the first range cannot be written: the copy will find it; there is no rate to tell.
        except Exception as error:
            if sql_state(error) in _BUSY:
                return {}  # Other sessions hold the same rows: the batches will try again, the plan need not.
            raise
        if result is None:
            return {"estimated_seconds": 0}
        seconds = max(time.monotonic() - began, 0.001)
        rate = result.rows / seconds
        measured: dict[str, Any] = {
            "trial_rows_per_second": round(rate),
            "estimated_seconds": round(record.rows_total / rate) if rate else None,
        }
        if before is not None:
            measured["trial_wal_bytes"] = max(((await self._wal()) or before) - before, 0)
        return measured

    async def _wal(self) -> int | None:
        return None if self._session.is_sqlite else int(await self._session.scalar(_WAL))

    async def _retire(self, step: Step) -> PlannedStep:
        assert step.retire is not None  # noqa: S101 # The caller looked.
        retired = await is_retired(await self._session.retiring_session(step.retire.table), step.retire)
        drops = step.retire.action == "Drop"
        if retired and not drops:
            return PlannedStep(name=step.name, action=f"{step.retire.table} is retired already")
        actions = [] if retired else [f"rename {step.retire.table}{self._from()}, after its content is verified"]
        if drops:
            actions.append(f"drop {retired_table(step.retire.table)} when it was kept for {step.retire.retention}")
        statements = ([] if retired else [rename_sql(step.retire)]) + ([drop_sql(step.retire)] if drops else [])
        return PlannedStep(
            name=step.name,
            action="; ".join(actions),
            sql=tuple(statements),
            destructive=True,
            locks="ACCESS EXCLUSIVE for a moment, after at most locks.tableTimeout",
        )

    def _from(self) -> str:
        return " of the source database" if self._session.source is not None else ""

    async def _bytes_of(self, work: Consolidate) -> int | None:
        if self._session.source is None:
            return await self._bytes({work.source, work.target})
        return (await self._bytes({work.target}) or 0) + await self._session.source.table_bytes(work.source)

    async def _bytes(self, tables: set[str]) -> int | None:
        if self._session.is_sqlite:
            return None
        total = 0
        async with self._session.transaction():
            for table in sorted(tables):
                size = "SELECT coalesce(pg_total_relation_size(to_regclass($1)), 0)"
                total += int(await self._session.scalar(size, quoted_name(table)))
        return total
