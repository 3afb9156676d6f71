"""What follows for a MigrationJob from what is observed: the Job that should run, and what the status says."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from shipkeeper.migrations import exitcodes
from shipkeeper.resources.migrationjob import KIND, MigrationJob
from shipkeeper.resources.migrationjob_status import MigrationJobStatus, MigrationReport
from shipkeeper_operator.children.migrationjob import WorkerSettings
from shipkeeper_operator.reconcile.migration_facts import JobState, ObservedJob, ObservedMigration
from shipkeeper_operator.reconcile.migrationjob import reconcile
from shipkeeper_operator.reconcile.outcome import Manifest, Outcome
from shipkeeper_operator.reconcile.pods import PodTrouble

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SETTINGS = WorkerSettings(image="example.test/shipkeeper:1")
INDEX = {"name": "by_name", "table": "people", "keys": [{"column": "name"}]}
STEPS = [{"name": "indexes", "createIndexes": {"indexes": [INDEX]}}]


def migration(
    *, status: MigrationJobStatus | None = None, annotations: dict[str, str] | None = None, **spec: Any
) -> Any:
    manifest: dict[str, Any] = {
        "apiVersion": "shipkeeper.dev/v1alpha1",
        "kind": "MigrationJob",
        "metadata": {
            "name": "move",
            "namespace": "shop",
            "uid": "0d2c",
            "generation": 3,
            "annotations": annotations or {},
        },
        "spec": {"database": {"urlFrom": {"name": "db", "key": "url"}}, "steps": STEPS, **spec},
    }
    if status is not None:
        manifest["status"] = status.to_wire()
    return KIND.parse(manifest)


def decide(
    resource: MigrationJob, observed: ObservedMigration | None = None, *, now: datetime = NOW
) -> Outcome[MigrationJobStatus, None]:
    return reconcile(resource, observed or ObservedMigration(jobs={}), now=now, settings=SETTINGS)


def report(resource: MigrationJob, phase: str, **fields: Any) -> MigrationReport:
    return MigrationReport.model_validate({"workHash": resource.spec.work_hash(), "phase": phase, **fields})


def observed(job: str, state: JobState, report: MigrationReport | None = None, **fields: Any) -> ObservedMigration:
    finished_at = NOW if state in ("Succeeded", "Failed") else None
    seen = ObservedJob(name=job, state=state, finished_at=finished_at)
    return ObservedMigration(jobs={job: seen}, report=report, **fields)


def job_of(outcome: Outcome[MigrationJobStatus, None]) -> Manifest | None:
    return next((child for child in outcome.children if child["kind"] == "Job"), None)


def conditions(outcome: Outcome[MigrationJobStatus, None]) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status, each.reason) for each in outcome.status.conditions}


def started(**spec: Any) -> tuple[MigrationJob, str]:
    """Return a migration whose first Job was started, as the API server then has it, and the Job's name."""
    first = decide(migration(**spec))
    assert first.status.run is not None
    return migration(status=first.status, **spec), first.status.run.job


def test_a_new_migration_gets_one_job_with_all_it_needs() -> None:
    outcome = decide(migration())
    kinds = sorted(child["kind"] for child in outcome.children)
    assert kinds == ["ConfigMap", "ConfigMap", "Job", "Role", "RoleBinding", "ServiceAccount"]
    assert conditions(outcome)["Ready"] == ("False", "Starting")
    assert conditions(outcome)["Verified"] == ("False", "NotVerifiedYet")
    assert outcome.status.observed_generation == 3


