"""Policies for the limiter's tests, and a policy on a Redis whose clock the test sets."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import redis

from shipkeeper.limits.compiler import compile_policy
from shipkeeper.limits.function_library import library_text_with_test_clock
from shipkeeper.limits.keys import PolicyKeys
from shipkeeper.limits.store import install_policy
from shipkeeper.limits.sync_client import Limiter
from shipkeeper.resources.ratelimitpolicy import OnStoreUnavailable, RateLimitPolicySpec
from support.redis_server import RedisServer

NAMESPACE = "tests"
# For tests about decisions: a machine under load must not turn them into tests about timeouts.
PATIENT = OnStoreUnavailable(timeout="60s")
STORE = {"urlFrom": {"name": "store", "key": "url"}}
BIRTHDAY: dict[str, Any] = {
    "timeZone": "Europe/Paris",
    "limits": [
        {"name": "week", "amount": 100, "period": "Week"},
        {"name": "day", "amount": 15, "period": "Day"},
        {"name": "execution", "amount": 15, "period": "Execution"},
    ],
    "spacing": {"min": "90s", "max": "180s"},
    "activeHours": {"rules": [{"times": [{"start": "07:00", "end": "19:00"}]}]},
    "circuitBreaker": {"consecutiveFailures": 3, "openTime": {"initial": "5s", "multiplier": 2, "max": "60s"}},
}


def spec_of(document: dict[str, Any]) -> RateLimitPolicySpec:
    """Return the spec with a store."""
    return RateLimitPolicySpec.model_validate({"store": STORE, **document})


def install(server: RedisServer, name: str, document: dict[str, Any]) -> None:
    """Put a policy and the library on a server, as the operator does."""
    asyncio.run(install_policy(server.url, spec_of(document), namespace=NAMESPACE, name=name))


def milliseconds_at(text: str) -> int:
    """Return an instant that is written as ISO 8601 in UTC."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def put_policy(
    connection: redis.Redis, keys: PolicyKeys, document: dict[str, Any], now: int, *, state_lost_at: int = 0
) -> str:
    """Store a version of a policy, compiled as if it were this instant, and return its hash."""
    compiled = compile_policy(spec_of(document), keys, now=datetime.fromtimestamp(now / 1000, UTC))
    connection.set(keys.config, f"{compiled.hash} {state_lost_at:013d} {compiled.body.decode()}")
    return compiled.hash


@dataclass
class TimedPolicy:
    """A policy on a Redis whose clock the test sets."""

    connection: redis.Redis
    name: str
    limiter: Limiter
    library: str = field(default_factory=library_text_with_test_clock)

    @property
    def keys(self) -> PolicyKeys:
        """Where it lives."""
        return PolicyKeys(namespace=NAMESPACE, policy=self.name)

    def set_clock(self, milliseconds: int) -> None:
        """From now on it is this instant."""
        self.connection.set("shipkeeper:test:now", milliseconds * 1000)

    def store(self, document: dict[str, Any], now: int, *, state_lost_at: int = 0) -> None:
        """Compile and store a version of the policy as if it were this instant; it judges from the next call on."""
        self.connection.function_load(self.library, replace=True)
        self.edit(document, now, state_lost_at=state_lost_at)

    def edit(self, document: dict[str, Any], now: int, *, state_lost_at: int = 0) -> None:
        """Store another version as the operator does: the library notices within a second."""
        put_policy(self.connection, self.keys, document, now, state_lost_at=state_lost_at)

    def state_key(self, subject: str = "default") -> str:
        """Return where the subject's counters are."""
        return self.keys.state(subject)


TimedPolicyMaker = Callable[[dict[str, Any], int], TimedPolicy]
