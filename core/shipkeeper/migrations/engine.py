"""Running a migration: lock, ledger, plan, steps in order, verification, and a report all the way.

The engine can be stopped and started at any moment, by a signal, a crash or a lost connection: what is done stands in
the ledger, and it goes on from there. A failure that may pass by itself is tried again here a few times before the
worker gives up and leaves it to the Job.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from sqlalchemy.ext.asyncio import AsyncConnection

from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationjob_status import MigrationReport, Phase, Plan, StepVerification
from shipkeeper.resources.migrationsteps import Retire, Step

from .backfilling import MOST_PASSES, Backfilling, prepare_backfill, rows_remain
from .copying import MovedElsewhereError, RowErrorInBatch
from .database import DatabaseUrl, Session, connect, create_engine
from .errors import Interrupted, MigrationError, explain, last_error, sql_state
from .guarding import GuardedStatement, require_verified
from .indexes import IndexBuilder
from .ledger import Ledger, Owner, StepRecord, utc_now
from .locking import SessionLocks
from .planning import Planner
from .preparation import Consolidation, prepare_consolidation
from .reporting import Reporter, ReportSink
from .retiring import is_retired, rename
from .sizing import BatchSizer
from .support import unsupported
from .throttle import Throttle
from .verification import Verifier

_LOG: Final = logging.getLogger(__name__)
_ATTEMPTS: Final = 5
_FIRST_PAUSE_SECONDS: Final = 1.0
_HOLD_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0
_CONFLICTS: Final = ("40001", "40P01", "55P03")


class Migration:
    """One run of one migration against one database."""

    def __init__(
        self, spec: MigrationJobSpec, *, name: str, url: DatabaseUrl, sink: ReportSink, stop: asyncio.Event
    ) -> None:
        """`name` is namespace/name, by which the ledger knows the migration; `stop` asks for an end after the batch."""
        self._spec = spec
        self._owner = Owner(name, spec.revision)
        self._url = url
        self._stop = stop
        self.reporter = Reporter(spec, sink)

    async def verify(self) -> MigrationReport:
        """Compare what was copied once more, and return the report. Changes nothing but what the ledger says of it.

        Raises MigrationError (VerificationFailed) where source and target differ.
        """
        return await self._once("verify")

    async def status(self) -> MigrationReport:
        """Return the report that the ledger gives. Takes no lock and changes nothing."""
        return await self._once("status")

    async def _once(self, what: Literal["verify", "status"]) -> MigrationReport:
        try:
            await self._attempt(what)
        except Exception as error:
            failure = explain(error)
            await self._report_failure(failure, final=True)
            raise failure from None
        return self.reporter.report

    async def run(self) -> Phase:
        """Run until it is complete, planned, waiting for an approval or interrupted, and return which.

        Raises MigrationError for what this process cannot overcome; the report says so as well.
        """
        attempt = 0
        while True:
            rows_before = self._rows_done()
            try:
                return await self._attempt()
            except Interrupted:
                await self.reporter.finished("Interrupted")
                return "Interrupted"
            except Exception as error:
                failure = explain(error)
                if failure.reason == "InternalError":
                    _LOG.error("unexpected failure: %s", failure.message)
                attempt = 1 if self._rows_done() > rows_before else attempt + 1
                final = failure.retry != "Soon" or attempt >= _ATTEMPTS
                await self._report_failure(failure, final=final)
                if final:
                    raise failure from None
                if await self._stopped_within(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)):
                    await self.reporter.finished("Interrupted")
                    return "Interrupted"

    def _rows_done(self) -> int:
        progress = self.reporter.report.progress
        return progress.rows_copied + progress.rows_existing + progress.rows_rejected

    async def _report_failure(self, failure: MigrationError, *, final: bool) -> None:
        shown = last_error(failure, secrets=self._url.secrets())
        _LOG.warning("%s: %s", shown.reason, shown.message)
        await self.reporter.failed(shown, phase="Failed" if final else self.reporter.report.phase)
        if final:
            await self.reporter.flush()

    async def _attempt(self, what: Literal["run", "verify", "status"] = "run") -> Phase:
        if refused := unsupported(self._spec):
            field, advice = refused[0]
            raise MigrationError("UnsupportedField", f"{field} is not supported: {advice}", retry="Never")
        engine = create_engine(self._url, name=f"shipkeeper/{self._owner.migration}")
        try:
            connection = await connect(engine)
            try:
                run = _Run(connection, self._spec, owner=self._owner, stop=self._stop, reporter=self.reporter)
                match what:
                    case "run":
                        return await run.run()
                    case "verify":
                        return await run.verify()
                    case "status":
                        return await run.status()
            finally:
                await _close(connection)
        finally:
            await engine.dispose()

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stop.wait(), timeout=seconds)
        except TimeoutError:
            return False
        return True


async def _close(connection: AsyncConnection) -> None:
    try:
        # A server that is gone never answers a farewell.
        await asyncio.wait_for(connection.close(), timeout=_CLOSE_SECONDS)
    except Exception as error:  # A connection that broke cannot be closed properly; the failure is reported already.
        _LOG.debug("closing the connection: %s", error)


class _Run:
    """One connection's worth of work."""

    def __init__(
        self,
        connection: AsyncConnection,
        spec: MigrationJobSpec,
        *,
        owner: Owner,
        stop: asyncio.Event,
        reporter: Reporter,
    ) -> None:
        self._session = Session(connection)
        self._spec = spec
        self._owner = owner
        self._stop = stop
        self._reporter = reporter
        self._ledger = Ledger(self._session, owner)
        self._locks = SessionLocks(self._session)
        self._sizer = BatchSizer(spec.batch)
        self._rejected_shown = -1

    async def run(self) -> Phase:
        if self._spec.mode == "Apply":
            await self._locks.take(f"shipkeeper {self._owner.migration}", waiting=self._wait_for_lock)
            await self._reporter.lock_taken()
        entry, records = await self._read_ledger()
        if entry is not None and entry.finished_at is not None:
            return await self._tell_complete(entry, records)
        await self._reporter.phase("Planning")
        plan = await self._plan(entry, records)
        if self._spec.mode == "Plan":
            await self._reporter.finished("Planned")
            return "Planned"
        approval = self._spec.approval
        if approval.mode == "Manual" and approval.plan_hash != plan.hash and entry is None:
            await self._reporter.finished("AwaitingApproval")
            return "AwaitingApproval"
        return await self._apply(plan)

    async def status(self) -> Phase:
        """Copy the ledger into the report."""
        entry, records = await self._read_ledger()
        if entry is None:
            await self._reporter.finished("Pending")
            return "Pending"
        if entry.finished_at is not None:
            return await self._tell_complete(entry, records)
        await self._copy_ledger()
        await self._reporter.finished("Interrupted")
        return "Interrupted"

    async def verify(self) -> Phase:
        """Compare every consolidation that was copied."""
        await self._locks.take(f"shipkeeper {self._owner.migration}", waiting=self._wait_for_lock)
        entry, records = await self._read_ledger()
        copied = [step for step in self._spec.steps if step.consolidate is not None and step.name in records]
        filled = [step for step in self._spec.steps if step.backfill is not None and step.name in records]
        if not copied and not filled:
            raise MigrationError(
                "NothingToVerify", "no consolidation or backfill of this revision has begun", retry="Never"
            )
        await self._copy_ledger()
        for step in filled:
            await self._verify_backfill(step)
        for step in copied:
            assert step.consolidate is not None  # noqa: S101 # Chosen so.
            async with self._session.transaction():
                ready = await prepare_consolidation(
                    self._session,
                    self._ledger,
                    name=step.name,
                    step=step.consolidate,
                    started_at=records[step.name].started_at,
                )
            await self._verify(ready)
        phase: Phase = "Complete" if entry.finished_at is not None else "Interrupted"
        await self._reporter.finished(phase, at=entry.finished_at)
        return phase

    async def _wait_for_lock(self, holder: str) -> None:
        if self._stop.is_set():
            raise Interrupted
        await self._reporter.waiting_for_lock(holder)

    async def _read_ledger(self) -> tuple[Any, dict[str, StepRecord]]:
        async with self._session.transaction():
            if not await self._ledger.exists():
                return None, {}
            entry = await self._ledger.run()
            if entry is not None:
                await self._ledger.begin_run(self._spec.work_hash())  # Refuses other work under the same revision.
            return entry, await self._ledger.steps()

    async def _tell_complete(self, entry: Any, records: Mapping[str, StepRecord]) -> Phase:
        """Say again what the ledger knows: nothing is left to do."""
        async with self._session.transaction():
            rejects = await self._ledger.rejects(limit=10)
        if entry.plan is not None:
            await self._reporter.plan(Plan.model_validate_json(entry.plan))
        await self._reporter.ledger(records, rejects=rejects)
        await self._reporter.finished("Complete", at=entry.finished_at)
        return "Complete"

    async def _plan(self, entry: Any, records: Mapping[str, StepRecord]) -> Plan:
        """Make the plan, or take the one that the work began with."""
        if entry is not None and entry.plan is not None:
            plan = Plan.model_validate_json(entry.plan)
        else:
            plan = await Planner(self._session, self._ledger, self._spec).plan(records)
        approved = plan.hash if self._spec.approval.plan_hash == plan.hash else ""
        await self._reporter.plan(plan, approved=approved)
        return plan

    async def _apply(self, plan: Plan) -> Phase:
        async with self._session.transaction():
            await self._ledger.create_tables()
            await self._ledger.begin_run(self._spec.work_hash())
            await self._ledger.keep_plan(plan.model_dump_json(by_alias=True, exclude_none=True))
        for step in self._spec.steps:
            self._interrupt_if_asked()
            await self._run_step(step)
        async with self._session.transaction():
            finished = await self._ledger.finish_run()
        await self._copy_ledger()
        await self._reporter.finished("Complete", at=finished)
        return "Complete"

    def _interrupt_if_asked(self) -> None:
        if self._stop.is_set():
            raise Interrupted

    async def _run_step(self, step: Step) -> None:
        async with self._session.transaction():
            record = await self._ledger.step(step.name)
        if record is not None and record.done:
            return
        await self._reporter.phase("Running", step=step.name)
        if step.create_indexes is not None:
            await self._create_indexes(step, record)
        elif step.consolidate is not None:
            async with self._table_lock(step.consolidate.target, step):
                await self._consolidate(step, record)
        elif step.backfill is not None:
            async with self._table_lock(step.backfill.table, step):
                await self._backfill(step)
        elif step.sql is not None:
            await self._run_statement(step, record)
        elif step.retire is not None:
            await self._retire(step, step.retire, record)

    @asynccontextmanager
    async def _table_lock(self, table: str, step: Step) -> AsyncIterator[None]:
        """Keep other migrations off the table. After a failure the session ends, and the lock with it."""
        lock = f"shipkeeper table {table}"
        await self._locks.take(lock, waiting=self._wait_for_lock)
        await self._reporter.phase("Running", step=step.name)
        await self._reporter.lock_taken()
        yield
        await self._locks.release(lock)

    async def _enter(self, step: Step) -> None:
        async with self._session.transaction():
            if await self._ledger.step(step.name) is None:
                await self._ledger.begin_step(
                    step.name, upper=None, rows_total=0, existing_known=0, started_at=utc_now()
                )

    async def _finish(self, step: Step) -> None:
        async with self._session.transaction():
            await self._ledger.finish_step(step.name)
        await self._copy_ledger()

    async def _copy_ledger(self) -> None:
        async with self._session.transaction():
            records = await self._ledger.steps()
            rejected = sum(record.rows_rejected for record in records.values())
            rejects = await self._ledger.rejects(limit=10) if rejected != self._rejected_shown else ()
        self._rejected_shown = rejected
        await self._reporter.ledger(records, rejects=rejects, batch_size=self._sizer.size)

    # Indexes.

    async def _create_indexes(self, step: Step, record: StepRecord | None) -> None:
        assert step.create_indexes is not None  # noqa: S101 # The caller looked.
        if record is None:
            await self._enter(step)
        builder = IndexBuilder(self._session, locks=self._spec.locks, report=self._reporter.index)
        built = set()
        for index in step.create_indexes.indexes:
            self._interrupt_if_asked()
            async with self._table_lock(index.table, step):
                status = await self._until_stopped(builder.ensure(index))
            if status.action != "None":
                built.add(index.table)
            await self._reporter.recovered()
        for table in sorted(built):
            async with self._session.statements():
                await self._session.execute(f"ANALYZE {'.'.join(_quoted(part) for part in table.split('.'))}")
        await self._finish(step)

    async def _until_stopped(self, work: Awaitable[Any]) -> Any:
        """Run a long statement; when a stop is asked for, cancel it. A half-built index is repaired by the next run."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise Interrupted
            return task.result()
        finally:
            stop.cancel()

    # Consolidation.

    async def _consolidate(self, step: Step, record: StepRecord | None) -> None:
        assert step.consolidate is not None  # noqa: S101 # The caller looked.
        started_at = record.started_at if record is not None else utc_now()
        async with self._session.transaction():
            ready = await prepare_consolidation(
                self._session, self._ledger, name=step.name, step=step.consolidate, started_at=started_at
            )
            if record is None and await self._ledger.step(step.name) is None:
                await ready.copier.prepare(started_at=started_at)
        await self._copy_ledger()
        if record is None:
            # Another worker may have entered the step in between; its start is the one that counts.
            async with self._session.transaction():
                entered = await self._ledger.step(step.name)
            if entered is not None and entered.started_at != started_at:
                await self._consolidate(step, entered)
                return
        await self._copy(ready)
        await self._verify(ready)

    async def _copy(self, ready: Consolidation | Backfilling) -> None:
        throttle = Throttle(self._session, self._spec.throttle, tables=ready.tables)
        conflicts = 0
        while True:
            await self._hold_back(throttle)
            async with self._session.transaction():
                record = await self._ledger.step(ready.name)
            assert record is not None  # noqa: S101 # The step was entered before.
            await self._refuse_too_many_rejects()
            try:
                moved = await self._batch(ready, record)
            except MovedElsewhereError:
                continue
            except Exception as error:
                if sql_state(error) not in _CONFLICTS or conflicts >= self._spec.locks.attempts:
                    raise
                conflicts += 1
                await asyncio.sleep(0.1 * conflicts)
                continue
            conflicts = 0
            await self._copy_ledger()
            if not moved:
                await self._refuse_too_many_rejects()
                return

    async def _batch(self, ready: Consolidation | Backfilling, record: StepRecord) -> bool:
        """Copy one batch; False when no row is left."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            result = await ready.copier.batch(record, size=self._sizer.size)
        except RowErrorInBatch as failure:
            if failure.rows > 1:
                self._sizer.failed(rows=failure.rows)
                return True
            result = await ready.copier.reject_next(record, failure.cause)
        if result is None:
            return False
        seconds = clock() - began
        self._sizer.succeeded(rows=result.rows, took_milliseconds=round(seconds * 1000))
        self._reporter.rate.add(rows=result.rows, seconds=seconds)
        await self._reporter.recovered()
        return True

    async def _hold_back(self, throttle: Throttle) -> None:
        self._interrupt_if_asked()
        while (hold := await throttle.check()) is not None:
            await self._reporter.hold(hold)
            try:
                await asyncio.wait_for(self._stop.wait(), timeout=_HOLD_SECONDS)
            except TimeoutError:
                continue
            raise Interrupted
        await self._reporter.hold(None)

    async def _refuse_too_many_rejects(self) -> None:
        rejected = self._reporter.report.progress.rows_rejected
        if rejected > self._spec.rejects.max:
            raise MigrationError(
                "TooManyRejects",
                f"{rejected} rows were rejected, rejects.max is {self._spec.rejects.max}: see status.rejects and the "
                "table shipkeeper_migration_rejects; mend the rows or the mapping, or raise rejects.max",
                retry="Never",
            )

    async def _verify(self, ready: Consolidation) -> None:
        await self._reporter.phase("Verifying", step=ready.name)
        async with self._session.transaction():
            record = await self._ledger.step(ready.name)
        assert record is not None  # noqa: S101 # It was copied just now.
        verifier = Verifier(
            self._session,
            name=ready.name,
            step=ready.step,
            owner=self._owner,
            statements=ready.statements,
            copier=ready.copier,
            range_size=self._spec.verification.range_size,
        )
        found: StepVerification = await self._until_stopped(verifier.verify(record))
        text = found.model_dump_json(by_alias=True, exclude_none=True)
        async with self._session.transaction():
            await self._ledger.keep_verification(ready.name, text)
            if found.result == "Equal" and not record.done and record.cursor == record.upper:
                await self._ledger.finish_step(ready.name)
        await self._copy_ledger()
        if found.result != "Equal":
            raise _verification_failed(ready.name, found)

    # Backfill.

    async def _backfill(self, step: Step) -> None:
        ready = await self._prepare_backfill(step)
        async with self._session.transaction():
            if await self._ledger.step(step.name) is None:
                await ready.copier.prepare()
        await self._copy_ledger()
        for passes_left in reversed(range(MOST_PASSES)):
            await self._reporter.phase("Running", step=step.name)
            await self._copy(ready)
            await self._reporter.phase("Verifying", step=step.name)
            found: StepVerification = await self._until_stopped(ready.copier.conclude(may_go_on=passes_left > 0))
            await self._copy_ledger()
            if found.result == "Equal":
                return
        raise rows_remain(step.name, found)

    async def _prepare_backfill(self, step: Step) -> Backfilling:
        assert step.backfill is not None  # noqa: S101 # The caller looked.
        async with self._session.transaction():
            return await prepare_backfill(
                self._session, self._ledger, name=step.name, step=step.backfill, locks=self._spec.locks
            )

    async def _verify_backfill(self, step: Step) -> None:
        ready = await self._prepare_backfill(step)
        await self._reporter.phase("Verifying", step=step.name)
        found: StepVerification = await self._until_stopped(ready.copier.verify())
        await self._copy_ledger()
        if found.result != "Equal":
            raise rows_remain(step.name, found)

    # Statements.

    async def _run_statement(self, step: Step, record: StepRecord | None) -> None:
        assert step.sql is not None  # noqa: S101 # The caller looked.
        guarded = GuardedStatement(self._session, name=step.name, step=step.sql)
        if guarded.destructive:
            async with self._session.transaction():
                records = await self._ledger.steps()
            require_verified(step.name, self._spec.steps[: self._spec.steps.index(step)], records)
        if record is None:
            await self._enter(step)
        await self._until_stopped(guarded.run(self._ledger, locks=self._spec.locks))
        await self._reporter.recovered()
        await self._copy_ledger()

    # Retiring.

    async def _retire(self, step: Step, retire: Retire, record: StepRecord | None) -> None:
        if record is None:
            await self._enter(step)
        if not await is_retired(self._session, retire):
            copied = self._consolidation_of(retire)
            async with self._session.transaction():
                entry = await self._ledger.step(copied.name)
                if entry is None or not entry.done or copied.consolidate is None:
                    raise MigrationError(
                        "NotVerified", f"{retire.table} is retired only after {copied.name} is verified", retry="Never"
                    )
                ready = await prepare_consolidation(
                    self._session,
                    self._ledger,
                    name=copied.name,
                    step=copied.consolidate,
                    started_at=entry.started_at,
                )
            await rename(self._session, retire, copied=entry, statements=ready.statements, locks=self._spec.locks)
        await self._finish(step)

    def _consolidation_of(self, retire: Retire) -> Step:
        return next(
            step
            for step in self._spec.steps
            if step.consolidate is not None and step.consolidate.source == retire.table
        )


def _verification_failed(step: str, found: StepVerification) -> MigrationError:
    first = found.differences[0] if found.differences else None
    where = f"; first {first.kind.lower()}: {first.range}, key {first.key}" if first is not None else ""
    return MigrationError(
        "VerificationFailed",
        f"step {step}: {found.different_ranges} of {found.ranges} key ranges differ between source and target{where}. "
        "See status.steps; mend the rows, then change the spec (for example verification.rangeSize) to verify again",
        retry="Never",
        key=first.key if first is not None else None,
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
