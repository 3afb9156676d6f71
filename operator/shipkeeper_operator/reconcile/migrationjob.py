"""What follows for a migration: which Job should run, and what its status says. Pure.

A Job's name is a hash of the work and the attempt, so the same state always wants the same Job: a restart of the
operator, a lost status write or two operators cannot start a second one. Which attempt it is stands in the status.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from shipkeeper.migrations.support import unsupported
from shipkeeper.resources.conditions import Claim, dated, ready, reconciling, retrying, stalled
from shipkeeper.resources.migrationjob import MigrationJob
from shipkeeper.resources.migrationjob_status import (
    LastError,
    MigrationJobStatus,
    MigrationReport,
    Phase,
    StepStatus,
    WorkerRun,
)
from shipkeeper_operator.children.migrationjob import (
    WorkerSettings,
    approved_plan,
    build_companions,
    build_file,
    build_job,
    job_name,
)

from .migration_facts import ObservedJob, ObservedMigration
from .outcome import Event, Manifest, Outcome

VERIFIED: Final = "Verified"
APPROVED: Final = "Approved"
THROTTLED: Final = "Throttled"

_FIRST_DELAY: Final = timedelta(seconds=10)
_LONGEST_DELAY: Final = timedelta(minutes=5)
_DONE: Final = ("Complete", "Retaining")


def references(resource: MigrationJob) -> Iterable[tuple[str, str]]:
    """A migration waits for no other resource."""
    return ()


def reconcile(
    resource: MigrationJob, observed: ObservedMigration, *, now: datetime, settings: WorkerSettings
) -> Outcome[MigrationJobStatus, None]:
    """Decide which Job should exist and what the status says."""
    report = _current_report(resource, observed)
    if refused := unsupported(resource.spec):
        field, advice = refused[0]
        claims = (*stalled("UnsupportedField", f"{field} is not supported: {advice}"), _verified(resource, report))
        return Outcome(
            status=_status(resource, report, claims=claims, run=None, phase="Failed", now=now),
            children=build_companions(resource),
        )
    attempt = _attempt(resource, observed, report, now=now)
    name = job_name(resource, attempt=attempt.number)
    job = observed.jobs.get(name)
    run = _run(resource, name=name, attempt=attempt.number, job=job)
    phase = _phase(resource, report, job)
    claims = (*_state(resource, observed, report, run=run, job=job), *_further_claims(resource, report))
    status = _status(resource, report, claims=claims, run=run, phase=phase, now=now)
    return Outcome(
        status=status,
        children=(*build_companions(resource), *_wanted_run(resource, run=run, job=job, settings=settings)),
        retained=_retained(resource, job),
        events=_repairs(resource, status),
        requeue_after=attempt.again_after,
    )


def _repairs(resource: MigrationJob, status: MigrationJobStatus) -> tuple[Event, ...]:
    """Say what was repaired since the status before: a target that did not hold what was written deserves a look."""
    before = {step.name: _repaired(step) for step in resource.status.steps} if resource.status is not None else {}
    return tuple(
        Event("Warning", "RowsRepaired", f"step {step.name}: {new} rows differed and were repaired; see status.steps")
        for step in status.steps
        if (new := _repaired(step) - before.get(step.name, 0)) > 0
    )


def _repaired(step: StepStatus) -> int:
    return step.verification.repaired if step.verification is not None else 0


def _current_report(resource: MigrationJob, observed: ObservedMigration) -> MigrationReport | None:
    """Return the report if it is about the work that is declared now."""
    report = observed.report
    return report if report is not None and report.work_hash == resource.spec.work_hash() else None


@dataclass(frozen=True)
class _Attempt:
    number: int
    again_after: timedelta | None = None


def _attempt(
    resource: MigrationJob, observed: ObservedMigration, report: MigrationReport | None, *, now: datetime
) -> _Attempt:
    """Return which attempt at this work it is. One that failed and may be tried again is followed after a delay."""
    previous = resource.status.run if resource.status is not None else None
    if previous is None or previous.job != job_name(resource, attempt=previous.attempt):
        return _Attempt(1)  # No run yet, or one of other work.
    job = observed.jobs.get(previous.job)
    state = job.state if job is not None else previous.state
    finished_at = (job.finished_at if job is not None else None) or previous.finished_at
    drop_at = _drop_at(resource, state, report)
    if finished_at is None or (drop_at is None and not _deserves_another(resource, state, report)):
        return _Attempt(previous.attempt)
    due = finished_at + min(_FIRST_DELAY * 2 ** min(previous.attempt - 1, 10), _LONGEST_DELAY)
    if drop_at is not None:
        due = max(due, drop_at)  # Where the database's clock is behind ours, the next worker ends as this one did.
    return _Attempt(previous.attempt + 1) if due <= now else _Attempt(previous.attempt, due - now)


def _drop_at(resource: MigrationJob, state: str, report: MigrationReport | None) -> datetime | None:
    """Return when another worker has a retired table to drop."""
    if state != "Succeeded" or report is None or report.phase != "Retaining" or resource.spec.rollback:
        return None
    return report.retained_until


def _deserves_another(resource: MigrationJob, state: str, report: MigrationReport | None) -> bool:
    if state == "Succeeded":
        # The worker ended well, but what it reported is gone: the ledger knows, so another worker can say it again.
        return report is None or not _has_ended(resource, report)
    if state == "Failed":
        return report is None or report.last_error is None or report.last_error.retry != "Never"
    return False


def _has_ended(resource: MigrationJob, report: MigrationReport) -> bool:
    """Whether the report is the last one of what the spec asks for: the work, or its undoing."""
    wanted = ("RolledBack",) if resource.spec.rollback else _DONE
    return report.phase in (*wanted, "Planned", "AwaitingApproval")


def _run(resource: MigrationJob, *, name: str, attempt: int, job: ObservedJob | None) -> WorkerRun:
    previous = resource.status.run if resource.status is not None else None
    known = previous if previous is not None and previous.job == name else None
    if job is not None:
        return WorkerRun(
            job=name,
            attempt=attempt,
            generation=known.generation if known is not None else resource.metadata.generation,
            state=job.state,
            finished_at=job.finished_at,
        )
    if known is not None and known.state in ("Succeeded", "Failed"):
        return known  # The finished Job was removed: its time to live was over.
    return WorkerRun(job=name, attempt=attempt, generation=resource.metadata.generation, state="Waiting")


def _wanted_run(
    resource: MigrationJob, *, run: WorkerRun, job: ObservedJob | None, settings: WorkerSettings
) -> tuple[Manifest, ...]:
    """Return what is missing of the run. What is there is never changed: a Job cannot be, and need not."""
    if run.state in ("Succeeded", "Failed") or _is_paused(resource):
        return ()
    file = build_file(resource, name=run.job)
    if job is None:
        return (file, build_job(resource, name=run.job, settings=settings))
    return () if job.has_file else (file,)


def _retained(resource: MigrationJob, job: ObservedJob | None) -> tuple[tuple[str, str], ...]:
    """Keep the Job of this attempt. To pause is to remove it: its worker ends its batch, the ledger keeps the place."""
    if job is None or (_is_paused(resource) and not job.finished):
        return ()
    return (("Job", job.name), ("ConfigMap", job.name))


def _is_paused(resource: MigrationJob) -> bool:
    return resource.spec.suspend or resource.spec.cancel


def _phase(resource: MigrationJob, report: MigrationReport | None, job: ObservedJob | None) -> Phase:
    reported: Phase = report.phase if report is not None else "Pending"
    if reported in ("Complete", "RolledBack") or (reported == "Retaining" and resource.spec.rollback):
        # After rollback was set or taken back, the last report is about the other direction.
        return reported if report is not None and _has_ended(resource, report) else "Pending"
    if resource.spec.cancel:
        return "Cancelled"
    if resource.spec.suspend:
        return "Suspended"
    if job is not None and job.state == "Failed":
        return "Failed"
    return reported


def _state(
    resource: MigrationJob,
    observed: ObservedMigration,
    report: MigrationReport | None,
    *,
    run: WorkerRun,
    job: ObservedJob | None,
) -> tuple[Claim, ...]:
    """Say in one Ready claim (and Reconciling or Stalled) how the migration is."""
    if run.state == "Succeeded" and report is not None and _has_ended(resource, report):
        return _ended(resource, report)
    if resource.spec.cancel:
        return stalled("Cancelled", "cancelled; what was copied stays. Set spec.cancel to false to resume")
    if resource.spec.suspend:
        return (Claim("Ready", "False", "Suspended", "suspended; set spec.suspend to false to resume"),)
    if run.state == "Failed":
        return _failed(report, job)
    if observed.trouble is not None:
        return stalled(observed.trouble.reason, observed.trouble.message)
    if observed.report_error:
        return retrying("ReportUnreadable", observed.report_error)
    if report is not None and report.last_error is not None:
        return _error(report.last_error)
    return reconciling(*_under_way(resource, report))


def _ended(resource: MigrationJob, report: MigrationReport) -> tuple[Claim, ...]:
    if report.phase == "Complete":
        return ready("Complete", _sum(report))
    if report.phase == "Retaining":
        until = f"{report.retained_until:%Y-%m-%dT%H:%M:%SZ}" if report.retained_until is not None else "later"
        return ready("Retaining", f"{_sum(report)}; a retired table is kept until {until}, then dropped")
    if report.phase == "RolledBack":
        removed = sum(step.rows_removed for step in report.steps)
        return ready("RolledBack", f"{removed} copied rows were removed; set spec.rollback to false to copy anew")
    plan = report.plan.hash if report.plan is not None else ""
    if report.phase == "Planned":
        return ready("Planned", f"plan {plan} is in status.plan; set spec.mode to Apply to carry it out")
    if approved_plan(resource) == plan:
        return reconciling("Approved", f"plan {plan} is approved")
    return stalled(
        "AwaitingApproval", f"read status.plan{_destructive(report)}, then set spec.approval.planHash to {plan}"
    )


def _destructive(report: MigrationReport) -> str:
    """Name the steps that can lose data, for the one who approves the plan."""
    names = [step.name for step in report.plan.steps if step.destructive] if report.plan is not None else []
    return f" (destructive: {', '.join(names)})"[:512] if names else ""


def _sum(report: MigrationReport) -> str:
    rows = report.progress
    return (
        f"{rows.rows_total} rows: {rows.rows_copied} copied, {rows.rows_existing} already there, "
        f"{rows.rows_rejected} rejected"
    )


def _failed(report: MigrationReport | None, job: ObservedJob | None) -> tuple[Claim, ...]:
    if report is not None and report.last_error is not None:
        return _error(report.last_error)
    why = job.failure if job is not None else "the Job is gone"
    return retrying("WorkerFailed", f"{why}; another Job follows")


def _error(error: LastError) -> tuple[Claim, ...]:
    if error.retry == "Soon":
        return retrying(error.reason, error.message)
    return stalled(error.reason, error.message)


def _under_way(resource: MigrationJob, report: MigrationReport | None) -> tuple[str, str]:
    if report is None or (report.phase in (*_DONE, "RolledBack") and not _has_ended(resource, report)):
        return "Starting", "the worker is starting"
    if report.throttle.reason != "None":
        return "Throttled", f"{report.throttle.reason}: {report.throttle.message}"
    if report.phase == "WaitingForLock":
        return "WaitingForLock", f"another worker holds the migration's lock: {report.lock_holder}"
    step = f"step {report.current_step}, " if report.current_step else ""
    return report.phase, f"{step}{report.progress.display}" if report.progress.display else f"{step}at work"


def _further_claims(resource: MigrationJob, report: MigrationReport | None) -> tuple[Claim, ...]:
    claims = [_verified(resource, report)]
    if resource.spec.approval.mode == "Manual":
        claims.append(_approved(resource, report))
    if report is not None and report.throttle.reason != "None" and report.phase not in _DONE:
        claims.append(Claim(THROTTLED, "True", report.throttle.reason, report.throttle.message))
    return tuple(claims)


def _verified(resource: MigrationJob, report: MigrationReport | None) -> Claim:
    """Verified is what releases an application's rollout, so it is True only for a complete migration."""
    if resource.spec.rollback:
        return Claim(VERIFIED, "False", "RolledBack", "spec.rollback takes the copied rows out of the target")
    comparisons = [step.verification for step in report.steps if step.verification] if report is not None else []
    if any(each.result == "Different" for each in comparisons):
        different = sum(each.different_ranges for each in comparisons)
        return Claim(VERIFIED, "False", "ContentDiffers", f"{different} key ranges differ; see status.steps")
    if report is None or report.phase not in _DONE:
        return Claim(VERIFIED, "False", "NotVerifiedYet", "the migration is not complete")
    if not comparisons:
        return Claim(VERIFIED, "True", "NothingToCompare", "no step copies rows")
    rows, ranges = sum(each.rows for each in comparisons), sum(each.ranges for each in comparisons)
    return Claim(VERIFIED, "True", "ContentEqual", f"{rows} rows in {ranges} key ranges are equal by content")


def _approved(resource: MigrationJob, report: MigrationReport | None) -> Claim:
    if report is None or report.plan is None:
        return Claim(APPROVED, "False", "NotPlannedYet", "there is no plan yet")
    if approved_plan(resource) == report.plan.hash:
        return Claim(APPROVED, "True", "PlanApproved", f"plan {report.plan.hash} is approved")
    return Claim(APPROVED, "False", "AwaitingApproval", f"plan {report.plan.hash} waits for an approval")


def _status(
    resource: MigrationJob,
    report: MigrationReport | None,
    *,
    claims: tuple[Claim, ...],
    run: WorkerRun | None,
    phase: Phase,
    now: datetime,
) -> MigrationJobStatus:
    shown = report or MigrationReport(revision=resource.spec.revision, work_hash=resource.spec.work_hash())
    previous = resource.status.conditions if resource.status is not None else ()
    fields = {name: getattr(shown, name) for name in MigrationReport.model_fields}
    fields |= {"phase": phase, "run": run, "observed_generation": resource.metadata.generation}
    return MigrationJobStatus(
        **fields,
        conditions=dated(claims, previous=previous, generation=resource.metadata.generation, now=now),
    )
