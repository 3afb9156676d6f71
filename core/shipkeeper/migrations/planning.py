"""The plan: what each step would do, read from the database as it is, measured with a batch that is rolled back."""

import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationjob_status import Plan, PlannedStep
from shipkeeper.resources.migrationsteps import Step

from .catalog import quoted_name
from .copying import RowErrorInBatch
from .database import Session
from .errors import MigrationError
from .indexes import create_sql, index_state
from .ledger import Ledger, StepRecord, utc_now
from .preparation import prepare_consolidation, shown_start
from .retiring import is_retired, rename_sql

_LONGEST_SQL: Final = 8192
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
        steps = tuple([await self._step(step, records.get(step.name)) for step in self._spec.steps])
        return Plan(hash=self._hash(steps), steps=steps, planned_at=datetime.now(UTC))

    def _hash(self, steps: tuple[PlannedStep, ...]) -> str:
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
            action=f"copy {work.source} into {work.target} in batches, verify by content",
            sql=(insert[:_LONGEST_SQL],),
            rows=rows,
            table_bytes=await self._bytes({work.source, work.target}),
            locks="ROW EXCLUSIVE on the target: reads and writes go on"
            if not self._session.is_sqlite
            else "the file's writers wait for one batch",
            **trial,
        )

    async def _try(self, batch: Any, record: StepRecord) -> dict[str, Any]:
        """Measure one batch in the transaction that is rolled back."""
        before = await self._wal()
        began = time.monotonic()
        try:
            result = await batch(record, size=self._spec.batch.initial_size)
        except RowErrorInBatch:
            return {}  # A row of the first range cannot be written: the copy will find it; there is no rate to tell.
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
        if await is_retired(self._session, step.retire):
            return PlannedStep(name=step.name, action=f"{step.retire.table} is retired already")
        return PlannedStep(
            name=step.name,
            action=f"rename {step.retire.table}, after its content is verified",
            sql=(rename_sql(step.retire),),
            destructive=True,
            locks="ACCESS EXCLUSIVE for a moment, after at most locks.tableTimeout",
        )

    async def _bytes(self, tables: set[str]) -> int | None:
        if self._session.is_sqlite:
            return None
        total = 0
        async with self._session.transaction():
            for table in sorted(tables):
                size = "SELECT coalesce(pg_total_relation_size(to_regclass($1)), 0)"
                total += int(await self._session.scalar(size, quoted_name(table)))
        return total
