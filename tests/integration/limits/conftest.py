"""A real Redis for the limiter's tests: one whose library takes its clock from a key, and one as in production."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from shipkeeper.limits import Limiter
from support.limit_policies import NAMESPACE, PATIENT, TimedPolicy, TimedPolicyMaker
from support.redis_server import RedisServer

_names = itertools.count()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server for tests that break nothing."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def timed_server() -> Iterator[RedisServer]:
    """A server whose library takes its clock from a key."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def timed(timed_server: RedisServer) -> Iterator[TimedPolicyMaker]:
    """Return a function that installs a policy at an instant (milliseconds)."""
    connection = timed_server.client()
    limiters: list[Limiter] = []

    def make(document: dict[str, Any], now: int) -> TimedPolicy:
        name = f"policy-{next(_names)}"
        url = timed_server.url
        limiters.append(Limiter.from_url(url, namespace=NAMESPACE, policy=name, on_store_unavailable=PATIENT))
        policy = TimedPolicy(connection, name, limiters[-1])
        policy.set_clock(now)
        policy.store(document, now)
        return policy

    yield make
    for limiter in limiters:
        limiter.close()
    connection.close()


@pytest.fixture
def policy_name() -> str:
    """A policy name that no other test has."""
    return f"policy-{next(_names)}"
