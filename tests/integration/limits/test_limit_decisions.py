"""The library's decisions against an oracle in plain Python, at instants the test chooses."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.limit_oracle import MINUTE, Oracle
from support.limit_policies import BIRTHDAY, TimedPolicyMaker, spec_of
from support.limit_policies import milliseconds_at as at

pytestmark = pytest.mark.integration

HOUR = 60 * MINUTE
DAY = 24 * HOUR


# Instants around which calendars are hard: both clock changes, the ends of a week, a month and a year, an opening.
EDGES = [
    at("2026-03-28T23:00"),
    at("2026-03-29T01:00"),
    at("2026-10-24T22:00"),
    at("2026-10-25T01:00"),
    at("2026-11-29T23:00"),
    at("2026-11-30T23:00"),
    at("2026-12-31T23:00"),
    at("2026-11-24T06:00"),
    at("2026-11-24T18:00"),
    at("2028-02-29T12:00"),
]
ZONES = ["Europe/Paris", "America/New_York", "Asia/Kolkata", "America/Sao_Paulo", "Pacific/Auckland", "UTC"]


@st.composite
def limits(draw: st.DrawFn) -> list[dict[str, Any]]:
    made = []
    for index in range(draw(st.integers(1, 4))):
        limit: dict[str, Any] = {"name": f"limit-{index}", "amount": draw(st.integers(1, 8))}
        kind = draw(st.sampled_from(["Calendar", "Calendar", "Rolling", "FirstUse", "Execution"]))
        if kind == "Calendar":
            limit["period"] = draw(st.sampled_from(["Minute", "Hour", "Day", "Week", "Month"]))
            if limit["period"] in ("Day", "Week", "Month"):
                limit["resetAt"] = draw(st.sampled_from(["00:00", "04:30", "12:00", "23:30"]))
            if limit["period"] == "Week":
                limit["weekStart"] = draw(st.sampled_from(["Monday", "Sunday", "Thursday"]))
        elif kind == "Execution":
            limit["period"] = "Execution"
        else:
            limit["period"] = draw(st.sampled_from(["90s", "10m", "1h", "36h", "Day"]))
            limit["alignment"] = kind
        made.append(limit)
    return made


TIMES = [f"{hour:02}:{minute:02}" for hour in range(24) for minute in (0, 30)]


@st.composite
def active_hours(draw: st.DrawFn) -> dict[str, Any] | None:
    if draw(st.booleans()):
        return None
    rules = []
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.sampled_from(TIMES))
        end = draw(st.sampled_from([each for each in [*TIMES, "24:00"] if each != start]))
        weekdays = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        days = draw(st.lists(st.sampled_from(weekdays), min_size=2, max_size=7, unique=True))
        rules.append({"days": days, "times": [{"start": start, "end": end}]})
    return {"rules": rules, "exceptions": [{"date": "2026-10-25", "times": [{"start": "01:00", "end": "02:30"}]}]}


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    document: dict[str, Any] = {"timeZone": draw(st.sampled_from(ZONES)), "limits": draw(limits())}
    if draw(st.booleans()):
        document["spacing"] = {"min": "30s", "max": draw(st.sampled_from(["30s", "4m"]))}
    hours = draw(active_hours())
    return document if hours is None else document | {"activeHours": hours}


STEPS = st.one_of(
    st.integers(0, 2000),
    st.integers(0, 10 * MINUTE),
    st.integers(0, 3 * HOUR),
    st.integers(0, 2 * DAY),
    st.sampled_from([MINUTE, HOUR, DAY, 90_000]),
)
TRAFFIC = st.lists(st.tuples(STEPS, st.integers(1, 3), st.sampled_from(["run-a", "run-b"])), min_size=1, max_size=25)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=policies(), edge=st.sampled_from(EDGES), before=st.integers(0, 2 * DAY), traffic=TRAFFIC)
def test_decisions_match_the_oracle(
    timed: TimedPolicyMaker, document: dict[str, Any], edge: int, before: int, traffic: list[tuple[int, int, str]]
) -> None:
    now = edge - before
    policy, oracle = timed(document, now), Oracle(spec_of(document))
    admitted = 0
    for step, cost, execution in traffic:
        now += step
        policy.set_clock(now)
        expected = oracle.decide(now, cost, execution)
        looked = policy.limiter.peek(cost=cost, execution=execution)
        verdict = policy.limiter.acquire(cost=cost, execution=execution)
        assert looked.allowed == verdict.allowed == expected.allowed
        if not verdict.allowed:
            assert verdict.rule in expected.rules
            retry = None if verdict.retry_at is None else round(verdict.retry_at.timestamp() * 1000)
            assert retry == expected.retry_at
        else:
            admitted += cost
            pause = oracle_pause(document, verdict.next_call_at, now)
            oracle.admit(now, cost, execution, pause)
        # Counters are exactly what was admitted: a denied call charged nothing.
        assert {limit.name: limit.remaining for limit in verdict.limits} == expected.remaining
        assert policy.connection.pttl(policy.state_key()) != -1
    assert admitted == sum(call.cost for call in oracle.calls)


def oracle_pause(document: dict[str, Any], next_call_at: datetime | None, now: int) -> int:
    if "spacing" not in document:
        assert next_call_at is None
        return 0
    assert next_call_at is not None
    pause = round(next_call_at.timestamp() * 1000)
    longest = 30_000 if document["spacing"]["max"] == "30s" else 4 * MINUTE
    assert 30_000 <= pause - now <= longest
    return pause


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.parametrize(
    ("midnight", "hours"),
    [("2026-03-28T23:00", 23), ("2026-10-24T22:00", 25), ("2026-11-23T23:00", 24)],
    ids=["spring", "autumn", "plain"],
)
def test_a_day_in_paris_has_the_hours_of_its_wall_clock(timed: TimedPolicyMaker, midnight: str, hours: int) -> None:
    start = at(midnight)
    policy = timed({"timeZone": "Europe/Paris", "limits": [{"name": "day", "amount": 2, "period": "Day"}]}, start)
    assert policy.limiter.acquire(cost=2).allowed
    policy.set_clock(start + hours * HOUR - 1)
    last = policy.limiter.acquire()
    assert (last.allowed, last.rule) == (False, "day")
    assert last.retry_after is not None
    assert last.retry_after.total_seconds() == pytest.approx(0.001)
    policy.set_clock(start + hours * HOUR)
    assert policy.limiter.acquire().allowed


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
