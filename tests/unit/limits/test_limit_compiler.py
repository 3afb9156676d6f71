"""From a policy to the bytes that Redis holds."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shipkeeper.limits.binding import limits_that_never_bind
from shipkeeper.limits.compiler import CompiledPolicy, body_hash, compile_policy
from shipkeeper.limits.function_library import library_text, library_text_with_test_clock, library_version
from shipkeeper.limits.keys import PolicyKeys
from support.limit_policies import BIRTHDAY, spec_of

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
KEYS = PolicyKeys(namespace="birthday", policy="birthday-limits")


def compiled(document: dict[str, Any], now: datetime = NOW) -> CompiledPolicy:
    return compile_policy(spec_of(document), KEYS, now=now)


def body(document: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(compiled(document).body)
    return decoded


def test_the_same_policy_in_the_same_month_is_the_same_bytes() -> None:
    first, last = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 30, 23, 59, tzinfo=UTC)
    assert compiled(BIRTHDAY, first) == compiled(BIRTHDAY, last)
    assert compiled(BIRTHDAY, first).hash != compiled(BIRTHDAY, last + timedelta(minutes=1)).hash
    assert compiled(BIRTHDAY).hash == body_hash(compiled(BIRTHDAY).body)


def test_tables_reach_a_year_beyond_their_month() -> None:
    policy = compiled(BIRTHDAY)
    assert policy.valid_until - NOW > timedelta(days=365)
    decoded = json.loads(policy.body)
    for limit in decoded["limits"]:
        runs = limit.get("runs")
        if runs:
            assert runs[0] <= datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1000
            assert runs[-3] + runs[-2] * runs[-1] >= decoded["validUntil"]


def test_the_sample_is_small() -> None:
    assert len(compiled(BIRTHDAY).body) < 2000


def test_what_is_off_is_left_out() -> None:
    document = BIRTHDAY | {
        "limits": [{"name": "day", "amount": 1, "period": "Day", "mode": "Off"}],
        "spacing": {"min": "1s", "max": "1s", "mode": "Off"},
        "activeHours": BIRTHDAY["activeHours"] | {"mode": "Off"},
        "circuitBreaker": BIRTHDAY["circuitBreaker"] | {"override": "Disabled"},
    }
    assert body(document)["limits"] == []
    assert not {"spacing", "active", "breaker"} & body(document).keys()


def test_numbers_for_the_server() -> None:
    decoded = body(BIRTHDAY | {"maxSubjects": 7})
    assert decoded["spacing"] == {"min": 90_000, "max": 180_000, "mode": "Enforce"}
    assert decoded["breaker"]["openMax"] == 60_000
    assert "failureRate" not in decoded["breaker"]
    assert decoded["maxSubjects"] == 7
    assert decoded["client"] == {"action": "Deny", "timeout": "1s"}


def test_rolling_and_first_use_carry_their_length() -> None:
    limits = [
        {"name": "a", "amount": 5, "period": "90s", "alignment": "Rolling", "burst": 2},
        {"name": "b", "amount": 5, "period": "Week", "alignment": "FirstUse"},
        {"name": "c", "amount": 5, "period": "Second"},
    ]
    a, b, c = body({"limits": limits})["limits"]
    assert (a["kind"], a["period"], a["step"], a["burst"]) == ("R", 90_000, 5625, 2)
    assert (b["kind"], b["period"]) == ("F", 604_800_000)
    assert (c["kind"], c["runs"][1]) == ("C", 1000)


def test_a_version_stands_for_the_library_text() -> None:
    assert f"local VERSION = '{library_version()}'" in library_text()
    assert "@VERSION@" not in library_text()
    assert library_version() not in library_text_with_test_clock()
    assert "shipkeeper:test:now" not in library_text()


WEEK, DAY = {"name": "week", "amount": 100, "period": "Week"}, {"name": "day", "amount": 15, "period": "Day"}
FIVE_AN_HOUR = {"name": "hour", "amount": 5, "period": "1h", "alignment": "Rolling"}
WORKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]


def never(document: dict[str, Any]) -> dict[str, str]:
    return limits_that_never_bind(spec_of(document), now=NOW)


def workdays(start: str = "07:00", end: str = "19:00") -> dict[str, Any]:
    return {"rules": [{"days": WORKDAYS, "times": [{"start": start, "end": end}]}]}


def test_a_week_binds_over_seven_days_and_not_over_five() -> None:
    assert never({"limits": [WEEK, DAY]}) == {}
    assert list(never({"limits": [WEEK, DAY], "activeHours": workdays()})) == ["week"]
    assert "75" in never({"limits": [WEEK, DAY], "activeHours": workdays()})["week"]


@pytest.mark.parametrize(
    ("document", "names"),
    [
        (BIRTHDAY, []),
        ({"limits": [DAY, {"name": "other", "amount": 15, "period": "Day"}]}, ["day", "other"]),
        ({"limits": [DAY], "spacing": {"min": "4h", "max": "5h"}}, ["day"]),
        ({"limits": [DAY], "spacing": {"min": "1h", "max": "5h"}}, []),
        ({"limits": [DAY | {"amount": 300}, FIVE_AN_HOUR]}, ["day"]),
        ({"limits": [DAY | {"amount": 100}, FIVE_AN_HOUR]}, []),
        ({"limits": [WEEK, DAY | {"mode": "Shadow"}], "activeHours": workdays()}, []),
        ({"limits": [DAY, {"name": "run", "amount": 5, "period": "Execution"}]}, []),
        ({"limits": [{"name": "month", "amount": 500, "period": "Month"}, DAY]}, ["month"]),
        ({"limits": [{"name": "month", "amount": 400, "period": "Month"}, DAY]}, []),
    ],
)  # fmt: skip
def test_limits_that_never_bind(document: dict[str, Any], names: list[str]) -> None:
    assert sorted(never(document)) == names
