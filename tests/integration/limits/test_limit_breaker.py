"""The circuit breaker, at instants the test chooses."""

from datetime import timedelta
from typing import Any

import pytest

from shipkeeper.limits import Verdict
from support.limit_policies import TimedPolicy, TimedPolicyMaker, milliseconds_at

pytestmark = pytest.mark.integration

NOW = milliseconds_at("2026-11-24T10:00")


def breaker(**changes: Any) -> dict[str, Any]:
    settings = {"consecutiveFailures": 3, "openTime": {"initial": "5s", "multiplier": 2, "max": "60s"}}
    return {"circuitBreaker": settings | changes}


def fail(policy: TimedPolicy, times: int) -> None:
    for _ in range(times):
        verdict = policy.limiter.acquire()
        assert verdict.allowed
        assert policy.limiter.report(verdict, "Failure")


def probe(policy: TimedPolicy, now: int) -> Verdict:
    policy.set_clock(now)
    verdict = policy.limiter.acquire()
    assert (verdict.allowed, verdict.breaker) == (True, "HalfOpen")
    return verdict


def test_opens_after_failures_in_a_row_and_names_when_it_may_be_tried(timed: TimedPolicyMaker) -> None:
    policy = timed(breaker(), NOW)
    fail(policy, 3)
    verdict = policy.limiter.acquire()
    assert (verdict.allowed, verdict.rule, verdict.reason) == (False, "circuitBreaker", "CircuitOpen")
    assert verdict.retry_after == timedelta(seconds=5)
    assert verdict.breaker == "Open"


def test_a_success_starts_the_count_of_failures_anew(timed: TimedPolicyMaker) -> None:
    policy = timed(breaker(), NOW)
    fail(policy, 2)
    assert policy.limiter.report(policy.limiter.acquire(), "Success")
    fail(policy, 2)
    assert policy.limiter.acquire().allowed


def test_open_time_doubles_up_to_its_maximum_and_a_success_resets_it(timed: TimedPolicyMaker) -> None:
    policy = timed(breaker(), NOW)
    fail(policy, 3)
    now, waits = NOW, []
    for _ in range(6):
        wait = policy.limiter.acquire().retry_after
        assert wait is not None
        waits.append(wait.total_seconds())
        now += round(wait.total_seconds() * 1000)
        policy.limiter.report(probe(policy, now), "Failure")
    assert waits == [5, 10, 20, 40, 60, 60]
    now += 60_000
    assert policy.limiter.report(probe(policy, now), "Success")
    assert policy.limiter.acquire().breaker == "Closed"
    fail(policy, 3)
    assert policy.limiter.acquire().retry_after == timedelta(seconds=5)


def test_a_killed_probers_permit_comes_back(timed: TimedPolicyMaker) -> None:
    policy = timed(breaker(halfOpen={"permits": 1, "permitTimeout": "5s"}), NOW)
    fail(policy, 3)
    lost = probe(policy, NOW + 5000)
    waiting = policy.limiter.acquire()
    assert (waiting.reason, waiting.retry_after) == ("ProbeUnderWay", timedelta(seconds=5))
    fresh = probe(policy, NOW + 10_000)
    # The one that was thought dead reports late: it no longer holds a permit, so it counts nothing.
    assert not policy.limiter.report(lost, "Success")
    assert policy.limiter.acquire().reason == "ProbeUnderWay"
    assert policy.limiter.report(fresh, "Success")
    assert policy.limiter.acquire().breaker == "Closed"


def test_a_late_result_of_an_earlier_round_is_dropped(timed: TimedPolicyMaker) -> None:
    policy = timed(breaker(), NOW)
    early = policy.limiter.acquire()
    fail(policy, 3)
    policy.limiter.report(probe(policy, NOW + 5000), "Success")
    fail(policy, 2)
    assert not policy.limiter.report(early, "Failure")
    assert policy.limiter.acquire().allowed


def test_several_permits_and_a_threshold_of_successes(timed: TimedPolicyMaker) -> None:
    policy = timed(breaker(halfOpen={"permits": 2, "permitTimeout": "5s", "successThreshold": 3}), NOW)
    fail(policy, 3)
    probes = [probe(policy, NOW + 5000), probe(policy, NOW + 5000)]
    assert not policy.limiter.acquire().allowed
    assert [policy.limiter.report(each, "Success") for each in probes] == [True, True]
    assert policy.limiter.report(probe(policy, NOW + 5000), "Success")
    assert policy.limiter.acquire().breaker == "Closed"


