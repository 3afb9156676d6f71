"""What Prometheus is told about real decisions, by both clients."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from shipkeeper.limits import AsyncLimiter, Limiter, Verdict
from shipkeeper.limits.calls import Outcome
from shipkeeper.limits.metrics import LimiterMetrics
from shipkeeper.resources.ratelimitpolicy import OnStoreUnavailable
from support.limit_policies import NAMESPACE, PATIENT, TimedPolicyMaker, install
from support.redis_server import RedisServer

pytestmark = pytest.mark.integration

TWO_A_DAY: dict[str, Any] = {"limits": [{"name": "day", "amount": 2, "period": "Day"}]}
TWO_LIMITS: dict[str, Any] = {
    "limits": [{"name": "day", "amount": 5, "period": "Day"}, {"name": "week", "amount": 9, "period": "Week"}]
}
BREAKER: dict[str, Any] = {
    "circuitBreaker": {"consecutiveFailures": 2, "openTime": {"initial": "5s", "multiplier": 1, "max": "5s"}}
}
STATES = ("Closed", "HalfOpen", "Open", "ForcedOpen")


class Asker(Protocol):
    """Either client, asked without await."""

    def acquire(self, subject: str = "default", *, request_id: str | None = None) -> Verdict: ...
    def report(self, verdict: Verdict, outcome: Outcome) -> bool: ...


class AwaitingAsker:
    """The asyncio client, run on a loop of its own, so that one test serves both clients."""

    def __init__(self, limiter: AsyncLimiter, runner: asyncio.Runner) -> None:
        self._limiter, self._runner = limiter, runner

    def acquire(self, subject: str = "default", *, request_id: str | None = None) -> Verdict:
        return self._runner.run(self._limiter.acquire(subject, request_id=request_id))

    def report(self, verdict: Verdict, outcome: Outcome) -> bool:
        return self._runner.run(self._limiter.report(verdict, outcome))


class Watched:
    """A registry and the limiters that report to it."""

    def __init__(self, client: str) -> None:
        self.registry = CollectorRegistry()
        self.metrics = LimiterMetrics(self.registry)
        self._client = client
        self._runner = asyncio.Runner()
        self._synchronous: list[Limiter] = []
        self._asynchronous: list[AsyncLimiter] = []

    def limiter(
        self, server: RedisServer, policy: str | tuple[str, ...], fail: OnStoreUnavailable | None = PATIENT
    ) -> Asker:
        """Return a limiter of the kind that is tested."""
        if self._client == "Limiter":
            self._synchronous.append(
                Limiter.from_url(
                    server.url, namespace=NAMESPACE, policy=policy, on_store_unavailable=fail, metrics=self.metrics
                )
            )
            return self._synchronous[-1]
        self._asynchronous.append(
            AsyncLimiter.from_url(
                server.url, namespace=NAMESPACE, policy=policy, on_store_unavailable=fail, metrics=self.metrics
            )
        )
        return AwaitingAsker(self._asynchronous[-1], self._runner)

    def value(self, name: str, policy: str, **labels: str) -> float | None:
        """Return a sample, None when the series is not there."""
        return self.registry.get_sample_value(
            f"shipkeeper_limiter_{name}", {"namespace": NAMESPACE, "policy": policy, **labels}
        )

    def decisions(self, policy: str) -> dict[tuple[str, str], float]:
        """Return the counts of a policy by limit and verdict."""
        found = (sample for metric in self.registry.collect() for sample in metric.samples)
        return {
            (sample.labels["limit"], sample.labels["verdict"]): sample.value
            for sample in found
            if sample.name == "shipkeeper_limiter_decisions_total" and sample.labels["policy"] == policy
        }

    def breaker(self, policy: str) -> str | None:
        """Return the state whose gauge is 1."""
        shown = [state for state in STATES if self.value("breaker_state", policy, state=state) == 1]
        assert len(shown) <= 1
        return shown[0] if shown else None

    def close(self) -> None:
        for synchronous in self._synchronous:
            synchronous.close()
        for asynchronous in self._asynchronous:
            self._runner.run(asynchronous.close())
        self._runner.close()


@pytest.fixture(params=["AsyncLimiter", "Limiter"])
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    made = Watched(request.param)
    yield made
    made.close()


def test_a_scrape_shows_decisions_use_and_latency(
    watched: Watched, redis_server: RedisServer, policy_name: str
) -> None:
    install(redis_server, policy_name, TWO_A_DAY)
    limiter = watched.limiter(redis_server, policy_name)
    assert [limiter.acquire("a").allowed for _ in range(5)] == [True, True, False, False, False]
    about = f'namespace="{NAMESPACE}",policy="{policy_name}"'
    text = generate_latest(watched.registry).decode()
    for line in (
        f'shipkeeper_limiter_decisions_total{{limit="",{about},verdict="allowed"}} 2.0',
        f'shipkeeper_limiter_decisions_total{{limit="day",{about},verdict="denied"}} 3.0',
        f'shipkeeper_limiter_remaining{{limit="day",{about}}} 0.0',
        f'shipkeeper_limiter_amount{{limit="day",{about}}} 2.0',
        f"shipkeeper_limiter_decision_duration_seconds_count{{{about}}} 5.0",
        f'shipkeeper_limiter_decision_duration_seconds_bucket{{le="60.0",{about}}} 5.0',
    ):
        assert line in text.splitlines()
    assert "shipkeeper_limiter_breaker_state{" not in text, "the policy has no breaker"


def test_what_shadow_would_deny_is_counted_apart(watched: Watched, redis_server: RedisServer, policy_name: str) -> None:
    limits = [
        {"name": "day", "amount": 1, "period": "Day", "mode": "Shadow"},
        {"name": "week", "amount": 2, "period": "Week", "mode": "Shadow"},
        {"name": "month", "amount": 3, "period": "Month"},
    ]
    install(redis_server, policy_name, {"limits": limits})
    limiter = watched.limiter(redis_server, policy_name)
    for _ in range(4):
        limiter.acquire()
    assert watched.decisions(policy_name) == {("", "allowed"): 3, ("month", "denied"): 1}
    assert watched.value("shadow_denials_total", policy_name, limit="day") == 3
    assert watched.value("shadow_denials_total", policy_name, limit="week") == 2
    assert watched.value("shadow_denials_total", policy_name, limit="month") is None


def test_a_lost_store_is_seen_in_decisions_and_errors(watched: Watched, policy_name: str) -> None:
    with RedisServer() as server:
        install(server, policy_name, TWO_A_DAY | BREAKER)
        denying = watched.limiter(server, policy_name)
        allowing = watched.limiter(server, policy_name, OnStoreUnavailable(action="Allow"))
        admitted = denying.acquire()
        allowing.acquire()
        server.kill()
        assert not denying.acquire().allowed
        assert allowing.acquire().allowed
        assert not denying.report(admitted, "Failure")
    counted = {("", "allowed"): 2, ("store", "denied"): 1, ("store", "allowed"): 1}
    assert watched.decisions(policy_name) == counted
    assert watched.value("store_errors_total", policy_name, reason="Unreachable") == 3, "the report failed too"
    assert watched.value("decision_duration_seconds_count", policy_name) == 4
    assert watched.value("remaining", policy_name, limit="day") == 0, "what was last known stays"


def test_a_slow_store_is_seen_in_latency(watched: Watched, policy_name: str) -> None:
    with RedisServer() as server:
        install(server, policy_name, TWO_A_DAY)
        limiter = watched.limiter(server, policy_name, OnStoreUnavailable(timeout="600ms"))
        server.pause()
        limiter.acquire()
        server.resume()
    assert watched.value("store_errors_total", policy_name, reason="Timeout") == 1
    assert watched.value("decision_duration_seconds_bucket", policy_name, le="0.5") == 0
    assert (watched.value("decision_duration_seconds_sum", policy_name) or 0) >= 0.5


def test_the_breaker_is_shown_as_soon_as_a_report_changes_it(
    watched: Watched, timed_server: RedisServer, timed: TimedPolicyMaker
) -> None:
    now = round(datetime.now(UTC).timestamp() * 1000)
    policy = timed(BREAKER, now)
    limiter = watched.limiter(timed_server, policy.name)
    admitted = [limiter.acquire(), limiter.acquire()]
    assert watched.breaker(policy.name) == "Closed"
    for verdict in admitted:
        limiter.report(verdict, "Failure")
    assert watched.breaker(policy.name) == "Open", "no decision was needed to see it"
    assert not limiter.acquire().allowed
    policy.set_clock(now + 5000)
    probe = limiter.acquire()
    assert watched.breaker(policy.name) == "HalfOpen"
    limiter.report(probe, "Success")
    assert watched.breaker(policy.name) == "Closed"
    assert watched.decisions(policy.name) == {("", "allowed"): 3, ("circuitBreaker", "denied"): 1}
    policy.store({"circuitBreaker": {"consecutiveFailures": 2, "override": "ForcedOpen"}}, now)
    limiter.acquire()
    assert watched.breaker(policy.name) == "ForcedOpen"
    policy.store(TWO_A_DAY, now)
    limiter.acquire()
    assert watched.breaker(policy.name) is None, "the policy has no breaker any more"


def test_of_two_policies_the_one_that_refused_is_named(
    watched: Watched, redis_server: RedisServer, policy_name: str
) -> None:
    everyone, tenant = f"{policy_name}-everyone", f"{policy_name}-tenant"
    install(redis_server, everyone, {"limits": [{"name": "hour", "amount": 9, "period": "Hour"}]})
    install(redis_server, tenant, TWO_A_DAY)
    limiter = watched.limiter(redis_server, (everyone, tenant))
    for _ in range(4):
        limiter.acquire()
    assert watched.decisions(everyone) == {("", "allowed"): 2, ("", "denied"): 2}
    assert watched.decisions(tenant) == {("", "allowed"): 2, ("day", "denied"): 2}
    assert watched.value("remaining", everyone, limit="hour") == 7
    assert watched.value("remaining", tenant, limit="day") == 0
    assert watched.value("remaining", everyone, limit="day") is None
    assert watched.value("decision_duration_seconds_count", everyone) == 4
    assert watched.value("decision_duration_seconds_count", tenant) == 4


def test_a_rule_that_both_policies_may_have_is_counted_for_the_one_that_refused(
    watched: Watched, redis_server: RedisServer, policy_name: str
) -> None:
    plain, spaced = f"{policy_name}-plain", f"{policy_name}-spaced"
    install(redis_server, plain, TWO_LIMITS)
    install(redis_server, spaced, {"spacing": {"min": "1h", "max": "1h"}})
    limiter = watched.limiter(redis_server, (plain, spaced))
    for _ in range(2):
        limiter.acquire()
    assert watched.decisions(plain) == {("", "allowed"): 1, ("", "denied"): 1}
    assert watched.decisions(spaced) == {("", "allowed"): 1, ("spacing", "denied"): 1}


def test_a_policy_that_has_expired_is_counted_and_shows_no_use(
    watched: Watched, timed_server: RedisServer, timed: TimedPolicyMaker
) -> None:
    now = round(datetime.now(UTC).timestamp() * 1000)
    policy = timed(TWO_A_DAY, now)
    policy.set_clock(now + round(timedelta(days=3 * 366) / timedelta(milliseconds=1)))
    assert watched.limiter(timed_server, policy.name).acquire().reason == "ConfigExpired"
    assert watched.decisions(policy.name) == {("config", "denied"): 1}
    assert watched.value("remaining", policy.name, limit="day") is None


def test_ten_thousand_subjects_make_no_further_series(redis_server: RedisServer, policy_name: str) -> None:
    watched = Watched("Limiter")
    install(redis_server, policy_name, TWO_LIMITS | BREAKER)
    limiter = watched.limiter(redis_server, policy_name)

    def series() -> set[tuple[str, str]]:
        samples = (sample for metric in watched.registry.collect() for sample in metric.samples)
        return {(sample.name, str(sorted(sample.labels.items()))) for sample in samples}

    limiter.acquire("first", request_id="request-first")
    before = series()
    for number in range(10_000):
        limiter.acquire(f"subject-{number}")
    assert series() == before
    assert watched.decisions(policy_name) == {("", "allowed"): 10_001}
    assert not any("subject-" in labels or "request-" in labels for _, labels in before)
    watched.close()


def test_of_several_subjects_the_one_with_the_fewest_units_is_shown(
    watched: Watched, redis_server: RedisServer, policy_name: str
) -> None:
    install(redis_server, policy_name, TWO_LIMITS)
    limiter = watched.limiter(redis_server, policy_name)
    for _ in range(3):
        limiter.acquire("busy")
    assert watched.value("remaining", policy_name, limit="day") == 2, "the latest decision counts, sampled or not"
    limiter.acquire("idle")
    assert watched.value("remaining", policy_name, limit="day") == 2
    for _ in range(4):
        limiter.acquire("idle")
    assert watched.value("remaining", policy_name, limit="day") == 0
    assert watched.value("remaining", policy_name, limit="week") == 4


def test_units_that_came_back_are_shown_at_once_for_one_subject(redis_server: RedisServer, policy_name: str) -> None:
    watched = Watched("Limiter")
    install(redis_server, policy_name, TWO_LIMITS)
    limiter = watched.limiter(redis_server, policy_name)
    assert isinstance(limiter, Limiter)
    reservation = limiter.reserve("a", cost=4, lease=timedelta(minutes=5))
    assert watched.value("remaining", policy_name, limit="day") == 1
    limiter.cancel(reservation)
    limiter.acquire("a")
    assert watched.value("remaining", policy_name, limit="day") == 4
    watched.close()


def test_a_window_that_ended_is_full_without_a_call(
    watched: Watched, redis_server: RedisServer, policy_name: str
) -> None:
    install(
        redis_server, policy_name, {"limits": [{"name": "burst", "amount": 2, "period": "3s", "alignment": "FirstUse"}]}
    )
    limiter = watched.limiter(redis_server, policy_name)
    asked = time.monotonic()
    limiter.acquire()
    shown = watched.value("remaining", policy_name, limit="burst")
    assert shown == 1 or time.monotonic() >= asked + 3
    time.sleep(max(0.0, asked + 3.5 - time.monotonic()))
    assert watched.value("remaining", policy_name, limit="burst") == 2


def test_an_edit_leaves_no_gauge_of_a_removed_limit(
    watched: Watched, redis_server: RedisServer, policy_name: str
) -> None:
    install(redis_server, policy_name, TWO_LIMITS)
    limiter = watched.limiter(redis_server, policy_name)
    limiter.acquire()
    assert watched.value("remaining", policy_name, limit="week") == 8
    install(redis_server, policy_name, TWO_A_DAY)
    limiter.acquire("another")
    assert watched.value("remaining", policy_name, limit="week") is None
    assert watched.value("amount", policy_name, limit="week") is None
    assert watched.value("amount", policy_name, limit="day") == 2
    assert watched.value("remaining", policy_name, limit="day") == 1


def test_a_limit_that_moved_to_the_other_policy_is_counted_there(
    watched: Watched, redis_server: RedisServer, policy_name: str
) -> None:
    first, second = f"{policy_name}-first", f"{policy_name}-second"
    wide = {"limits": [{"name": "hour", "amount": 1000, "period": "Hour"}]}
    narrow = {"limits": [{"name": "day", "amount": 1, "period": "Day"}]}
    install(redis_server, first, narrow)
    install(redis_server, second, wide)
    limiter = watched.limiter(redis_server, (first, second))
    for _ in range(2):
        limiter.acquire()
    assert watched.decisions(first)["day", "denied"] == 1
    install(redis_server, first, wide)
    install(redis_server, second, narrow)
    limiter.acquire()
    generate_latest(watched.registry)
    limiter.acquire()
    assert watched.decisions(second) == {("", "allowed"): 2, ("", "denied"): 1, ("day", "denied"): 1}


def test_a_look_and_a_repeated_answer_tell_nothing_of_use(redis_server: RedisServer, policy_name: str) -> None:
    watched = Watched("Limiter")
    install(redis_server, policy_name, TWO_LIMITS)
    limiter = watched.limiter(redis_server, policy_name)
    assert isinstance(limiter, Limiter)
    limiter.peek()
    assert watched.decisions(policy_name) == {}
    limiter.acquire(request_id="once")
    for _ in range(3):
        limiter.acquire()
    assert watched.value("remaining", policy_name, limit="day") == 1
    assert limiter.acquire(request_id="once").replayed
    assert watched.value("remaining", policy_name, limit="day") == 1, "the first answer's figure is old"
    assert watched.decisions(policy_name) == {("", "allowed"): 5}
    watched.close()


def test_threads_and_scrapes_at_once_lose_no_decision(redis_server: RedisServer, policy_name: str) -> None:
    watched = Watched("Limiter")
    install(redis_server, policy_name, {"limits": [{"name": "day", "amount": 700, "period": "Day"}]})
    limiter = watched.limiter(redis_server, policy_name)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(limiter.acquire, f"subject-{number % 2}") for number in range(1600)]
        while not all(each.done() for each in asked):
            generate_latest(watched.registry)
    assert all(each.result().judged_at for each in asked)
    assert watched.decisions(policy_name) == {("", "allowed"): 1400, ("day", "denied"): 200}
    assert watched.value("remaining", policy_name, limit="day") == 0
    watched.close()


def test_limiters_and_metrics_of_one_registry_add_up(redis_server: RedisServer, policy_name: str) -> None:
    registry = CollectorRegistry()
    install(redis_server, policy_name, TWO_LIMITS)
    for _ in range(2):
        with Limiter.from_url(
            redis_server.url, namespace=NAMESPACE, policy=policy_name, metrics=LimiterMetrics(registry)
        ) as limiter:
            limiter.acquire()
    labels = {"namespace": NAMESPACE, "policy": policy_name, "limit": "", "verdict": "allowed"}
    assert registry.get_sample_value("shipkeeper_limiter_decisions_total", labels) == 2
