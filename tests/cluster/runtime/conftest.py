"""The test kind installed, and an operator for it per test."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.kubectl import Kubectl
from shipkeeper.resources.base import API_VERSION
from shipkeeper.resources.crd import custom_resource_definition
from support import widgets
from support.apiserver import ApiServer, eventually
from support.operator_process import OperatorProcess

_TESTS = Path(__file__).parents[2]
WIDGET_OPERATOR = (sys.executable, "-m", "support.widgets")


@pytest.fixture(scope="session")
def widget_api(api_server: ApiServer) -> ApiServer:
    """The API server with the test kind."""
    api_server.kubectl.apply(custom_resource_definition(widgets.KIND))
    api_server.kubectl.run("wait", "--for=condition=Established", "crd/widgets.shipkeeper.dev", "--timeout=30s")
    return api_server


@pytest.fixture
def new_operator(widget_api: ApiServer, namespace: str, tmp_path: Path) -> Callable[..., OperatorProcess]:
    """Return a maker of operators for the test's namespace."""

    def make(identity: str = "replica-a", **environment: str) -> OperatorProcess:
        return OperatorProcess(
            widget_api,
            namespace=namespace,
            command=WIDGET_OPERATOR,
            identity=identity,
            environment={"PYTHONPATH": str(_TESTS), widgets.STORE_VARIABLE: str(tmp_path), **environment},
            log=tmp_path / f"{identity}.log",
        )

    return make


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which Widgets keep what lies outside the cluster."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def operator(widget_api: ApiServer, store: Path) -> Iterator[OperatorProcess]:
    """An operator that leads and reconciles all namespaces, shared by the tests of a module."""
    namespace = widget_api.create_namespace("operator")
    with OperatorProcess(
        widget_api,
        namespace=namespace,
        command=WIDGET_OPERATOR,
        environment={
            "PYTHONPATH": str(_TESTS),
            "SHIPKEEPER_WATCH_NAMESPACES": "",
            widgets.STORE_VARIABLE: str(store),
        },
    ) as process:
        process.wait_leading()
        yield process
    widget_api.delete_namespace(namespace)


class Widgets:
    """The test's own Widgets."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self.kubectl = kubectl
        self.namespace = namespace

    def apply(self, name: str, **spec: Any) -> None:
        """Apply a Widget."""
        self.kubectl.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "Widget",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": spec,
            }
        )

    def get(self, name: str) -> dict[str, Any]:
        """Return a Widget, empty where there is none."""
        return self.kubectl.get("widget", name, namespace=self.namespace) or {}

    def is_ready(self, name: str) -> bool:
        """Whether the Widget is Ready at its current generation."""
        found = self.get(name)
        status = found.get("status", {})
        conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
        return conditions == {"Ready": "True"} and status["observedGeneration"] == found["metadata"]["generation"]

    def configmap(self, name: str) -> dict[str, Any] | None:
        """Return a ConfigMap."""
        return self.kubectl.get("configmap", name, namespace=self.namespace)


@pytest.fixture
def widget(kubectl: Kubectl, namespace: str) -> Iterator[Widgets]:
    """Apply and read Widgets in the test's namespace; they are deleted at its end, finalizers or not."""
    yield Widgets(kubectl, namespace)
    kubectl.run("delete", "widgets", "--all", "-n", namespace, "--wait=false", "--ignore-not-found")
    for left in kubectl.list("widgets", namespace=namespace):
        kubectl.patch("widget", left["metadata"]["name"], {"metadata": {"finalizers": None}}, namespace=namespace)


def settle(operator: OperatorProcess) -> dict[str, int]:
    """Return the writes once no pass was made for a second."""

    def is_quiet() -> bool:
        before = operator.metric("shipkeeper_reconcile_total")
        time.sleep(1)
        return operator.metric("shipkeeper_reconcile_total") == before

    eventually(is_quiet, timeout=60, what="an operator at rest")
    return operator.writes()


def condition(found: dict[str, object], type_: str) -> dict[str, str] | None:
    status = found.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    return next((each for each in conditions if each["type"] == type_), None)
