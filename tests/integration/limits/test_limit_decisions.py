"""The library's decisions against an oracle in plain Python, at instants the test chooses."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shipkeeper.resources.schedule import milliseconds
from support.limit_oracle import Oracle, decide, overdrawn
from support.limit_policies import BIRTHDAY, TimedPolicyMaker, spec_of
from support.limit_policies import milliseconds_at as at
from support.limit_strategies import EDGES, STEPS, policies
from support.wall_clock import DAY, HOUR, MINUTE, milliseconds_of

pytestmark = pytest.mark.integration

TRAFFIC = st.lists(st.tuples(STEPS, st.integers(1, 3), st.sampled_from(["run-a", "run-b"])), min_size=1, max_size=25)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(document=policies(bursts=True), edge=st.sampled_from(EDGES), before=st.integers(0, 2 * DAY), traffic=TRAFFIC)
def test_decisions_match_the_oracle(
    timed: TimedPolicyMaker, document: dict[str, Any], edge: int, before: int, traffic: list[tuple[int, int, str]]
) -> None:
    now = edge - before
    policy, oracle = timed(document, now), Oracle(spec_of(document))
    for step, cost, execution in traffic:
        now += step
        policy.set_clock(now)
        expected = decide([oracle], now, cost, execution)
        looked = policy.limiter.peek(cost=cost, execution=execution)
        verdict = policy.limiter.acquire(cost=cost, execution=execution)
        assert looked.allowed == verdict.allowed == expected.allowed
        assert milliseconds_of(verdict.retry_at) == expected.retry_at
        if not verdict.allowed:
            assert verdict.rule in expected.binding
        else:
            pause = checked_pause(document, verdict.next_call_at, now)
            oracle.charge(now, cost, execution, next_call=pause)
        # Counters are exactly what was admitted: a denied call charged nothing.
        assert {limit.name: limit.remaining for limit in verdict.limits} == oracle.remaining(now, execution)
        assert policy.connection.pttl(policy.state_key()) != -1
    assert overdrawn(oracle.spec, oracle.charges) == {}


def checked_pause(document: dict[str, Any], next_call_at: datetime | None, now: int) -> int:
    if "spacing" not in document:
        assert next_call_at is None
        return 0
    pause = milliseconds_of(next_call_at)
    assert pause is not None
    assert milliseconds(document["spacing"]["min"]) <= pause - now <= milliseconds(document["spacing"]["max"])
    return pause


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    amount=st.integers(1, 6),
    period=st.sampled_from(["16s", "90s", "1h"]),
    steps=st.lists(st.integers(0, 20_000), min_size=1, max_size=60),
)
def test_a_rolling_limit_holds_in_every_span_of_its_period(
    timed: TimedPolicyMaker, amount: int, period: str, steps: list[int]
) -> None:
    length = {"16s": 16_000, "90s": 90_000, "1h": HOUR}[period]
    now = EDGES[0]
    limit = {"name": "rolling", "amount": amount, "period": period, "alignment": "Rolling"}
    policy = timed({"limits": [limit]}, now)
    admitted: list[int] = []
    for step in steps:
        now += step
        policy.set_clock(now)
        if policy.limiter.acquire().allowed:
            admitted.append(now)
    for start in admitted:
        assert sum(start <= call < start + length for call in admitted) <= amount


def test_the_joint_retry_waits_for_the_next_opening(timed: TimedPolicyMaker) -> None:
    document = BIRTHDAY | {"limits": [{"name": "day", "amount": 1, "period": "Day"}]}
    evening = at("2026-11-24T17:59:30")
    policy = timed(document, evening)
    assert policy.limiter.acquire().allowed
    verdict = policy.limiter.acquire()
    # The day's units are back at midnight in Paris, but nothing is admitted before seven.
    assert verdict.rule == "day"
    assert verdict.retry_at == datetime(2026, 11, 25, 6, 0, tzinfo=UTC)


def test_cost_above_a_limit_is_denied_for_ever(timed: TimedPolicyMaker) -> None:
    policy = timed({"limits": [{"name": "day", "amount": 3, "period": "Day"}]}, EDGES[0])
    verdict = policy.limiter.acquire(cost=4)
    assert (verdict.allowed, verdict.reason, verdict.permanent) == (False, "CostAboveLimit", True)
    assert verdict.retry_after is None


def test_burst_bounds_units_at_once_and_refills_evenly(timed: TimedPolicyMaker) -> None:
    limit = {"name": "rolling", "amount": 60, "period": "1h", "alignment": "Rolling", "burst": 3}
    policy = timed({"limits": [limit]}, EDGES[0])
    assert [policy.limiter.acquire().allowed for _ in range(4)] == [True, True, True, False]
    assert policy.limiter.acquire().retry_after is not None
    policy.set_clock(EDGES[0] + MINUTE - 1)
    assert not policy.limiter.acquire().allowed
    policy.set_clock(EDGES[0] + MINUTE)
    assert policy.limiter.acquire().allowed
    assert not policy.limiter.acquire().allowed


@pytest.mark.parametrize(
    "limit",
    [
        {"period": "Day"},
        {"period": "1h", "alignment": "FirstUse"},
        {"period": "1h", "alignment": "Rolling"},
    ],
    ids=["calendar", "first use", "rolling"],
)
def test_a_clock_that_steps_back_gives_nothing_back(timed: TimedPolicyMaker, limit: dict[str, Any]) -> None:
    midnight = at("2026-11-24T23:00")
    policy = timed({"timeZone": "Europe/Paris", "limits": [{"name": "limit", "amount": 3} | limit]}, midnight)
    assert policy.limiter.acquire(cost=3).allowed
    policy.set_clock(midnight - 20)
    assert not policy.limiter.acquire().allowed
    policy.set_clock(midnight + 20)
    assert not policy.limiter.acquire().allowed