def test_the_job_is_restricted_and_gets_its_credentials_only_from_the_secret() -> None:
    job = job_of(decide(migration()))
    assert job is not None
    pod = job["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert worker["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert worker["securityContext"]["readOnlyRootFilesystem"] is True
    assert worker["image"] == SETTINGS.image
    variables = {each["name"]: each for each in worker["env"]}
    assert variables["DATABASE_URL"]["valueFrom"] == {"secretKeyRef": {"name": "db", "key": "url"}}
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [exitcodes.USER_ERROR]


def test_the_worker_may_write_its_report_and_nothing_else() -> None:
    role = next(child for child in decide(migration()).children if child["kind"] == "Role")
    expected = {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": ["move-report"],
        "verbs": ["get", "patch"],
    }
    assert role["rules"] == [expected]


def test_the_file_holds_the_declared_work_and_the_annotations_approval() -> None:
    annotations = {"shipkeeper.dev/approved-plan": "0123456789abcdef"}
    resource = migration(annotations=annotations, approval={"mode": "Manual"}, suspend=False)
    outcome = decide(resource)
    file = next(child for child in outcome.children if "migration.yaml" in child.get("data", {}))
    told = yaml.safe_load(file["data"]["migration.yaml"])
    assert KIND.parse(told).spec.work() == resource.spec.work()
    assert told["spec"]["approval"] == {"mode": "Manual", "planHash": "0123456789abcdef"}
    assert "suspend" not in told["spec"]


def test_a_sqlite_database_is_mounted_from_its_claim() -> None:
    job = job_of(decide(migration(database={"sqlite": {"claimName": "files", "path": "old/app.db"}})))
    assert job is not None
    pod = job["spec"]["template"]["spec"]
    assert {"name": "database", "persistentVolumeClaim": {"claimName": "files"}} in pod["volumes"]
    (worker,) = pod["containers"]
    assert {"name": "DATABASE_URL", "value": "sqlite+aiosqlite:////data/database/old/app.db"} in worker["env"]


def test_what_the_engine_cannot_do_is_refused_by_name() -> None:
    outcome = decide(migration(parallelism=4))
    assert job_of(outcome) is None
    assert conditions(outcome)["Stalled"] == ("True", "UnsupportedField")
    assert "spec.parallelism" in next(each.message for each in outcome.status.conditions if each.type == "Stalled")


def test_the_same_state_gives_the_same_answer() -> None:
    resource, name = started()
    seen = observed(name, "Active", report(resource, "Running", progress={"rowsTotal": 10, "display": "50% (5/10)"}))
    first = decide(resource, seen)
    again = decide(migration(status=first.status), seen, now=NOW + timedelta(minutes=5))
    assert again == first


def test_progress_is_copied_from_the_report() -> None:
    resource, name = started()
    running = report(resource, "Running", currentStep="indexes", progress={"rowsTotal": 10, "rowsCopied": 5})
    outcome = decide(resource, observed(name, "Active", running))
    assert outcome.status.progress.rows_copied == 5
    assert outcome.status.phase == "Running"
    assert conditions(outcome)["Reconciling"] == ("True", "Running")


def test_a_report_of_other_work_is_not_believed() -> None:
    resource, name = started()
    other = MigrationReport.model_validate({"workHash": "f" * 16, "phase": "Complete"})
    outcome = decide(resource, observed(name, "Active", other))
    assert outcome.status.phase == "Pending"
    assert conditions(outcome)["Ready"][0] == "False"


COMPARED = [{"name": "copy", "state": "Done", "verification": {"result": "Equal", "rows": 9, "ranges": 2}}]


def test_complete_is_ready_and_verified() -> None:
    resource, name = started()
    outcome = decide(resource, observed(name, "Succeeded", report(resource, "Complete", steps=COMPARED)))
    assert conditions(outcome)["Ready"] == ("True", "Complete")
    assert conditions(outcome)["Verified"] == ("True", "ContentEqual")
    assert "Reconciling" not in conditions(outcome)
    assert outcome.requeue_after is None


def test_a_finished_job_that_its_ttl_removed_is_not_run_again() -> None:
    resource, name = started()
    complete = report(resource, "Complete")
    done = decide(resource, observed(name, "Succeeded", complete))
    later = decide(migration(status=done.status), ObservedMigration(jobs={}, report=complete))
    assert job_of(later) is None
    assert conditions(later)["Ready"] == ("True", "Complete")


def test_a_job_that_somebody_deleted_in_mid_work_is_created_again_under_its_name() -> None:
    resource, name = started()
    job = job_of(decide(resource, ObservedMigration(jobs={}, report=report(resource, "Running"))))
    assert job is not None
    assert job["metadata"]["name"] == name


@pytest.mark.parametrize("change", [{"throttle": {"maxActiveBackends": 3}}, {"revision": 2}, {"mode": "Plan"}])
def test_another_spec_is_another_job(change: dict[str, Any]) -> None:
    resource, name = started()
    changed = migration(status=resource.status, **change)
    outcome = decide(changed, observed(name, "Active", report(resource, "Running")))
    assert ("Job", name) not in outcome.retained
    job = job_of(outcome)
    assert job is not None
    assert job["metadata"]["name"] != name


def _failed(retry: str) -> dict[str, str]:
    return {"reason": "DatabaseUnreachable", "message": "db:5432 refuses connections", "retry": retry}


@pytest.mark.parametrize(
    ("retry", "condition", "reason"),
    [("Soon", "Reconciling", "ProgressingWithRetry"), ("WhenMended", "Stalled", "DatabaseUnreachable")],
)
def test_a_failed_job_is_replaced_after_a_growing_delay(retry: str, condition: str, reason: str) -> None:
    resource, name = started()
    delays = []
    for attempt in (1, 2, 3):
        failed = observed(name, "Failed", report(resource, "Interrupted", lastError=_failed(retry)))
        waiting = decide(resource, failed)
        assert conditions(waiting)["Ready"] == ("False", "DatabaseUnreachable")
        assert conditions(waiting)[condition] == ("True", reason)
        assert waiting.requeue_after is not None
        delays.append(waiting.requeue_after)
        assert waiting.status.run is not None
        assert waiting.status.run.attempt == attempt
        next_one = decide(migration(status=waiting.status), failed, now=NOW + waiting.requeue_after)
        assert next_one.status.run is not None
        assert next_one.status.run.attempt == attempt + 1
        assert next_one.status.run.job != name
        resource, name = migration(status=next_one.status), next_one.status.run.job
    assert delays == [timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=40)]


