"""What is true of a migration now: its Jobs, its pods and the worker's report, all from the watch cache."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from shipkeeper.resources.migrationjob import MigrationJob
from shipkeeper.resources.migrationjob_status import MigrationReport
from shipkeeper_operator.children.metadata import OWNER_LABELS
from shipkeeper_operator.children.migrationjob import KIND, REPORT_KEY, report_name
from shipkeeper_operator.reconcile.migration_facts import JobState, ObservedJob, ObservedMigration
from shipkeeper_operator.reconcile.pods import trouble

from .reader import ClusterReader, Object


async def observe(resource: MigrationJob, reader: ClusterReader) -> ObservedMigration:
    """Read the migration's Jobs, pods and report."""
    metadata = resource.metadata
    files = {each["metadata"]["name"] for each in reader.children("ConfigMap", metadata.uid)}
    jobs = [_observed_job(job, files=files) for job in reader.children("Job", metadata.uid)]
    report, error = _read_report(reader.get("ConfigMap", metadata.namespace, report_name(resource)))
    pods = reader.pods(metadata.namespace, {OWNER_LABELS[KIND]: metadata.name})
    live = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return ObservedMigration(
        jobs={job.name: job for job in jobs}, report=report, report_error=error, trouble=trouble(live)
    )


def _observed_job(job: Object, *, files: set[str]) -> ObservedJob:
    name = job["metadata"]["name"]
    status = job.get("status", {})
    finished = {each["type"]: each for each in status.get("conditions", []) if each.get("status") == "True"}
    state: JobState = "Waiting"
    if "Complete" in finished:
        state = "Succeeded"
    elif "Failed" in finished:
        state = "Failed"
    elif status.get("ready"):
        state = "Active"
    end = finished.get("Complete") or finished.get("Failed")
    return ObservedJob(
        name=name,
        state=state,
        has_file=name in files,
        failure=_failure(finished.get("Failed")),
        finished_at=datetime.fromisoformat(end["lastTransitionTime"]) if end else None,
    )


def _failure(condition: Mapping[str, Any] | None) -> str:
    if condition is None:
        return ""
    return f"{condition.get('reason', 'Failed')}: {condition.get('message', '')}"


def _read_report(configmap: Object | None) -> tuple[MigrationReport | None, str]:
    text = (configmap or {}).get("data", {}).get(REPORT_KEY)
    if text is None:
        return None, ""
    try:
        return MigrationReport.model_validate(json.loads(text)), ""
    except (ValueError, ValidationError) as error:
        return None, f"the worker's report cannot be read: {error}"
