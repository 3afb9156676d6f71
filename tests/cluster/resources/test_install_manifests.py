"""What `kubectl apply -k` and the chart install, put to a real API server: every object is one that it takes."""

import subprocess

import pytest

from demo.kubectl import Kubectl
from localcluster import programs
from support.apiserver import REPOSITORY, ApiServer

NAMESPACE = "shipkeeper-system"


@pytest.fixture(scope="module")
def installation_namespace(api_server: ApiServer) -> str:
    """The namespace must be there: a dry run stores none."""
    api_server.kubectl.run("apply", "--server-side", "-f", str(REPOSITORY / "manifests" / "base" / "namespace.yaml"))
    return NAMESPACE


@pytest.mark.parametrize("folder", ["base", "overlays/local"])
def test_the_api_server_takes_the_kustomization(kubectl: Kubectl, installation_namespace: str, folder: str) -> None:
    said = kubectl.run(
        *("apply", "--server-side", "--dry-run=server", "--force-conflicts"),
        *("--kustomize", str(REPOSITORY / "manifests" / folder)),
    )
    assert "deployment.apps/shipkeeper-operator serverside-applied (server dry run)" in said


def test_the_api_server_takes_the_chart(kubectl: Kubectl, installation_namespace: str) -> None:
    chart = str(REPOSITORY / "charts" / "shipkeeper")
    helm = str(programs.ensure(["helm"])["helm"])
    command = [helm, "template", "shipkeeper", chart, "--namespace", installation_namespace]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    said = kubectl.run(
        *("apply", "--server-side", "--dry-run=server", "--force-conflicts", "--namespace", installation_namespace),
        *("--filename", "-"),
        stdin=rendered,
    )
    assert "deployment.apps/shipkeeper" in said
    assert "customresourcedefinition.apiextensions.k8s.io/migrationjobs.shipkeeper.dev" in said
