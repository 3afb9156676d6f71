"""A client with the rights of a migration's worker, and no other."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import yaml
from kubernetes.aio import client

from shipkeeper.resources.migrationjob import MigrationJob
from shipkeeper_operator.children.migrationjob import worker_name

from .apiserver import ApiServer


@asynccontextmanager
async def worker_client(api_server: ApiServer, resource: MigrationJob, folder: Path) -> AsyncIterator[client.CoreV1Api]:
    """Talk to the API server with the worker's own token and no other right."""
    namespace = resource.metadata.namespace
    token = api_server.kubectl.run("create", "token", worker_name(resource), "-n", namespace).strip()
    configuration = client.Configuration()
    configuration.host, configuration.ssl_ca_cert = _address(Path(api_server.kubeconfig), folder)
    configuration.api_key = {"BearerToken": f"Bearer {token}"}
    async with client.ApiClient(configuration) as api_client:
        yield client.CoreV1Api(api_client)


def _address(kubeconfig: Path, folder: Path) -> tuple[str, str]:
    cluster = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]
    if "certificate-authority" in cluster:
        return cluster["server"], cluster["certificate-authority"]
    authority = folder / "ca.crt"
    authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    return cluster["server"], str(authority)
