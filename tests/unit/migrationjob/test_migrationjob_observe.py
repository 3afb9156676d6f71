"""What the observer reads of a migration from the watch cache."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from shipkeeper.resources.base import API_VERSION
from shipkeeper.resources.migrationjob import KIND
from shipkeeper_operator.cache import WatchCache
from shipkeeper_operator.observe.migrationjob import observe
from shipkeeper_operator.observe.reader import ClusterReader
from shipkeeper_operator.reconcile.migration_facts import ObservedMigration

OWNER = "0d2c"
MANIFEST: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "MigrationJob",
    "metadata": {"name": "move", "namespace": "shop", "uid": OWNER, "generation": 1},
    "spec": {
        "database": {"urlFrom": {"name": "db", "key": "url"}},
        "steps": [
            {
                "name": "indexes",
                "createIndexes": {"indexes": [{"name": "by_name", "table": "people", "keys": [{"column": "name"}]}]},
            }
        ],
    },
}


def child(kind: str, name: str, **parts: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "shop",
        "uid": f"{kind}-{name}",
        "resourceVersion": "7",
        "ownerReferences": [{"apiVersion": API_VERSION, "kind": "MigrationJob", "name": "move", "uid": OWNER}],
        **parts.pop("metadata", {}),
    }
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **parts}


def seen(*objects: dict[str, Any]) -> ObservedMigration:
    cache = WatchCache()
    for each in objects:
        cache.put(each)
    # The cache is what answers an observer; only Secrets, which this one never reads, come from elsewhere.
    return asyncio.run(observe(KIND.parse(MANIFEST), cast(ClusterReader, cache)))


def test_nothing_is_there_yet() -> None:
    assert seen() == ObservedMigration(jobs={})


def finished(type_: str, **fields: str) -> dict[str, Any]:
    return {"type": type_, "status": "True", "lastTransitionTime": "2026-03-02T12:00:00Z", **fields}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, "Waiting"),
        ({"active": 1, "ready": 0}, "Waiting"),
        ({"active": 1, "ready": 1}, "Active"),
        ({"conditions": [finished("Complete")]}, "Succeeded"),
        ({"conditions": [finished("Failed", reason="PodFailurePolicy", message="exit code 65")]}, "Failed"),
        ({"conditions": [{**finished("Failed"), "status": "False"}]}, "Waiting"),
    ],
)
def test_the_state_of_a_job(status: dict[str, Any], state: str) -> None:
    (job,) = seen(child("Job", "move-1", status=status), child("ConfigMap", "move-1")).jobs.values()
    assert (job.name, job.state, job.has_file) == ("move-1", state, True)
    ended = state in ("Succeeded", "Failed")
    assert job.finished_at == (datetime(2026, 3, 2, 12, tzinfo=UTC) if ended else None)
    assert job.failure == ("PodFailurePolicy: exit code 65" if state == "Failed" else "")


def test_a_job_without_its_file() -> None:
    assert not seen(child("Job", "move-1", status={})).jobs["move-1"].has_file


def test_the_report_is_read_from_its_configmap() -> None:
    report = {"revision": 1, "phase": "Running", "progress": {"rowsTotal": 10, "rowsCopied": 4}}
    found = seen(child("ConfigMap", "move-report", data={"report.json": json.dumps(report)}))
    assert found.report is not None
    assert (found.report.phase, found.report.progress.rows_copied) == ("Running", 4)
    assert found.report_error == ""


@pytest.mark.parametrize("text", ["{", '{"phase": "Nowhere"}', "[]"])
def test_a_report_that_cannot_be_read_is_said(text: str) -> None:
    found = seen(child("ConfigMap", "move-report", data={"report.json": text}))
    assert found.report is None
    assert "cannot be read" in found.report_error


def worker_pod(name: str, **metadata: Any) -> dict[str, Any]:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "db" not found'}
    return child(
        "Pod",
        name,
        metadata={"labels": {"shipkeeper.dev/migrationjob": "move"}, **metadata},
        status={"containerStatuses": [{"name": "worker", "state": {"waiting": waiting}}]},
    )


def test_the_trouble_of_a_pod_is_seen_until_it_goes() -> None:
    found = seen(worker_pod("a"))
    assert found.trouble is not None
    assert found.trouble.reason == "SecretNotFound"
    assert seen(worker_pod("a", deletionTimestamp="2026-03-02T12:00:00Z")).trouble is None
