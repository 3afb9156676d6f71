"""The worker against a real API server, with the ServiceAccount and the Role that the operator makes for it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import client

from demo.kubectl import Kubectl
from shipkeeper.migrations import exitcodes
from shipkeeper.resources.migrationjob import KIND, MigrationJob
from shipkeeper.resources.migrationjob_status import MigrationReport
from shipkeeper_operator.children.migrationjob import REPORT_KEY, build_companions, report_name, worker_name
from shipkeeper_operator.migration_worker import ConfigMapSink, WorkerEnvironment, run_worker
from support.apiserver import ApiServer
from support.birthday_data import SQLITE_SCHEMA, expect, generate
from support.migration_databases import SAMPLE, load_sqlite
from support.worker_client import worker_client


def created(kubectl: Kubectl, namespace: str, **spec: Any) -> MigrationJob:
    """Create the sample in the namespace, with its worker's companions, and return it as the API server has it."""
    manifest = yaml.safe_load(SAMPLE.read_text())
    manifest["metadata"]["namespace"] = namespace
    manifest["spec"] |= spec
    kubectl.apply(manifest)
    found = kubectl.get("migrationjob", manifest["metadata"]["name"], namespace=namespace)
    assert found is not None
    resource = KIND.parse(found)
    kubectl.apply(*(dict(each) for each in build_companions(resource)))
    return resource


def sink(resource: MigrationJob, api: client.CoreV1Api) -> ConfigMapSink:
    """Return the sink that the worker's pod has."""
    return ConfigMapSink(api, namespace=resource.metadata.namespace, name=report_name(resource))


def environment(resource: MigrationJob, folder: Path, *, url: str) -> WorkerEnvironment:
    """Write the worker's file and return what its pod would tell it."""
    file = folder / "migration.yaml"
    document = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": resource.metadata.name, "namespace": resource.metadata.namespace},
        "spec": resource.spec.to_wire(),
    }
    file.write_text(yaml.safe_dump(document))
    variables = {
        "SHIPKEEPER_MIGRATION_FILE": str(file),
        "SHIPKEEPER_NAMESPACE": resource.metadata.namespace,
        "SHIPKEEPER_REPORT": report_name(resource),
        "DATABASE_URL": url,
    }
    return WorkerEnvironment.read(variables)


def reported(kubectl: Kubectl, resource: MigrationJob) -> tuple[MigrationReport, dict[str, Any]]:
    """Return the report, and the ConfigMap it stands in."""
    name, namespace = report_name(resource), resource.metadata.namespace
    output = kubectl.run("get", "configmap", name, "-n", namespace, "-o", "json", "--show-managed-fields")
    configmap = json.loads(output)
    return MigrationReport.model_validate_json(configmap["data"][REPORT_KEY]), configmap


async def test_report_reaches_the_configmap_by_the_workers_own_rights(
    api_server: ApiServer, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    legacy = generate(rows=400, seed=41)
    load_sqlite(tmp_path / "app.db", SQLITE_SCHEMA, legacy)
    resource = created(kubectl, namespace)
    told = environment(resource, tmp_path, url=f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")

    async with worker_client(api_server, resource, tmp_path) as api:
        assert await run_worker(told, sink(resource, api), stop=asyncio.Event()) == exitcodes.COMPLETE

    report, configmap = reported(kubectl, resource)
    assert report.phase == "Complete"
    assert report.work_hash == resource.spec.work_hash()
    assert report.progress.rows_copied == len(expect(legacy).copied)
    managers = {each["manager"]: each["operation"] for each in configmap["metadata"]["managedFields"]}
    assert managers["shipkeeper-worker"] == "Apply"
    # The operator's part of the ConfigMap is still there.
    assert configmap["metadata"]["ownerReferences"][0]["name"] == resource.metadata.name

    # Every field of the report is one that the CRD's status has.
    status = json.dumps({"status": report.to_wire()})
    patch = ("patch", "migrationjob", resource.metadata.name, "-n", namespace, "--subresource=status", "--type=merge")
    kubectl.run(*patch, "-p", status)
    stored = kubectl.get("migrationjob", resource.metadata.name, namespace=namespace)
    assert stored is not None
    assert MigrationReport.model_validate(stored["status"]) == report


async def test_worker_may_do_nothing_else(
    api_server: ApiServer, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    resource = created(kubectl, namespace)
    async with worker_client(api_server, resource, tmp_path) as api:
        for attempt in (
            api.list_namespaced_config_map(namespace),
            api.list_namespaced_secret(namespace),
            api.read_namespaced_secret("birthday-database", namespace),
            api.delete_namespaced_config_map(report_name(resource), namespace),
            api.read_namespaced_config_map("kube-root-ca.crt", namespace),
        ):
            with pytest.raises(client.ApiException) as refused:
                await attempt
            assert refused.value.status == 403


async def test_failures_end_with_the_exit_code_that_fits(
    api_server: ApiServer, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    resource = created(kubectl, namespace)
    secret = "hunter2hunter2"
    cases = [
        ("", "DatabaseUrlInvalid", "WhenMended", exitcodes.USER_ERROR),
        (f"mysql://app:{secret}@db/app", "DatabaseUrlInvalid", "WhenMended", exitcodes.USER_ERROR),
        (f"sqlite:///{tmp_path}/absent.db", "DatabaseMissing", "WhenMended", exitcodes.USER_ERROR),
    ]
    async with worker_client(api_server, resource, tmp_path) as api:
        for url, reason, retry, code in cases:
            told = environment(resource, tmp_path, url=url)
            assert await run_worker(told, sink(resource, api), stop=asyncio.Event()) == code
            report, configmap = reported(kubectl, resource)
            assert report.phase == "Failed"
            assert report.last_error is not None
            assert (report.last_error.reason, report.last_error.retry) == (reason, retry)
            assert secret not in json.dumps(configmap)


async def test_a_report_that_cannot_be_written_does_not_stop_the_work(
    api_server: ApiServer, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    load_sqlite(tmp_path / "app.db", SQLITE_SCHEMA, generate(rows=50, seed=42, odd=0))
    resource = created(kubectl, namespace)
    told = environment(resource, tmp_path, url=f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    kubectl.run("delete", "rolebinding", worker_name(resource), "-n", namespace)
    async with worker_client(api_server, resource, tmp_path) as api:
        assert await run_worker(told, sink(resource, api), stop=asyncio.Event()) == exitcodes.COMPLETE
