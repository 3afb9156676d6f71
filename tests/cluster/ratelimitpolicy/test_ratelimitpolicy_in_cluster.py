"""A RateLimitPolicy from kubectl to Redis and back: real API server, real operator process, real Redis."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.apiserver import ApiServer, eventually
from support.operator_process import OperatorProcess
from support.redis_server import PASSWORD, RedisServer

from .conftest import NAME, Policy


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