def test_a_failure_that_only_a_changed_spec_mends_is_not_tried_again() -> None:
    resource, name = started()
    failed = observed(name, "Failed", report(resource, "Failed", lastError=_failed("Never")))
    outcome = decide(resource, failed, now=NOW + timedelta(days=1))
    assert conditions(outcome)["Stalled"] == ("True", "DatabaseUnreachable")
    assert outcome.status.run is not None
    assert outcome.status.run.attempt == 1
    assert outcome.requeue_after is None


def test_a_succeeded_job_whose_report_is_lost_is_followed_by_another() -> None:
    resource, name = started()
    outcome = decide(resource, observed(name, "Succeeded"), now=NOW + timedelta(minutes=1))
    assert outcome.status.run is not None
    assert outcome.status.run.attempt == 2


def test_a_job_that_is_there_is_never_written_again() -> None:
    resource, name = started()
    outcome = decide(resource, observed(name, "Active", report(resource, "Running")))
    assert job_of(outcome) is None
    assert set(outcome.retained) == {("Job", name), ("ConfigMap", name)}


def test_a_lost_file_of_a_job_at_work_is_made_again() -> None:
    resource, name = started()
    seen = ObservedMigration(jobs={name: ObservedJob(name=name, state="Waiting", has_file=False)})
    assert [child["metadata"]["name"] for child in decide(resource, seen).children if child["kind"] == "ConfigMap"] == [
        "move-report",
        name,
    ]


@pytest.mark.parametrize(("switch", "phase"), [("suspend", "Suspended"), ("cancel", "Cancelled")])
def test_a_pause_removes_the_job_and_resuming_brings_the_same_one_back(switch: str, phase: str) -> None:
    resource, name = started()
    paused = decide(migration(status=resource.status, annotations=None, **{switch: True}), observed(name, "Active"))
    assert job_of(paused) is None
    assert paused.retained == ()
    assert paused.status.phase == phase
    assert conditions(paused)["Ready"] == ("False", phase)
    resumed = job_of(decide(migration(status=paused.status)))
    assert resumed is not None
    assert resumed["metadata"]["name"] == name


@pytest.mark.parametrize("switch", ["suspend", "cancel"])
def test_pausing_a_complete_migration_changes_nothing(switch: str) -> None:
    resource, name = started()
    complete = observed(name, "Succeeded", report(resource, "Complete"))
    done = decide(resource, complete)
    outcome = decide(migration(status=done.status, annotations=None, **{switch: True}), complete)
    assert outcome == done


def test_manual_approval_waits_for_the_plans_hash() -> None:
    resource, name = started(approval={"mode": "Manual"})
    plan = {"hash": "0123456789abcdef", "steps": []}
    waiting = decide(resource, observed(name, "Succeeded", report(resource, "AwaitingApproval", plan=plan)))
    assert conditions(waiting)["Stalled"] == ("True", "AwaitingApproval")
    assert conditions(waiting)["Approved"] == ("False", "AwaitingApproval")
    approved = migration(status=waiting.status, approval={"mode": "Manual", "planHash": "0123456789abcdef"})
    outcome = decide(approved, observed(name, "Succeeded", report(resource, "AwaitingApproval", plan=plan)))
    job = job_of(outcome)
    assert job is not None
    assert job["metadata"]["name"] != name
    assert conditions(outcome)["Approved"] == ("True", "PlanApproved")


