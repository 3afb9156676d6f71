"""The report while it is made: put together from the ledger and the engine, written at most every five seconds."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationjob_status import (
    IndexStatus,
    LastError,
    MigrationReport,
    Phase,
    Plan,
    Progress,
    Reject,
    StepStatus,
    StepVerification,
    Throttle,
)

from .journal import ActionRecord
from .ledger import StepRecord
from .throttle import Hold

SECONDS_BETWEEN_WRITES: Final = 5.0
# A rate is an average over about the last so many seconds.
_RATE_SECONDS: Final = 10.0


class ReportSink(Protocol):
    """Where a report goes: a ConfigMap, a terminal."""

    async def write(self, report: MigrationReport) -> None:
        """Write the report. A sink that cannot write says so in its log; the migration goes on."""


class Rate:
    """Rows per second, as a moving average."""

    def __init__(self) -> None:
        self._rows_per_second: float | None = None

    @property
    def value(self) -> float:
        """The rate now."""
        return self._rows_per_second or 0.0

    def add(self, *, rows: int, seconds: float) -> None:
        """Count a batch."""
        if seconds <= 0:
            return
        now = rows / seconds
        if self._rows_per_second is None:
            self._rows_per_second = now
            return
        weight = min(seconds / _RATE_SECONDS, 1.0)
        self._rows_per_second += (now - self._rows_per_second) * max(weight, 0.05)


class Reporter:
    """Holds the report and decides when it is written."""

    def __init__(self, spec: MigrationJobSpec, sink: ReportSink) -> None:
        self._sink = sink
        self._spec = spec
        self._report = MigrationReport(
            revision=spec.revision,
            work_hash=spec.work_hash(),
            steps=tuple(StepStatus(name=step.name) for step in spec.steps),
        )
        self._written_at: float | None = None
        self._running: str | None = None
        self._held_since: float | None = None
        self._held_before = 0.0
        self._batch_size = 0
        self._removed: Mapping[str, int] = {}
        self.rate = Rate()

    @property
    def report(self) -> MigrationReport:
        """The report as it is now."""
        return self._report

    async def phase(self, phase: Phase, *, step: str = "") -> None:
        """Enter a phase."""
        self._running = step or None
        await self._change(phase=phase, current_step=step)

    async def plan(self, plan: Plan, *, approved: str = "") -> None:
        """Show the plan."""
        await self._change(plan=plan, approved_plan=approved)

    async def waiting_for_lock(self, holder: str) -> None:
        """Say who holds the lock."""
        await self._change(phase="WaitingForLock", lock_holder=holder[:1024])

    async def lock_taken(self) -> None:
        """Say that nobody else holds the lock."""
        await self._change(lock_holder="")

    async def index(self, index: IndexStatus) -> None:
        """Show the state of an index."""
        known = {each.name: each for each in self._report.indexes}
        before = known.get(index.name)
        if before is not None and index.action == "None" and before.action != "None":
            index = index.model_copy(update={"action": before.action})
        await self._change(indexes=tuple((known | {index.name: index}).values()))

    async def ledger(
        self, records: Mapping[str, StepRecord], *, rejects: Sequence[Any] = (), batch_size: int | None = None
    ) -> None:
        """Copy what the ledger says."""
        if batch_size is not None:
            self._batch_size = batch_size
        steps = tuple(
            _step_status(step.name, records.get(step.name), running=self._running).model_copy(
                update={"rows_removed": self._removed.get(step.name, 0)}
            )
            for step in self._spec.steps
        )
        started = min((record.started_at for record in records.values()), default=None)
        changes: dict[str, Any] = {"steps": steps, "progress": self._progress(steps)}
        if started is not None:
            changes["started_at"] = started.replace(tzinfo=UTC)
        if rejects or not changes["progress"].rows_rejected:
            changes["rejects"] = tuple(
                Reject(step=step, key=key.replace("\x1f", ", ")[:256], reason=reason[:1024])
                for step, key, reason in rejects
            )
        await self._change(**changes)

    async def actions(self, records: Mapping[tuple[str, str], ActionRecord]) -> None:
        """Copy what the journal says."""
        retried = [record.number for record in records.values() if record.action == "Retry" and record.finished_at]
        removed = {record.step: record.rows_done for record in records.values() if record.action == "Rollback"}
        self._removed = removed
        steps = tuple(
            step.model_copy(update={"rows_removed": removed.get(step.name, 0)}) for step in self._report.steps
        )
        await self._change(rejects_retried=min(retried, default=0), steps=steps)

    async def retained(self, until: datetime | None) -> None:
        """Say until when a retired table is kept, where dropping it is all that is left to do."""
        await self._change(retained_until=until.replace(tzinfo=UTC) if until is not None else None)

    async def hold(self, hold: Hold | None) -> None:
        """Say whether and why the migration holds back."""
        now = time.monotonic()
        shown = self._report.throttle
        if hold is None:
            if self._held_since is not None:
                self._held_before += now - self._held_since
                self._held_since = None
                await self._change(throttle=Throttle(total_seconds=round(self._held_before)))
            return
        if self._held_since is None:
            self._held_since = now
        since = shown.since if shown.reason == hold.reason and shown.since else datetime.now(UTC)
        total = round(self._held_before + now - self._held_since)
        await self._change(
            throttle=Throttle(reason=hold.reason, message=hold.message, since=since, total_seconds=total)
        )

    async def failed(self, error: LastError, *, phase: Phase) -> None:
        """Show a failure."""
        await self._change(last_error=error, phase=phase)

    async def recovered(self) -> None:
        """Take the last failure away: work goes on."""
        if self._report.last_error is not None:
            await self._change(last_error=None)

    async def finished(self, phase: Phase, *, at: datetime | None = None) -> None:
        """Enter a last phase and write the report, whenever the last one was written."""
        changes: dict[str, Any] = {
            "phase": phase,
            "current_step": "",
            "throttle": Throttle(total_seconds=round(self._held_before)),
        }
        if at is not None:
            changes["finished_at"] = at.replace(tzinfo=UTC)
        if phase in ("Complete", "Retaining", "RolledBack"):
            changes["last_error"] = None
            changes["progress"] = self._report.progress.model_copy(update={"eta": ""})
        await self._change(**changes)
        await self.flush()

    async def flush(self) -> None:
        """Write the report now."""
        self._written_at = time.monotonic()
        await self._sink.write(self._report)

    async def _change(self, **changes: Any) -> None:
        self._report = self._report.model_copy(update=changes)
        now = time.monotonic()
        if self._written_at is None or now - self._written_at >= SECONDS_BETWEEN_WRITES:
            await self.flush()

    def _progress(self, steps: Sequence[StepStatus]) -> Progress:
        total = sum(step.rows_total for step in steps)
        copied = sum(step.rows_copied for step in steps)
        existing = sum(step.rows_existing for step in steps)
        rejected = sum(step.rows_rejected for step in steps)
        done = copied + existing + rejected
        # One hundred is said only when every row is accounted for.
        percent = 100 if done >= total else min(done * 100 // total, 99)
        rate = self.rate.value or _average(steps)
        eta = shown_span((total - done) / rate) if rate > 0 and done < total else ""
        return Progress(
            rows_total=total,
            rows_copied=copied,
            rows_existing=existing,
            rows_rejected=rejected,
            percent=percent,
            display=f"{percent}% ({done}/{total})" if total else "",
            rows_per_second=round(rate),
            eta=eta,
            batch_size=self._batch_size,
        )


def _average(steps: Sequence[StepStatus]) -> float:
    rows = sum(step.rows_copied + step.rows_existing + step.rows_rejected for step in steps)
    seconds = sum(step.batch_milliseconds for step in steps) / 1000
    return rows / seconds if seconds > 0 else 0.0


def _step_status(name: str, record: StepRecord | None, *, running: str | None) -> StepStatus:
    if record is None:
        return StepStatus(name=name, state="Running" if running == name else "Pending")
    verification = StepVerification.model_validate_json(record.verification) if record.verification else None
    different = verification is not None and verification.result == "Different"
    return StepStatus(
        name=name,
        state="Done" if record.done else "Failed" if different else "Running",
        rows_total=record.rows_total,
        rows_copied=record.rows_copied,
        rows_existing=record.rows_existing,
        rows_rejected=record.rows_rejected,
        batches=record.batches,
        batch_milliseconds=record.batch_milliseconds,
        verification=verification,
        started_at=record.started_at.replace(tzinfo=UTC),
        finished_at=record.finished_at.replace(tzinfo=UTC) if record.finished_at is not None else None,
    )


def shown_span(seconds: float) -> str:
    """Return a span for people, for example 45s, 3m20s, 2h5m or 3d4h."""
    rest = max(round(seconds), 1)
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, rest = divmod(rest, length)
        if amount:
            parts.append(f"{amount}{unit}")
    return "".join(parts[:2])
