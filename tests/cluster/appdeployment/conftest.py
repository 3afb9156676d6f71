"""An application in a namespace of restricted Pod Security, its operator, and a hand that plays the kubelet."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from demo.kubectl import Kubectl
from demo.steps import DemoError
from support.apiserver import REPOSITORY, ApiServer, eventually
from support.operator_process import OperatorProcess

API_VERSION = "shipkeeper.dev/v1alpha1"


class Applications:
    """What a person does with AppDeployments, and what a kubelet does with their pods."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self.kubectl = kubectl
        self.namespace = namespace

    def apply(self, name: str, *, annotations: dict[str, str] | None = None, **spec: Any) -> None:
        self._apply("AppDeployment", name, {"image": "registry.test/app:1", **spec}, annotations=annotations)

    def require(self, kind: str, name: str) -> None:
        """Create a migration or a policy, without a status."""
        secret = {"urlFrom": {"name": "store", "key": "url"}}
        index = {"name": "idx_people_name", "table": "people", "keys": [{"column": "name"}]}
        specs: dict[str, dict[str, Any]] = {
            "MigrationJob": {
                "database": secret,
                "steps": [{"name": "indexes", "createIndexes": {"indexes": [index]}}],
            },
            "RateLimitPolicy": {"store": secret, "limits": [{"name": "day", "amount": 15, "period": "Day"}]},
        }
        self._apply(kind, name, specs[kind])

    def _apply(self, kind: str, name: str, spec: Any, *, annotations: dict[str, str] | None = None) -> None:
        metadata: dict[str, Any] = {"name": name, "namespace": self.namespace}
        if annotations:
            metadata["annotations"] = annotations
        self.kubectl.apply({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec})

    def write_status(self, kind: str, name: str, **conditions: str) -> None:
        """Write a requirement's status by hand, for its spec as it is now."""
        generation = self.get(kind, name)["metadata"]["generation"]
        written = [
            {
                "type": type_,
                "status": status,
                "reason": "ByHand",
                "message": "",
                "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for type_, status in conditions.items()
        ]
        self._patch_status(kind, name, {"observedGeneration": generation, "conditions": written})

    def _patch_status(self, kind: str, name: str, status: Any) -> None:
        patch = json.dumps({"status": status})
        self.kubectl.run("patch", kind, name, "-n", self.namespace, "--subresource=status", "--type=merge", "-p", patch)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found = self.kubectl.get(kind, name, namespace=self.namespace)
        assert found is not None, f"{kind} {name} does not exist"
        return found

    def exists(self, kind: str, name: str) -> bool:
        return self.kubectl.get(kind, name, namespace=self.namespace) is not None

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.get("AppDeployment", name).get("status", {})
        return status

    def condition(self, name: str, type_: str) -> dict[str, Any]:
        conditions = self.status(name).get("conditions", [])
        return next((each for each in conditions if each["type"] == type_), {"status": "absent", "reason": "absent"})

    def wait_for(self, name: str, *, reason: str, type_: str = "Ready") -> dict[str, Any]:
        """Wait until the condition has the reason; return it."""
        found: dict[str, Any] = eventually(
            lambda: (each := self.condition(name, type_))["reason"] == reason and each,
            what=f"{type_} of {name} with reason {reason}; status {self.status(name)}",
        )
        return found

    def pods(self, name: str) -> list[dict[str, Any]]:
        found = self.kubectl.list("pods", namespace=self.namespace, selector=f"shipkeeper.dev/appdeployment={name}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def say_ready(self, name: str) -> None:
        """Say of every pod, as a kubelet would, that it runs and is ready."""
        for pod in self.pods(name):
            if pod.get("status", {}).get("phase") != "Running":
                with suppress(DemoError):  # It may be gone by now.
                    self.say(pod, state={"running": {"startedAt": "2026-01-01T00:00:00Z"}}, ready=True, started=True)

    def say(self, pod: dict[str, Any], *, state: dict[str, Any], ready: bool = False, **said: Any) -> None:
        """Say of a pod's containers what a kubelet would."""
        statuses = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": ready,
                "restartCount": 0,
                "state": state,
                **said,
            }
            for container in pod["spec"]["containers"]
        ]
        conditions = [
            {"type": type_, "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
            for type_ in ("Ready", "ContainersReady")
        ]
        status = {"phase": "Running", "conditions": conditions, "containerStatuses": statuses}
        self._patch_status("pod", pod["metadata"]["name"], status)

    def roll_out(self, name: str) -> None:
        """Play the kubelet until the application is available."""

        def is_available() -> bool:
            self.say_ready(name)
            for pod in self.kubectl.list("pods", namespace=self.namespace):
                if "deletionTimestamp" in pod["metadata"]:
                    pod_name = pod["metadata"]["name"]
                    self.kubectl.run(
                        "delete", "pod", pod_name, "-n", self.namespace, "--force", "--grace-period=0",
                        "--ignore-not-found",
                    )  # fmt: skip
            return bool(self.condition(name, "Ready")["status"] == "True")

        eventually(is_available, timeout=60, what=f"{name} available; status {self.status(name)}")


@pytest.fixture
def restricted(api_server: ApiServer, namespace: str) -> str:
    """Give the test's namespace the restricted Pod Security."""
    api_server.kubectl.run("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return namespace


@pytest.fixture
def apps(kubectl: Kubectl, restricted: str) -> Iterator[Applications]:
    """Give the test a namespace to put applications into, and remove them before the namespace goes."""
    yield Applications(kubectl, restricted)
    kubectl.run("delete", "appdep", "--all", "-n", restricted)


@pytest.fixture(scope="module")
def operator(api_server: ApiServer) -> Iterator[OperatorProcess]:
    """Run the operator for all namespaces; it leaves migrations and policies to the test."""
    home = api_server.create_namespace("operator")
    command = (sys.executable, "-m", "support.appdeployment_operator")
    environment = {"PYTHONPATH": str(REPOSITORY / "tests"), "SHIPKEEPER_WATCH_NAMESPACES": ""}
    with OperatorProcess(api_server, namespace=home, command=command, environment=environment) as process:
        process.wait_leading()
        yield process
    api_server.delete_namespace(home)


@pytest.fixture
def settle(operator: OperatorProcess) -> Callable[[], dict[str, int]]:
    """Return a function that waits until no pass is made any more and returns the writes so far."""

    def wait() -> dict[str, int]:
        def is_quiet() -> bool:
            before = operator.metric("shipkeeper_reconcile_total")
            time.sleep(1)
            return operator.metric("shipkeeper_reconcile_total") == before

        eventually(is_quiet, timeout=60, what="an operator at rest")
        return operator.writes()

    return wait
