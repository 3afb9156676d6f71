"""The program of a migration's pod: runs the engine on what the mounted file says, and reports into a ConfigMap.

It is told everything by its environment: SHIPKEEPER_MIGRATION_FILE (the resource as YAML), SHIPKEEPER_NAMESPACE and
SHIPKEEPER_REPORT (the ConfigMap it may write), DATABASE_URL and, where there is another source, SOURCE_DATABASE_URL
(from the Secrets, read by nobody else). How it ends tells
the Job controller whether another pod may succeed: see shipkeeper.migrations.exitcodes.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.aio import client, config
from prometheus_client import start_http_server
from pydantic import ValidationError

from shipkeeper.migrations import exitcodes
from shipkeeper.migrations.database import DatabaseUrl, parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.migrations.errors import MigrationError, last_error
from shipkeeper.migrations.metrics import MeteredSink
from shipkeeper.migrations.reporting import ReportSink
from shipkeeper.resources.migrationjob import KIND, MigrationJob
from shipkeeper.resources.migrationjob_status import MigrationReport, Phase
from shipkeeper_operator.children.migrationjob import REPORT_KEY
from shipkeeper_operator.logs import configure_logging

_LOG: Final = logging.getLogger(__name__)
_FIELD_MANAGER: Final = "shipkeeper-worker"
_METRICS_PORT: Final = 8080
_REQUEST_SECONDS: Final = 10
_EXIT_CODES: Final[Mapping[Phase, int]] = {
    "Complete": exitcodes.COMPLETE,
    "Planned": exitcodes.COMPLETE,
    "AwaitingApproval": exitcodes.COMPLETE,
    "Retaining": exitcodes.COMPLETE,
    "RolledBack": exitcodes.COMPLETE,
}


@dataclass(frozen=True)
class WorkerEnvironment:
    """What the pod's environment says."""

    file: Path
    namespace: str
    report: str
    database_url: str
    source_database_url: str = ""

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "WorkerEnvironment":
        """Read the environment.

        Raises MigrationError naming the variable that is missing.
        """

        def required(name: str) -> str:
            if not variables.get(name):
                raise MigrationError("WorkerMisconfigured", f"the variable {name} is not set", retry="WhenMended")
            return variables[name]

        return cls(
            file=Path(required("SHIPKEEPER_MIGRATION_FILE")),
            namespace=required("SHIPKEEPER_NAMESPACE"),
            report=required("SHIPKEEPER_REPORT"),
            database_url=variables.get("DATABASE_URL", ""),
            source_database_url=variables.get("SOURCE_DATABASE_URL", ""),
        )


class ConfigMapSink:
    """Writes reports into one ConfigMap by server-side apply, as a field manager of its own."""

    def __init__(self, api: client.CoreV1Api, *, namespace: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name

    async def write(self, report: MigrationReport) -> None:
        """Write the report. The ledger holds the truth, so a failure here must not stop the migration."""
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "data": {REPORT_KEY: report.model_dump_json(by_alias=True, exclude_none=True)},
        }
        try:
            await self._api.patch_namespaced_config_map(
                self._name,
                self._namespace,
                body,
                field_manager=_FIELD_MANAGER,
                force=True,
                _content_type="application/apply-patch+yaml",
                _request_timeout=_REQUEST_SECONDS,
            )
        except Exception as error:
            reason = getattr(error, "reason", "") or type(error).__name__
            _LOG.warning("the report could not be written: %s", reason)


def read_migration(path: Path) -> MigrationJob:
    """Read the resource.

    Raises MigrationError naming the fields that are wrong.
    """
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return KIND.parse(document)
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
        raise MigrationError("SpecInvalid", fields, retry="Never") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MigrationError("SpecInvalid", f"{path} cannot be read: {error}", retry="Never") from error


async def run_worker(environment: WorkerEnvironment, sink: ReportSink, *, stop: asyncio.Event) -> int:
    """Run the migration and return the exit code."""
    resource = read_migration(environment.file)
    try:
        url = database_url(environment.database_url)
        has_source = resource.spec.source is not None
        source_url = database_url(environment.source_database_url) if has_source else None
    except MigrationError as error:
        report = MigrationReport(
            revision=resource.spec.revision,
            work_hash=resource.spec.work_hash(),
            phase="Failed",
            last_error=last_error(error),
        )
        await sink.write(report)
        return _exit_code_of(error)
    name = f"{resource.metadata.namespace}/{resource.metadata.name}"
    try:
        migration = Migration(resource.spec, name=name, url=url, sink=sink, stop=stop, source_url=source_url)
        phase = await migration.run()
    except MigrationError as error:
        return _exit_code_of(error)
    _LOG.info("ended: %s", phase)
    return _EXIT_CODES.get(phase, exitcodes.RETRY)


def database_url(text: str) -> DatabaseUrl:
    """Read the URL from the Secret.

    Raises MigrationError (DatabaseUrlInvalid), which does not quote it.
    """
    if not text.strip():
        raise MigrationError("DatabaseUrlInvalid", "the Secret's key is empty: put the URL there", retry="WhenMended")
    return parse_url(text)


def _exit_code_of(error: MigrationError) -> int:
    _LOG.error("%s: failed, retry %s", error.reason, error.retry)
    return exitcodes.RETRY if error.retry == "Soon" else exitcodes.USER_ERROR


async def _run() -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    try:
        environment = WorkerEnvironment.read(os.environ)
        config.load_incluster_config()
        async with client.ApiClient() as api_client:
            api = client.CoreV1Api(api_client)
            sink = ConfigMapSink(api, namespace=environment.namespace, name=environment.report)
            return await run_worker(environment, MeteredSink(sink), stop=stop)
    except MigrationError as error:
        _LOG.error("%s: %s", error.reason, error.message)
        return _exit_code_of(error)


def main() -> None:
    """Run as the program `shipkeeper-worker`."""
    configure_logging(os.environ.get("SHIPKEEPER_LOG_LEVEL", "INFO"))
    start_http_server(_METRICS_PORT)
    sys.exit(asyncio.run(_run()))