def test_an_approval_names_what_can_lose_data() -> None:
    resource, name = started(approval={"mode": "Manual"})
    steps = [{"name": "copy", "action": "copy"}, {"name": "drop-old", "action": "drop", "destructive": True}]
    plan = {"hash": "0123456789abcdef", "steps": steps}
    waiting = decide(resource, observed(name, "Succeeded", report(resource, "AwaitingApproval", plan=plan)))
    [message] = [each.message for each in waiting.status.conditions if each.type == "Stalled"]
    assert message == ("read status.plan (destructive: drop-old), then set spec.approval.planHash to 0123456789abcdef")


def test_a_pod_that_cannot_start_says_why() -> None:
    resource, name = started()
    seen = observed(name, "Waiting", trouble=PodTrouble("SecretNotFound", "Secret db does not exist"))
    assert conditions(decide(resource, seen))["Stalled"] == ("True", "SecretNotFound")


def test_content_that_differs_is_never_verified() -> None:
    resource, name = started()
    steps = [{"name": "copy", "state": "Failed", "verification": {"result": "Different", "differentRanges": 1}}]
    error = {"reason": "VerificationFailed", "message": "1 range differs", "retry": "Never"}
    seen = observed(name, "Failed", report(resource, "Failed", steps=steps, lastError=error))
    outcome = decide(resource, seen)
    assert conditions(outcome)["Verified"] == ("False", "ContentDiffers")
    assert conditions(outcome)["Stalled"] == ("True", "VerificationFailed")


def test_a_throttle_is_shown() -> None:
    resource, name = started()
    throttled = report(resource, "Running", throttle={"reason": "ReplicaLag", "message": "5 s behind, at most 1 s"})
    outcome = decide(resource, observed(name, "Active", throttled))
    assert conditions(outcome)["Throttled"] == ("True", "ReplicaLag")


def test_repaired_rows_are_an_event_once() -> None:
    resource, name = started()
    steps = [{"name": "copy", "state": "Done", "verification": {"result": "Equal", "rows": 9, "repaired": 2}}]
    seen = observed(name, "Succeeded", report(resource, "Complete", steps=steps))
    outcome = decide(resource, seen)
    assert [(event.type, event.reason) for event in outcome.events] == [("Warning", "RowsRepaired")]
    assert "2 rows" in outcome.events[0].message
    assert decide(migration(status=outcome.status), seen).events == ()


def test_a_raised_retry_of_rejects_is_another_job() -> None:
    resource, name = started()
    complete = observed(name, "Succeeded", report(resource, "Complete", steps=COMPARED))
    done = decide(resource, complete)
    outcome = decide(migration(status=done.status, rejects={"retry": 1}), complete)
    job = job_of(outcome)
    assert job is not None
    assert job["metadata"]["name"] != name


def test_a_rollback_of_a_complete_migration_is_another_job_and_holds_back_rollouts_at_once() -> None:
    resource, name = started()
    complete = observed(name, "Succeeded", report(resource, "Complete", steps=COMPARED))
    done = decide(resource, complete)
    outcome = decide(migration(status=done.status, rollback=True), complete)
    job = job_of(outcome)
    assert job is not None
    assert job["metadata"]["name"] != name
    assert outcome.status.phase == "Pending"
    assert conditions(outcome)["Ready"][0] == "False"
    assert conditions(outcome)["Verified"] == ("False", "RolledBack")


def test_rolled_back_is_ready_and_taking_it_back_copies_anew() -> None:
    resource, name = started(rollback=True)
    steps = [{"name": "copy", "state": "Pending", "rowsRemoved": 7}]
    rolled_back = observed(name, "Succeeded", report(resource, "RolledBack", steps=steps))
    outcome = decide(resource, rolled_back)
    assert outcome.status.phase == "RolledBack"
    assert conditions(outcome)["Ready"] == ("True", "RolledBack")
    assert conditions(outcome)["Verified"] == ("False", "RolledBack")
    assert outcome.requeue_after is None
    again = decide(migration(status=outcome.status), rolled_back)
    assert again.status.phase == "Pending"
    assert conditions(again)["Ready"][0] == "False"
    job = job_of(again)
    assert job is not None
    assert job["metadata"]["name"] != name


