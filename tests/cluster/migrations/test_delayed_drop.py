"""A retired table is dropped by a second Job, which the operator starts when the retention has passed."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import yaml

from demo.kubectl import Kubectl
from shipkeeper.migrations import exitcodes
from shipkeeper.resources.migrationjob import KIND, MigrationJob
from shipkeeper_operator.children.migrationjob import report_name
from shipkeeper_operator.migration_worker import ConfigMapSink, WorkerEnvironment, run_worker
from support.apiserver import ApiServer, eventually
from support.birthday_data import SQLITE_SCHEMA, generate
from support.migration_databases import SAMPLE, load_sqlite
from support.operator_process import OperatorProcess
from support.worker_client import worker_client


class Pods:
    """A hand that plays the kubelet for the worker's pods."""

    def __init__(self, api_server: ApiServer, namespace: str, folder: Path) -> None:
        self._api_server = api_server
        self._kubectl: Kubectl = api_server.kubectl
        self._namespace = namespace
        self._folder = folder

    def jobs(self) -> list[str]:
        """Return the names of the Jobs."""
        return [job["metadata"]["name"] for job in self._kubectl.list("jobs", namespace=self._namespace)]

    def next_job(self, *, after: str = "") -> str:
        """Wait for a Job other than that one."""
        found: list[str] = eventually(
            lambda: [name for name in self.jobs() if name != after], timeout=60, what="another Job"
        )
        return found[0]

    async def work(self, resource: MigrationJob, job: str) -> None:
        """Run the real worker with what the Job's pod would be told, then say that the pod has succeeded."""
        told = self._kubectl.get("configmap", job, namespace=self._namespace)
        assert told is not None
        file = self._folder / f"{job}.yaml"
        file.write_text(told["data"]["migration.yaml"])
        variables = {
            "SHIPKEEPER_MIGRATION_FILE": str(file),
            "SHIPKEEPER_NAMESPACE": self._namespace,
            "SHIPKEEPER_REPORT": report_name(resource),
            "DATABASE_URL": f"sqlite+aiosqlite:///{self._folder / 'app.db'}",
        }
        async with worker_client(self._api_server, resource, self._folder) as api:
            sink = ConfigMapSink(api, namespace=self._namespace, name=report_name(resource))
            code = await run_worker(WorkerEnvironment.read(variables), sink, stop=asyncio.Event())
        assert code == exitcodes.COMPLETE
        selector = f"batch.kubernetes.io/job-name={job}"
        pods: list[Any] = eventually(
            lambda: self._kubectl.list("pods", namespace=self._namespace, selector=selector), what=f"a pod of {job}"
        )
        patch = json.dumps({"status": {"phase": "Succeeded"}})
        name = pods[0]["metadata"]["name"]
        self._kubectl.run(
            "patch", "pod", name, "-n", self._namespace, "--subresource=status", "--type=merge", "-p", patch
        )


async def test_the_operator_starts_the_job_that_drops_the_table(
    api_server: ApiServer, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> None:
    load_sqlite(tmp_path / "app.db", SQLITE_SCHEMA, generate(rows=50, seed=120, odd=0))
    manifest = yaml.safe_load(SAMPLE.read_text())
    manifest["metadata"]["namespace"] = namespace
    retire = {"table": "birthday_messages", "action": "Drop", "retention": "20s"}
    manifest["spec"]["steps"].append({"name": "retire", "retire": retire})
    kubectl.apply(manifest)
    name = manifest["metadata"]["name"]
    pods = Pods(api_server, namespace, tmp_path)

    def status() -> dict[str, Any]:
        found = kubectl.get("migrationjob", name, namespace=namespace) or {}
        answer: dict[str, Any] = found.get("status", {})
        return answer

    with OperatorProcess(api_server, namespace=namespace) as operator:
        operator.wait_leading()
        first = pods.next_job()
        resource = KIND.parse(kubectl.get("migrationjob", name, namespace=namespace) or {})
        await pods.work(resource, first)
        eventually(
            lambda: ready(status()) == ("True", "Retaining"), timeout=60, what=f"the table is kept; status {status()}"
        )
        assert status()["phase"] == "Retaining"
        assert "retainedUntil" in status()
        assert tables(tmp_path) >= {"birthday_messages_retired"}

        second = await asyncio.to_thread(pods.next_job, after=first)
        await pods.work(resource, second)
        eventually(lambda: ready(status()) == ("True", "Complete"), timeout=60, what=f"complete; status {status()}")
        assert status()["run"]["attempt"] == 2
        assert "birthday_messages_retired" not in tables(tmp_path)


def ready(status: dict[str, Any]) -> tuple[str, str]:
    """Return what the condition Ready says."""
    found = next((each for each in status.get("conditions", []) if each["type"] == "Ready"), None)
    return (found["status"], found["reason"]) if found is not None else ("absent", "absent")


def tables(folder: Path) -> set[str]:
    """Return the names of the file's tables."""
    connection = sqlite3.connect(folder / "app.db")
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    return names
