"""A RateLimitPolicy as a person sees it through the API server."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from demo.kubectl import Kubectl
from shipkeeper.limits import Limiter
from support.apiserver import REPOSITORY, eventually
from support.redis_server import RedisServer

NAME = "birthday-limits"


class Policy:
    """The sample's policy in the test's namespace."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self.kubectl = kubectl
        self.namespace = namespace

    def apply(self, **changes: Any) -> None:
        """Apply the sample, with these parts of its spec replaced, or left out where None."""
        manifest = yaml.safe_load((REPOSITORY / "manifests/samples/ratelimitpolicy.yaml").read_text())
        manifest["metadata"]["namespace"] = self.namespace
        spec = manifest["spec"] | changes
        manifest["spec"] = {name: value for name, value in spec.items() if value is not None}
        self.kubectl.apply(manifest)

    def put_secret(self, url: str, key: str = "url", name: str = "birthday-redis") -> None:
        """Create or replace the Secret with the store's URL."""
        data = {key: base64.b64encode(url.encode()).decode()}
        metadata = {"name": name, "namespace": self.namespace}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})

    def get(self) -> dict[str, Any]:
        """Return the resource as the API server has it."""
        found = self.kubectl.get("ratelimitpolicy", NAME, namespace=self.namespace)
        assert found is not None
        return dict(found)

    def condition(self, type_: str) -> tuple[str, str]:
        """Return status and reason of a condition."""
        conditions = self.get().get("status", {}).get("conditions", [])
        return next(((each["status"], each["reason"]) for each in conditions if each["type"] == type_), ("", ""))

    def wait_enforced(self) -> None:
        """Wait until status says that it is enforced."""
        eventually(lambda: self.condition("Enforced") == ("True", "ReadBack"), what="Enforced")

    def events(self) -> set[str]:
        """Return the reasons of the events about it."""
        found = self.kubectl.list("events.events.k8s.io", namespace=self.namespace)
        return {event["reason"] for event in found if event["regarding"]["kind"] == "RateLimitPolicy"}

    def everything_written(self) -> str:
        """Return status and events as one text."""
        events = self.kubectl.list("events.events.k8s.io", namespace=self.namespace)
        return f"{self.get().get('status')} {events}"

    def limiter(self, server: RedisServer) -> Limiter:
        """Return an application's limiter under the policy."""
        return Limiter.from_url(server.url, namespace=self.namespace, policy=NAME)


@pytest.fixture
def policy(kubectl: Kubectl, namespace: str) -> Policy:
    return Policy(kubectl, namespace)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server
