"""What the e2e tests do again and again: a namespace, a database, a resource, a wait, a look at all texts."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from demo.kubectl import Kubectl, condition
from demo.servers import USER, query, secret
from demo.story import NAMESPACE as DEMO_NAMESPACE
from demo.story import OPERATOR_NAMESPACE

API_VERSION = "shipkeeper.dev/v1alpha1"


class StoryNamespace:
    """A namespace of restricted Pod Security for one failure story."""

    def __init__(self, kubectl: Kubectl, name: str) -> None:
        self.kubectl = kubectl
        self.name = name
        self.database = name.replace("-", "_")

    def create(self) -> None:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}})

    def remove(self) -> None:
        self.kubectl.run("delete", "namespace", self.name, "--wait=false")
        self.sql(f'DROP DATABASE IF EXISTS "{self.database}" WITH (FORCE);', database="birthday")

    def create_database(self) -> str:
        """Create an empty database in the demo's PostgreSQL and return its URL, password included."""
        self.sql(f'CREATE DATABASE "{self.database}";', database="birthday")
        return f"postgresql+asyncpg://{USER}:{self.password()}@postgres.{DEMO_NAMESPACE}.svc:5432/{self.database}"

    def password(self) -> str:
        """Return the password of the demo's PostgreSQL."""
        found = self.kubectl.get("secret", "postgres-credentials", namespace=DEMO_NAMESPACE)
        assert found is not None
        return base64.b64decode(found["data"]["POSTGRES_PASSWORD"]).decode()

    def sql(self, statements: str, *, database: str | None = None) -> list[list[str]]:
        """Run SQL in the story's database (or another) and return the rows as text."""
        return query(self.kubectl, f'\\connect "{database or self.database}"\n{statements}', namespace=DEMO_NAMESPACE)[
            1:
        ]

    def put_secret(self, name: str, values: Mapping[str, str]) -> None:
        self.kubectl.apply(secret(name, values, namespace=self.name))

    def apply(self, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        """Apply one of our resources."""
        metadata = {"name": name, "namespace": self.name}
        self.kubectl.apply({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec})

    def wait_for_condition(
        self, kind: str, name: str, type_: str, *, reason: str, status: str = "True", timeout: float = 90
    ) -> dict[str, Any]:
        """Return the resource once its condition has this status and reason; fail with what it says instead."""
        return self.wait(
            kind,
            name,
            until=lambda found: (
                condition(found, type_).get("status") == status and condition(found, type_).get("reason") == reason
            ),
            what=f"{type_}={status} ({reason})",
            timeout=timeout,
        )

    def wait(
        self, kind: str, name: str, *, until: Callable[[dict[str, Any]], bool], what: str, timeout: float = 90
    ) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        found: dict[str, Any] = {}
        while time.monotonic() < deadline:
            found = self.kubectl.get(kind, name, namespace=self.name) or {}
            if found and until(found):
                return found
            time.sleep(0.5)
        raise AssertionError(
            f"{kind} {name}: no {what} within {timeout:.0f} s:\n{json.dumps(found.get('status'), indent=1)}"
        )

    def events(self, name: str) -> list[tuple[str, str, str]]:
        """Return type, reason and note of the Events about the resource of that name."""
        found = self.kubectl.list("events.events.k8s.io", namespace=self.name)
        return [
            (each["type"], each["reason"], each.get("note", "")) for each in found if each["regarding"]["name"] == name
        ]

    def all_texts(self) -> str:
        """Return everything that a person or a log collector can read of the story, Secrets themselves aside."""
        kinds = "shipkeeper,pods,jobs,deployments,configmaps,events"
        objects = self.kubectl.run("get", kinds, "--namespace", self.name, "--output", "yaml")
        logs = [self._logs(self.name, pod) for pod in self.kubectl.list("pods", namespace=self.name)]
        operators = self.kubectl.list("pods", namespace=OPERATOR_NAMESPACE)
        logs += [self._logs(OPERATOR_NAMESPACE, pod) for pod in operators]
        return "\n".join([objects, *logs])

    def _logs(self, namespace: str, pod: Mapping[str, Any]) -> str:
        statuses = pod.get("status", {}).get("containerStatuses", [])
        if not any("containerID" in each for each in statuses):
            return ""  # Nothing in it ever ran.
        return self.kubectl.run("logs", pod["metadata"]["name"], "--namespace", namespace, "--all-containers")
