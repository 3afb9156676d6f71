"""Running a migration: lock, ledger, plan, steps in order, verification, and a report all the way.

The engine can be stopped and started at any moment, by a signal, a crash or a lost connection: what is done stands in
the ledger, and it goes on from there. A failure that may pass by itself is tried again here a few times before the
worker gives up and leaves it to the Job.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Literal

from sqlalchemy.ext.asyncio import AsyncConnection

from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationjob_status import MigrationReport, Phase, Plan, StepVerification
from shipkeeper.resources.migrationsteps import Retire, Step

from .backfilling import MOST_PASSES, Backfilling, prepare_backfill, rows_remain
from .copying import MovedElsewhereError, RowErrorInBatch
from .database import DatabaseUrl, Session, connect, create_engine
from .dropping import database_now, drop, due_at, retained_until
from .errors import Interrupted, MigrationError, explain, last_error, sql_state
from .guarding import GuardedStatement, require_verified
from .indexes import IndexBuilder
from .journal import Journal
from .ledger import Ledger, Owner, StepRecord, utc_now
from .locking import SessionLocks
from .planning import Planner
from .preparation import Consolidation, prepare_consolidation
from .repairing import Repairer, repaired_rows
from .reporting import Reporter, ReportSink
from .retiring import is_retired, refuse_retired, rename
from .retrying import RejectRetry, is_due
from .rollback import RollBack, rollback_plan
from .sizing import BatchSizer
from .sources import source_of
from .support import unsupported
from .throttle import Throttle
from .verification import Verifier

_LOG: Final = logging.getLogger(__name__)
_ATTEMPTS: Final = 5
_FIRST_PAUSE_SECONDS: Final = 1.0
_HOLD_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0
_RETRIED_AT_ONCE: Final = 1000
_CONFLICTS: Final = ("40001", "40P01", "55P03")


class Migration:
    """One run of one migration against one database."""

    def __init__(
        self,
        spec: MigrationJobSpec,
        *,
        name: str,
        url: DatabaseUrl,
        sink: ReportSink,
        stop: asyncio.Event,
        source_url: DatabaseUrl | None = None,
    ) -> None:
        """`name` is namespace/name, by which the ledger knows the migration; `stop` asks for an end after the batch.

        `source_url` is the database that spec.source declares, and None where it declares none.
        """
        self._spec = spec
        self._owner = Owner(name, spec.revision)
        self._url = url
        self._source_url = source_url
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
        secrets = self._source_url.secrets() if self._source_url is not None else ()
        shown = last_error(failure, secrets=(*self._url.secrets(), *secrets))
        _LOG.warning("%s: %s", shown.reason, shown.message)
        await self.reporter.failed(shown, phase="Failed" if final else self.reporter.report.phase)
        if final:
            await self.reporter.flush()

    async def _attempt(self, what: Literal["run", "verify", "status"] = "run") -> Phase:
        if refused := unsupported(self._spec):
            field, advice = refused[0]
            raise MigrationError("UnsupportedField", f"{field} is not supported: {advice}", retry="Never")
        name = f"shipkeeper/{self._owner.migration}"
        source = source_of(self._source_url, name=name) if self._source_url is not None else None
        engine = create_engine(self._url, name=name)
        try:
            connection = await connect(engine)
            try:
                session = Session(connection, source=source)
                run = _Run(session, self._spec, owner=self._owner, stop=self._stop, reporter=self.reporter)
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
            if source is not None:
                await source.close()

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
        session: Session,
        spec: MigrationJobSpec,
        *,
        owner: Owner,
        stop: asyncio.Event,
        reporter: Reporter,
    ) -> None:
        self._session = session
        self._spec = spec
        self._owner = owner
        self._stop = stop
        self._reporter = reporter
        self._ledger = Ledger(self._session, owner)
        self._journal = Journal(self._session, owner)
        self._locks = SessionLocks(self._session)
        self._sizer = BatchSizer(spec.batch)
        self._rejected_shown = -1

    async def run(self) -> Phase:
        if self._spec.mode == "Apply":
            await self._locks.take(f"shipkeeper {self._owner.migration}", waiting=self._wait_for_lock)
            await self._reporter.lock_taken()
        entry, records = await self._read_ledger()
        if self._spec.rollback:
            return await self._roll_back(records)
        await self._refuse_half_rolled_back(records)
        if entry is not None and entry.finished_at is not None and not await self._is_asked_for_more(records):
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
            return await self._tell_nothing_begun()
        if entry.finished_at is not None:
            return await self._tell_complete(entry, records)
        await self._copy_actions()
        await self._copy_ledger()
        async with self._session.transaction():
            kept_until = retained_until(self._spec, records, await self._journal.entries())
        await self._reporter.retained(kept_until)
        phase: Phase = "Interrupted" if kept_until is None else "Retaining"
        await self._reporter.finished(phase)
        return phase

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
                await refuse_retired(self._session, step.consolidate.source, wanted_for=f"step {step.name}")
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
            actions = await self._journal.entries()
        if entry.plan is not None:
            await self._reporter.plan(Plan.model_validate_json(entry.plan))
        await self._reporter.actions(actions)
        await self._reporter.ledger(records, rejects=rejects)
        await self._reporter.finished("Complete", at=entry.finished_at)
        return "Complete"

    async def _tell_nothing_begun(self) -> Phase:
        await self._copy_actions()
        phase: Phase = "RolledBack" if self._spec.rollback else "Pending"
        await self._reporter.finished(phase)
        return phase

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
            if await self._ledger.run() is None:
                await self._journal.forget()  # A rollback left its entries for the status.
            await self._ledger.begin_run(self._spec.work_hash())
            await self._ledger.keep_plan(plan.model_dump_json(by_alias=True, exclude_none=True))
        await self._copy_actions()
        for step in self._spec.steps:
            self._interrupt_if_asked()
            await self._run_step(step)
        async with self._session.transaction():
            kept_until = retained_until(self._spec, await self._ledger.steps(), await self._journal.entries())
            finished = await self._ledger.finish_run() if kept_until is None else None
        await self._copy_ledger()
        await self._reporter.retained(kept_until)
        phase: Phase = "Complete" if kept_until is None else "Retaining"
        await self._reporter.finished(phase, at=finished)
        return phase

    def _interrupt_if_asked(self) -> None:
        if self._stop.is_set():
            raise Interrupted

    async def _run_step(self, step: Step) -> None:
        async with self._session.transaction():
            record = await self._ledger.step(step.name)
        if record is not None and step.consolidate is not None:
            await self._revisit(step, record)
        if record is not None and step.backfill is not None and await self._is_to_be_retried(record):
            record = await self._reopen(step)
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

    async def _copy_ledger(self) -> Mapping[str, StepRecord]:
        """Show what the ledger says, and return it."""
        async with self._session.statements():
            records = await self._ledger.steps()
            rejected = sum(record.rows_rejected for record in records.values())
            rejects = await self._ledger.rejects(limit=10) if rejected != self._rejected_shown else ()
        self._rejected_shown = rejected
        await self._reporter.ledger(records, rejects=rejects, batch_size=self._sizer.size)
        return records

    async def _copy_actions(self) -> None:
        async with self._session.transaction():
            actions = await self._journal.entries()
        await self._reporter.actions(actions)

    # What a later spec asks of a step that was copied before.

    async def _is_asked_for_more(self, records: Mapping[str, StepRecord]) -> bool:
        if self._spec.mode != "Apply":
            return False
        copied = [record for step in self._spec.steps if step.consolidate and (record := records.get(step.name))]
        filled = [record for step in self._spec.steps if step.backfill and (record := records.get(step.name))]
        return any(
            [await self._is_to_be_revisited(record) for record in copied]
            + [await self._is_to_be_retried(record) for record in filled]
        )

    async def _is_to_be_revisited(self, record: StepRecord) -> bool:
        return self._is_to_be_repaired(record) or await self._is_to_be_retried(record)

    def _is_to_be_repaired(self, record: StepRecord) -> bool:
        """Whether a copy that was complete was found to differ since."""
        if not self._spec.verification.repair or not record.done or record.verification is None:
            return False
        return StepVerification.model_validate_json(record.verification).result == "Different"

    async def _is_to_be_retried(self, record: StepRecord) -> bool:
        async with self._session.transaction():
            return await is_due(self._journal, record, number=self._spec.rejects.retry)

    async def _revisit(self, step: Step, record: StepRecord) -> None:
        """Try rejected rows again and repair what differs, where the spec asks for it."""
        assert step.consolidate is not None  # noqa: S101 # The caller looked.
        if not await self._is_to_be_revisited(record):
            return
        async with self._table_lock(step.consolidate.target, step):
            async with self._session.transaction():
                await refuse_retired(self._session, step.consolidate.source, wanted_for=f"step {step.name}")
                ready = await prepare_consolidation(
                    self._session,
                    self._ledger,
                    name=step.name,
                    step=step.consolidate,
                    started_at=record.started_at,
                )
            retries = await self._is_to_be_retried(record)
            if retries:
                await self._retry_rejects(ready)
            if record.done:
                await self._verify(ready, repair=self._spec.verification.repair)
            if retries:
                async with self._session.transaction():
                    await self._journal.finish(step.name, "Retry")
        await self._copy_actions()

    async def _retry_rejects(self, ready: Consolidation) -> None:
        retry = RejectRetry(self._session, self._ledger, self._journal, ready)
        await retry.begin(self._spec.rejects.retry)
        throttle = Throttle(self._session, self._spec.throttle, tables=(ready.step.target, ready.step.source))
        size = _RETRIED_AT_ONCE
        while True:
            await self._hold_back(throttle)
            try:
                tried = await retry.batch(size=size)
            except MovedElsewhereError:
                continue
            except RowErrorInBatch as failure:
                if failure.rows == 1:
                    await retry.refuse_next(failure.cause)
                size = max(failure.rows // 2, 1)
                continue
            size = min(size * 2, _RETRIED_AT_ONCE)
            self._rejected_shown = -1  # Reasons may differ where the number of rows is the same.
            await self._copy_ledger()
            if tried is None:
                return

    # Rolling back.

    async def _roll_back(self, records: Mapping[str, StepRecord]) -> Phase:
        """Remove what the consolidations wrote, the last one first, and forget the run."""
        async with self._session.transaction():
            actions = await self._journal.entries()
        begun = any(action == "Rollback" for _, action in actions)
        plan = rollback_plan(self._spec, records, sqlite=self._session.is_sqlite)
        if records or not begun:  # What is rolled back has no plan any more.
            approved = plan.hash if self._spec.approval.plan_hash == plan.hash else ""
            await self._reporter.plan(plan, approved=approved)
        if self._spec.mode == "Plan":
            await self._reporter.finished("Planned")
            return "Planned"
        if records and not begun and self._spec.approval.mode == "Manual" and not approved:
            await self._reporter.finished("AwaitingApproval")
            return "AwaitingApproval"
        if records:
            async with self._session.transaction():
                await self._ledger.create_tables()
        for step in reversed(self._spec.steps):
            record = records.get(step.name)
            if step.consolidate is not None and record is not None:
                async with self._table_lock(step.consolidate.target, step):
                    await self._remove_copied(step, record)
        if records:
            async with self._session.transaction():
                await self._ledger.forget_run()
        await self._copy_actions()
        await self._reporter.ledger({})
        await self._reporter.finished("RolledBack")
        return "RolledBack"

    async def _refuse_half_rolled_back(self, records: Mapping[str, StepRecord]) -> None:
        async with self._session.transaction():
            actions = await self._journal.entries()
        if records and any(action == "Rollback" for _, action in actions):
            raise MigrationError(
                "RollbackUnfinished",
                "a rollback has begun and is not finished: set spec.rollback to true until it is; "
                "after that the work may begin anew",
                retry="Never",
            )

    async def _remove_copied(self, step: Step, record: StepRecord) -> None:
        assert step.consolidate is not None  # noqa: S101 # The caller looked.
        await self._reporter.phase("RollingBack", step=step.name)
        async with self._session.transaction():
            action = await self._journal.entry(step.name, "Rollback")
            if action is not None and action.finished_at is not None:
                return
            await refuse_retired(self._session, step.consolidate.source, wanted_for="spec.rollback")
            ready = await prepare_consolidation(
                self._session, self._ledger, name=step.name, step=step.consolidate, started_at=record.started_at
            )
        rollback = RollBack(self._session, self._ledger, self._journal, ready, self._verifier(ready))
        throttle = Throttle(self._session, self._spec.throttle, tables=(ready.step.target,))
        await self._until_stopped(rollback.begin())
        clock = asyncio.get_running_loop().time
        while True:
            await self._hold_back(throttle)
            began = clock()
            try:
                removed = await rollback.batch(size=self._sizer.size)
            except MovedElsewhereError:
                continue
            if removed is None:
                break
            self._sizer.succeeded(rows=removed.listed, took_milliseconds=round((clock() - began) * 1000))
            await self._reporter.recovered()
            await self._copy_actions()
        await rollback.finish()

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
                # No row was rejected yet, so there is none to try again under this number.
                await self._journal.begin(step.name, "Retry", number=self._spec.rejects.retry, finished=True)
        await self._copy_ledger()
        if record is None:
            # Another worker may have entered the step in between; its start is the one that counts.
            async with self._session.transaction():
                entered = await self._ledger.step(step.name)
            if entered is not None and entered.started_at != started_at:
                await self._consolidate(step, entered)
                return
        await self._copy(ready)
        await self._verify(ready, repair=self._spec.verification.repair)

    async def _copy(self, ready: Consolidation | Backfilling) -> None:
        throttle = Throttle(self._session, self._spec.throttle, tables=ready.tables)
        conflicts = 0
        while True:
            record = (await self._copy_ledger())[ready.name]
            await self._hold_back(throttle)
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
            if not moved:
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

    async def _verify(self, ready: Consolidation, *, repair: bool = False) -> None:
        """Compare by content; where it differs and `repair` is asked for, repair the ranges and compare once more."""
        await self._reporter.phase("Verifying", step=ready.name)
        async with self._session.transaction():
            record = await self._ledger.step(ready.name)
        assert record is not None  # noqa: S101 # It was copied just now.
        verifier = self._verifier(ready)
        found = await self._compare(verifier, record)
        if found.result != "Equal" and repair:
            throttle = Throttle(self._session, self._spec.throttle, tables=(ready.step.target, ready.step.source))
            pause = partial(self._hold_back, throttle)
            await Repairer(self._session, self._journal, ready, verifier, pause=pause).repair(record)
            found = await self._compare(verifier, record)
        if found.result != "Equal":
            raise _verification_failed(ready.name, found)

    def _verifier(self, ready: Consolidation) -> Verifier:
        return ready.verifier(self._session, owner=self._owner, range_size=self._spec.verification.range_size)

    async def _compare(self, verifier: Verifier, record: StepRecord) -> StepVerification:
        found: StepVerification = await self._until_stopped(verifier.verify(record))
        async with self._session.transaction():
            action = await self._journal.entry(record.step, "Repair")
            if action is not None:
                repairs = repaired_rows(action.details)
                found = found.model_copy(update={"repaired": action.rows_done, "repairs": repairs})
            await self._ledger.keep_verification(record.step, found.model_dump_json(by_alias=True, exclude_none=True))
            if found.result == "Equal" and not record.done and record.cursor == record.upper:
                await self._ledger.finish_step(record.step)
        await self._copy_ledger()
        return found

    # Backfill.

    async def _backfill(self, step: Step) -> None:
        ready = await self._prepare_backfill(step)
        async with self._session.transaction():
            if await self._ledger.step(step.name) is None:
                await ready.copier.prepare()
                await self._journal.begin(step.name, "Retry", number=self._spec.rejects.retry, finished=True)
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

    async def _reopen(self, step: Step) -> StepRecord | None:
        """Forget that rows of a backfill were rejected, once for each number: its condition still selects them."""
        async with self._session.transaction():
            record = await self._ledger.step(step.name)
            if record is not None and await is_due(self._journal, record, number=self._spec.rejects.retry):
                await self._ledger.reopen_step(record)
                await self._journal.begin(step.name, "Retry", number=self._spec.rejects.retry, finished=True)
            return await self._ledger.step(step.name)

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
        async with self._session.transaction():
            retired = await self._journal.entry(step.name, "Retire")
        if retired is None:
            await self._take_out_of_use(step, retire)
        if retire.action == "Drop" and not await self._drop_if_due(step, retire):
            return
        await self._finish(step)

    async def _take_out_of_use(self, step: Step, retire: Retire) -> None:
        async def note() -> None:
            await self._journal.begin(step.name, "Retire", at=await database_now(self._session))

        session = await self._session.retiring_session(retire.table)
        if await is_retired(session, retire):
            async with self._session.transaction():
                await note()
            return
        copied = self._consolidation_of(retire)
        async with self._session.transaction():
            entry = await self._proven(copied, retire)
            assert copied.consolidate is not None  # noqa: S101 # Chosen so.
            ready = await prepare_consolidation(
                self._session, self._ledger, name=copied.name, step=copied.consolidate, started_at=entry.started_at
            )
        if session is self._session:
            await rename(session, retire, copied=entry, statements=ready.original, locks=self._spec.locks, note=note)
            return
        # Two databases have no transaction in common: a crash in between is noticed by the table's new name.
        await rename(session, retire, copied=entry, statements=ready.original, locks=self._spec.locks)
        async with self._session.transaction():
            await note()

    async def _proven(self, copied: Step, retire: Retire) -> StepRecord:
        """Return the ledger's entry of a consolidation whose content was proven equal, and not disproven since."""
        entry = await self._ledger.step(copied.name)
        if entry is None or not entry.is_proven:
            raise MigrationError(
                "NotVerified", f"{retire.table} is retired only after {copied.name} is verified", retry="Never"
            )
        return entry

    async def _drop_if_due(self, step: Step, retire: Retire) -> bool:
        """Drop the retired table if its retention has passed, and return whether it has."""
        copied = self._consolidation_of(retire)
        assert copied.consolidate is not None  # noqa: S101 # Chosen so.
        async with self._session.transaction():
            retired = await self._journal.entry(step.name, "Retire")
            assert retired is not None  # noqa: S101 # It was retired before.
            if await database_now(self._session) < due_at(retire, retired):
                return False
            entry = await self._proven(copied, retire)
        await drop(self._session, retire, copied=entry, work=copied.consolidate, locks=self._spec.locks)
        return True

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
        "See status.steps; mend the rows, or set verification.repair; the changed spec verifies again",
        retry="Never",
        key=first.key if first is not None else None,
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
