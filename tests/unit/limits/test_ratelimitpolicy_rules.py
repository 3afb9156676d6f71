"""The rules of a policy, as the models check them without a cluster: the message names the field and the fix."""

from typing import Any

import pytest
from pydantic import ValidationError

from shipkeeper.limits.failures import MEANINGS, StoreFailure
from support.limit_policies import BIRTHDAY, spec_of

DAY = {"name": "day", "amount": 15, "period": "Day"}
WINDOW = {"size": 10, "minimumCalls": 5}


def with_limit(**changes: Any) -> dict[str, Any]:
    return {"limits": [DAY | changes]}


def with_hours(**rule: Any) -> dict[str, Any]:
    return {"activeHours": {"rules": [{"times": [{"start": "07:00", "end": "19:00"}]} | rule]}}


def with_exceptions(*dates: str) -> dict[str, Any]:
    hours = with_hours()["activeHours"]
    return {"activeHours": hours | {"exceptions": [{"date": each} for each in dates]}}


def without_store(**settings: Any) -> dict[str, Any]:
    return BIRTHDAY | {"onStoreUnavailable": settings}


def with_breaker(**changes: Any) -> dict[str, Any]:
    return {"circuitBreaker": changes}


REFUSED: list[tuple[dict[str, Any], str]] = [
    (BIRTHDAY | {"timeZone": "Europe/Pari"}, "not an IANA time zone"),
    (with_limit(amount=0), "greater than or equal to 1"),
    (with_limit(amount=-5), "greater than or equal to 1"),
    (with_limit(period="Fortnight"), "pattern"),
    (with_limit(period="0s", alignment="Rolling"), "at least 1s"),
    (with_limit(period="9000h", alignment="Rolling"), "at most 8784h"),
    (with_limit(period="90s"), "set alignment to Rolling or FirstUse"),
    (with_limit(period="Month", alignment="Rolling"), "no fixed length"),
    (with_limit(period="Execution", alignment="Rolling"), "has no alignment"),
    (with_limit(weekStart="Sunday"), "weekStart"),
    (with_limit(period="Hour", resetAt="04:00"), "resetAt"),
    (with_limit(resetAt="24:00"), "pattern"),
    (with_limit(burst=3), "burst needs alignment Rolling"),
    (with_limit(burst=30, alignment="Rolling"), "burst must not be above amount"),
    ({"limits": [DAY, DAY]}, "'day' twice"),
    ({}, "the policy limits nothing"),
    ({"spacing": {"min": "180s", "max": "90s"}}, "spacing.min must not be above"),
    ({"spacing": {"min": "0s", "max": "0s"}}, "longer than zero"),
    ({"spacing": {"min": "1s", "max": "25h"}}, "at most 24h"),
    ({"activeHours": {"rules": []}}, "at least 1"),
    (with_hours(times=[{"start": "07:00", "end": "07:00"}]), "must differ"),
    (with_hours(times=[{"start": "7:00", "end": "19:00"}]), "pattern"),
    (with_hours(days=["Monday", "Monday"]), "repeat a day"),
    (with_exceptions("2026-02-30"), "date"),
    (with_exceptions("2026-12-25", "2026-12-25"), "twice"),
    (with_breaker(), "at least one of consecutiveFailures"),
    (with_breaker(failureRatePercent=50), "need circuitBreaker.window"),
    (with_breaker(consecutiveFailures=1, window=WINDOW), "no effect without"),
    (with_breaker(failureRatePercent=50, window={"size": 5, "duration": "9s"}), "exactly one of size"),
    (with_breaker(failureRatePercent=50, window={"minimumCalls": 1}), "exactly one of size"),
    (with_breaker(failureRatePercent=50, window={"size": 5, "minimumCalls": 6}), "minimumCalls must not be above size"),
    (with_breaker(failureRatePercent=50, window={"duration": "25h"}), "at least 1s and at most 24h"),
    (with_breaker(slowCalls={"slowerThan": "0s", "ratePercent": 50}, window=WINDOW), "slowerThan"),
    (with_breaker(consecutiveFailures=0), "greater than or equal to 1"),
    (with_breaker(consecutiveFailures=1, openTime={"initial": "61s", "max": "60s"}), "initial must not be above max"),
    (with_breaker(consecutiveFailures=1, openTime={"initial": "0s", "max": "60s"}), "longer than zero"),
    (with_breaker(consecutiveFailures=1, openTime={"initial": "1s", "max": "25h"}), "at most 24h"),
    (with_breaker(consecutiveFailures=1, halfOpen={"permitTimeout": "0s"}), "permitTimeout"),
    (BIRTHDAY | {"onStoreUnavailable": {"action": "LocalBudget"}}, "localBudget is needed"),
    (BIRTHDAY | {"onStoreUnavailable": {"localBudget": {"amount": 1, "period": "1h"}}}, "localBudget is needed"),
    (without_store(action="LocalBudget", localBudget={"amount": 1, "period": "1ms"}), "at least 1s"),
    (BIRTHDAY | {"onStoreUnavailable": {"timeout": "1ms"}}, "at least 10ms"),
    (BIRTHDAY | {"store": {"urlFrom": {"name": "a", "key": "url"}, "topology": "Sentinel"}}, "sentinelMaster"),
    (BIRTHDAY | {"store": {"urlFrom": {"name": "a", "key": "url"}, "sentinelMaster": "m"}}, "sentinelMaster"),
    (BIRTHDAY | {"maxSubjects": 0}, "greater than or equal to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        spec_of(document)
    assert message in str(error.value)


ACCEPTED: list[dict[str, Any]] = [
    BIRTHDAY,
    with_limit(period="Week", weekStart="Sunday", resetAt="04:30"),
    with_limit(period="1h30m", alignment="Rolling", burst=15),
    with_limit(period="8784h", alignment="FirstUse"),
    {"spacing": {"min": "0s", "max": "1ms"}},
    {"activeHours": {"rules": [{"times": [{"start": "22:00", "end": "06:00"}, {"start": "00:00", "end": "24:00"}]}]}},
    with_breaker(override="ForcedOpen", slowCalls={"slowerThan": "2s", "ratePercent": 50}, window={"duration": "1m"}),
    BIRTHDAY | {"onStoreUnavailable": {"action": "LocalBudget", "localBudget": {"amount": 5, "period": "1h"}}},
    BIRTHDAY | {"store": {"urlFrom": {"name": "a", "key": "b"}, "topology": "Sentinel", "sentinelMaster": "mymaster"}},
]


@pytest.mark.parametrize("document", ACCEPTED)
def test_accepted_and_unchanged_by_the_wire(document: dict[str, Any]) -> None:
    spec = spec_of(document)
    assert type(spec).model_validate(spec.to_wire()) == spec


def test_every_failure_has_a_meaning() -> None:
    assert set(MEANINGS) == set(StoreFailure)