def test_a_rollback_whose_report_is_lost_is_run_again() -> None:
    resource, name = started(rollback=True)
    seen = observed(name, "Succeeded", report(resource, "Complete", steps=COMPARED))
    outcome = decide(resource, seen, now=NOW + timedelta(minutes=1))
    assert outcome.status.run is not None
    assert outcome.status.run.attempt == 2


UNTIL = NOW + timedelta(days=30)


def test_a_kept_table_is_ready_and_verified_and_its_drop_is_due_later() -> None:
    resource, name = started()
    kept = report(resource, "Retaining", steps=COMPARED, retainedUntil=UNTIL.isoformat())
    outcome = decide(resource, observed(name, "Succeeded", kept))
    assert outcome.status.phase == "Retaining"
    assert conditions(outcome)["Ready"] == ("True", "Retaining")
    assert conditions(outcome)["Verified"] == ("True", "ContentEqual")
    assert "2026-04-01T12:00:00Z" in next(each.message for each in outcome.status.conditions if each.type == "Ready")
    assert outcome.requeue_after == timedelta(days=30)
    assert job_of(outcome) is None


def test_when_it_is_due_another_job_drops_it() -> None:
    resource, name = started()
    kept = report(resource, "Retaining", steps=COMPARED, retainedUntil=UNTIL.isoformat())
    waiting = decide(resource, observed(name, "Succeeded", kept))
    # Its time to live removed the first Job long ago.
    due = decide(migration(status=waiting.status), ObservedMigration(jobs={}, report=kept), now=UNTIL)
    job = job_of(due)
    assert job is not None
    assert job["metadata"]["name"] != name
    assert due.status.run is not None
    assert due.status.run.attempt == 2

    resource, name = migration(status=due.status), due.status.run.job
    complete = report(resource, "Complete", steps=COMPARED)
    outcome = decide(resource, observed(name, "Succeeded", complete), now=UNTIL)
    assert conditions(outcome)["Ready"] == ("True", "Complete")
    assert outcome.requeue_after is None


def test_a_database_whose_clock_is_behind_is_asked_again_with_growing_pauses() -> None:
    resource, name = started()
    kept = report(resource, "Retaining", steps=COMPARED, retainedUntil=(NOW - timedelta(seconds=1)).isoformat())
    outcome = decide(resource, observed(name, "Succeeded", kept))
    assert job_of(outcome) is None
    assert outcome.requeue_after == timedelta(seconds=10)


def test_a_suspended_migration_drops_nothing() -> None:
    resource, name = started()
    kept = report(resource, "Retaining", steps=COMPARED, retainedUntil=NOW.isoformat())
    waiting = decide(resource, observed(name, "Succeeded", kept))
    suspended = migration(status=waiting.status, annotations=None, suspend=True)
    outcome = decide(suspended, observed(name, "Succeeded", kept), now=NOW + timedelta(days=1))
    assert job_of(outcome) is None
    assert outcome.status.phase == "Suspended"


def test_a_source_in_a_file_is_mounted_read_only_and_one_elsewhere_comes_from_its_secret() -> None:
    outcome = decide(migration(source={"sqlite": {"claimName": "legacy", "path": "old/app.db"}}))
    job = job_of(outcome)
    assert job is not None
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert {"name": "source", "persistentVolumeClaim": {"claimName": "legacy"}} in pod["volumes"]
    assert {"name": "source", "mountPath": "/data/source", "readOnly": True} in container["volumeMounts"]
    variables = {each["name"]: each for each in container["env"]}
    assert variables["SOURCE_DATABASE_URL"]["value"] == "sqlite+aiosqlite:////data/source/old/app.db"

    job = job_of(decide(migration(source={"urlFrom": {"name": "old", "key": "url"}})))
    assert job is not None
    pod = job["spec"]["template"]["spec"]
    variables = {each["name"]: each for each in pod["containers"][0]["env"]}
    assert variables["SOURCE_DATABASE_URL"]["valueFrom"] == {"secretKeyRef": {"name": "old", "key": "url"}}
    assert [each["name"] for each in pod["volumes"]] == ["migration", "tmp"]


def test_a_file_that_is_changed_is_mounted_for_writing() -> None:
    job = job_of(decide(migration(database={"sqlite": {"claimName": "data", "path": "app.db"}})))
    assert job is not None
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert {"name": "database", "mountPath": "/data/database"} in container["volumeMounts"]