def test_a_released_permit_is_free_at_once(timed: TimedPolicyMaker) -> None:
    policy = timed(breaker(), NOW)
    fail(policy, 3)
    assert policy.limiter.report(probe(policy, NOW + 5000), "Released")
    assert probe(policy, NOW + 5000).allowed


def test_a_quota_that_denies_takes_no_permit(timed: TimedPolicyMaker) -> None:
    document = breaker() | {"limits": [{"name": "minute", "amount": 3, "period": "Minute"}]}
    policy = timed(document, NOW)
    fail(policy, 3)
    policy.set_clock(NOW + 5000)
    verdict = policy.limiter.acquire()
    assert (verdict.rule, verdict.breaker) == ("minute", "Open")
    assert probe(policy, NOW + 60_000).allowed


@pytest.mark.parametrize("window", [{"size": 10, "minimumCalls": 4}, {"duration": "10s", "minimumCalls": 4}])
def test_opens_on_a_failure_rate(timed: TimedPolicyMaker, window: dict[str, Any]) -> None:
    policy = timed({"circuitBreaker": {"failureRatePercent": 50, "window": window}}, NOW)
    for outcome in ("Success", "Failure", "Success"):
        policy.limiter.report(policy.limiter.acquire(), outcome)
    assert policy.limiter.acquire().allowed, "below the minimum of calls no rate is judged"
    fail(policy, 1)
    assert policy.limiter.acquire().reason == "CircuitOpen"


def test_a_window_by_time_forgets(timed: TimedPolicyMaker) -> None:
    window = {"duration": "10s", "minimumCalls": 4}
    policy = timed({"circuitBreaker": {"failureRatePercent": 50, "window": window}}, NOW)
    fail(policy, 3)
    policy.set_clock(NOW + 11_000)
    fail(policy, 3)
    assert policy.limiter.acquire().allowed
    fail(policy, 1)
    assert not policy.limiter.acquire().allowed


def test_a_window_by_count_forgets(timed: TimedPolicyMaker) -> None:
    policy = timed({"circuitBreaker": {"failureRatePercent": 60, "window": {"size": 5, "minimumCalls": 5}}}, NOW)
    outcomes = ["Failure", "Failure", "Success", "Success", "Success", "Success", "Success", "Failure", "Failure"]
    for outcome in outcomes:
        policy.limiter.report(policy.limiter.acquire(), outcome)  # type: ignore[arg-type]
    assert policy.limiter.acquire().allowed
    fail(policy, 1)
    assert not policy.limiter.acquire().allowed


def test_opens_on_slow_calls(timed: TimedPolicyMaker) -> None:
    slow = {"slowerThan": "2s", "ratePercent": 100}
    policy = timed({"circuitBreaker": {"slowCalls": slow, "window": {"size": 2, "minimumCalls": 2}}}, NOW)
    for _ in range(2):
        policy.limiter.report(policy.limiter.acquire(), "Success", duration=timedelta(seconds=2))
    assert policy.limiter.acquire().reason == "CircuitOpen"
    probing = probe(policy, NOW + 5000)
    policy.limiter.report(probing, "Success", duration=timedelta(seconds=3))
    assert policy.limiter.acquire().reason == "CircuitOpen", "a slow probe does not close the circuit"


def test_overrides(timed: TimedPolicyMaker) -> None:
    policy = timed(breaker(override="ForcedOpen"), NOW)
    verdict = policy.limiter.acquire()
    assert (verdict.allowed, verdict.reason, verdict.permanent) == (False, "CircuitForcedOpen", True)
    policy.store(breaker(override="MetricsOnly"), NOW)
    fail(policy, 3)
    watched = policy.limiter.acquire()
    assert (watched.allowed, watched.breaker, watched.shadow) == (True, "Open", ("circuitBreaker",))
    policy.store(breaker(override="Disabled"), NOW)
    assert policy.limiter.acquire().breaker == "Disabled"


def test_failures_outlive_a_quiet_night(timed: TimedPolicyMaker) -> None:
    policy = timed(breaker(), NOW)
    fail(policy, 2)
    policy.set_clock(NOW + 14 * 3600 * 1000)
    fail(policy, 1)
    assert not policy.limiter.acquire().allowed
