"""A cluster that runs the Prometheus operator: its kinds are used instead of annotations, and cleared away again."""

import sys
from collections.abc import Iterator

import pytest

from demo.kubectl import Kubectl
from localcluster.controlplane import ControlPlane
from support.apiserver import REPOSITORY, ApiServer, eventually
from support.operator_process import OperatorProcess

from .conftest import Applications

GROUP = "monitoring.coreos.com"


def definition(kind: str, plural: str) -> dict[str, object]:
    """Return a CRD of the Prometheus operator's name that takes any spec."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


@pytest.fixture
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Run a control plane of its own: the shared one knows nothing of Prometheus, as most clusters."""
    control_plane = ControlPlane(tmp_path_factory.mktemp("monitored"))
    control_plane.start()
    try:
        server = ApiServer(control_plane)
        server.kubectl.apply(
            definition("ServiceMonitor", "servicemonitors"), definition("PrometheusRule", "prometheusrules")
        )
        server.install_crds()
        yield server
    finally:
        control_plane.remove()


def test_prometheus_operators_kinds_are_used_where_they_are_known(monitored: ApiServer) -> None:
    kubectl: Kubectl = monitored.kubectl
    namespace = monitored.create_namespace()
    apps = Applications(kubectl, namespace)
    command = (sys.executable, "-m", "support.appdeployment_operator")
    environment = {"PYTHONPATH": str(REPOSITORY / "tests")}
    with OperatorProcess(monitored, namespace=namespace, command=command, environment=environment) as operator:
        operator.wait_leading()
        apps.apply("app", replicas=2, monitoring={"labels": {"release": "prometheus"}})
        monitor = eventually(lambda: apps.exists("servicemonitor", "app") and apps.get("servicemonitor", "app"))
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        assert apps.exists("prometheusrule", "app")
        template = eventually(lambda: apps.exists("Deployment", "app") and apps.get("Deployment", "app"))["spec"][
            "template"
        ]
        assert "prometheus.io/scrape" not in template["metadata"]["annotations"]
        eventually(
            lambda: (
                ("Monitoring", "ServiceMonitor")
                in {(each["name"], each["reason"]) for each in apps.status("app")["checks"]}
            )
        )
        apps.apply("app", replicas=2, monitoring={"alerts": "Disabled"})
        eventually(lambda: not apps.exists("prometheusrule", "app"), what="no PrometheusRule")
        assert apps.exists("servicemonitor", "app")
        apps.apply("app", replicas=2, monitoring={"mode": "Annotations"})
        eventually(lambda: not apps.exists("servicemonitor", "app"), what="no ServiceMonitor")
