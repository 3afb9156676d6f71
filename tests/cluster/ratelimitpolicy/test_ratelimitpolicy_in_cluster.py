"""A RateLimitPolicy from kubectl to Redis and back: real API server, real operator process, real Redis."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.kubectl import Kubectl
from shipkeeper.limits import Limiter
from support.apiserver import REPOSITORY, ApiServer, eventually
from support.operator_process import OperatorProcess
from support.redis_server import PASSWORD, RedisServer

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

    def put_secret(self, url: str, key: str = "url") -> None:
        """Create or replace the Secret with the store's URL."""
        data = {key: base64.b64encode(url.encode()).decode()}
        metadata = {"name": "birthday-redis", "namespace": self.namespace}
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


@pytest.fixture
def operator(api_server: ApiServer, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    with OperatorProcess(api_server, namespace=namespace, log=tmp_path / "operator.log") as process:
        process.wait_leading()
        yield process


def test_enforced_repaired_and_removed(policy: Policy, server: RedisServer, operator: OperatorProcess) -> None:
    policy.put_secret(server.url)
    policy.apply()
    policy.wait_enforced()
    assert policy.get()["metadata"]["finalizers"] == ["shipkeeper.dev/finalizer"]
    with policy.limiter(server) as limiter, server.client() as admin:
        assert limiter.peek().config_hash == policy.get()["status"]["configHash"]
        for lose in (admin.function_flush, admin.flushall, server.restart):
            lose()
            # The client sees the loss; the operator mends it.
            eventually(lambda: limiter.peek().store_failure == "", timeout=10, what="the repair")
            policy.wait_enforced()
        eventually(lambda: "StoreRepaired" in policy.events(), what="the event")
        assert policy.get()["status"]["lastRepair"]["reason"] == "ConfigMissing"
    policy.kubectl.run("delete", "ratelimitpolicy", NAME, "-n", policy.namespace, "--timeout=30s")
    with server.client() as admin:
        assert admin.dbsize() == 0


def test_steady_means_no_writes(policy: Policy, server: RedisServer, operator: OperatorProcess) -> None:
    policy.put_secret(server.url)
    policy.apply()
    policy.wait_enforced()
    time.sleep(4)  # the first looks after the installation
    before, version = operator.writes(), policy.get()["metadata"]["resourceVersion"]
    time.sleep(15)
    assert operator.writes() == before
    assert policy.get()["metadata"]["resourceVersion"] == version
    columns = policy.kubectl.run("get", "rlp", NAME, "-n", policy.namespace).splitlines()
    assert columns[0].split() == ["NAME", "MODE", "ENFORCED", "TIGHTEST", "BREAKER", "AGE"]
    assert columns[1].split()[:6] == [NAME, "Enforce", "True", "week", "0/100", "Closed"]


def test_what_is_missing_is_named_and_mends_itself(
    policy: Policy, server: RedisServer, operator: OperatorProcess
) -> None:
    policy.apply()
    eventually(lambda: policy.condition("Stalled") == ("True", "SecretNotFound"), what="SecretNotFound")
    policy.put_secret(server.url, key="address")
    eventually(lambda: policy.condition("Stalled") == ("True", "SecretKeyMissing"), timeout=40, what="SecretKeyMissing")
    policy.put_secret(server.url.replace(PASSWORD, "hidden-word"))
    eventually(lambda: policy.condition("Stalled") == ("True", "StoreAuthFailed"), timeout=40, what="StoreAuthFailed")
    policy.put_secret("redis://:hidden-word@127.0.0.1:1/0")
    eventually(lambda: policy.condition("Ready") == ("False", "StoreUnreachable"), timeout=40, what="StoreUnreachable")
    policy.put_secret(server.url)
    eventually(lambda: policy.condition("Enforced") == ("True", "ReadBack"), timeout=40, what="Enforced")
    eventually(lambda: {"SecretNotFound", "StoreAuthFailed"} <= policy.events(), what="the events")
    for text in (policy.everything_written(), operator.log_text()):
        assert "hidden-word" not in text
        assert PASSWORD not in text


def test_an_edit_is_enforced_at_its_generation(policy: Policy, server: RedisServer, operator: OperatorProcess) -> None:
    policy.put_secret(server.url)
    policy.apply(spacing=None, activeHours=None)
    policy.wait_enforced()
    with policy.limiter(server) as limiter:
        assert limiter.acquire(cost=10, execution="run").allowed
        policy.apply(
            spacing=None, activeHours=None, limits=[{"name": "day", "amount": 12, "period": "Day"}], mode="Enforce"
        )
        eventually(lambda: policy.get()["status"]["observedGeneration"] == 2, what="the second generation")
        policy.wait_enforced()
        verdict = limiter.acquire(cost=3)
        assert (verdict.allowed, verdict.rule) == (False, "day")
        assert verdict.limits[0].remaining == 2
        assert verdict.config_hash == policy.get()["status"]["configHash"]
