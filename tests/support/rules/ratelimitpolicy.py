"""Every rule of RateLimitPolicy, broken and kept."""

from typing import Any

from support.paths import ABSENT
from support.rules.case import Change, RuleCase

_MASTER = "store.sentinelMaster is needed with topology Sentinel, and only there"
_ZONE = "write the name of an IANA time zone as in the zone database"
_NOTHING = "the policy limits nothing"
_TIMES = "start and end of an active range must differ"
_BUDGET = "onStoreUnavailable.localBudget is needed with action LocalBudget, and only there"
_TIMEOUT = "onStoreUnavailable.timeout must be at least 10ms and at most 60s"
_BUDGET_PERIOD = "onStoreUnavailable.localBudget.period must be at least 1s and at most 744h"
_PERIOD = "period must be at least 1s and at most 8784h"
_WINDOW_SIZE = "circuitBreaker.window needs exactly one of size"
_WINDOW_SPAN = "circuitBreaker.window.duration must be at least 1s and at most 24h"
_PERMIT = "circuitBreaker.halfOpen.permitTimeout must be longer than zero and at most 1h"

_BY_TIME: tuple[Change, ...] = (("spec.circuitBreaker.window", {"duration": "5m"}),)


def _limit(message: str, refused: dict[str, Any], accepted: dict[str, Any]) -> RuleCase:
    """Return the case of a rule of one limit, given as what the limit says beside its name and amount."""
    named = {"name": "one", "amount": 10}
    return RuleCase(
        rule="spec.limits[]",
        message=message,
        field="spec.limits[0]",
        refused=(("spec.limits", [{**named, **refused}]),),
        accepted=(("spec.limits", [{**named, **accepted}]),),
    )


def _field(path: str, message: str, refused: Any, accepted: Any, *, rule: str | None = None) -> RuleCase:
    """Return the case of a rule that one value of a field breaks and another keeps."""
    place = path.rsplit(".", 1)[0] if rule is None else rule
    return RuleCase(rule=place, message=message, field=place, refused=((path, refused),), accepted=((path, accepted),))


CASES = (
    RuleCase(
        rule="",
        message="metadata.name must be at most 52 characters",
        field="<nil>",
        refused=(("metadata.name", "a" * 53),),
        accepted=(("metadata.name", "a" * 52),),
    ),
    RuleCase(
        rule="spec",
        message=_NOTHING,
        field="spec",
        refused=tuple((f"spec.{name}", ABSENT) for name in ("limits", "spacing", "activeHours", "circuitBreaker")),
        accepted=tuple((f"spec.{name}", ABSENT) for name in ("spacing", "activeHours", "circuitBreaker")),
    ),
    RuleCase(
        rule="spec",
        message=_NOTHING,
        field="spec",
        base="breaker-by-time",
        refused=(("spec.limits", []), ("spec.circuitBreaker", ABSENT)),
        accepted=(("spec.limits", []),),
    ),
    _field("spec.store.topology", _MASTER, "Standalone", "Sentinel"),
    _field("spec.store.topology", _MASTER, "Cluster", "Sentinel"),
    RuleCase(
        rule="spec.store",
        message=_MASTER,
        field="spec.store",
        refused=(("spec.store.sentinelMaster", ABSENT),),
        accepted=(("spec.store.sentinelMaster", ABSENT), ("spec.store.topology", "Cluster")),
    ),
    _field("spec.timeZone", _ZONE, "Mars/Olympus", "America/Argentina/ComodRivadavia", rule="spec.timeZone"),
    _field("spec.timeZone", _ZONE, "Local", "Etc/GMT+12", rule="spec.timeZone"),
    _field("spec.timeZone", _ZONE, "europe/paris", "Europe/Paris", rule="spec.timeZone"),
    _limit(_PERIOD, {"period": "999ms", "alignment": "Rolling"}, {"period": "1000ms", "alignment": "Rolling"}),
    _limit(_PERIOD, {"period": "8784h1ms", "alignment": "Rolling"}, {"period": "8784h", "alignment": "Rolling"}),
    _limit("a period given as a duration has no calendar", {"period": "1h"}, {"period": "1h", "alignment": "FirstUse"}),
    _limit("a month has no fixed length", {"period": "Month", "alignment": "Rolling"}, {"period": "Month"}),
    _limit(
        "period Execution has no alignment", {"period": "Execution", "alignment": "FirstUse"}, {"period": "Execution"}
    ),
    _limit(
        "weekStart has an effect only with period Week",
        {"period": "Day", "weekStart": "Sunday"},
        {"period": "Week", "weekStart": "Sunday"},
    ),
    _limit(
        "weekStart has an effect only with period Week",
        {"period": "Week", "alignment": "Rolling", "weekStart": "Sunday"},
        {"period": "Week", "alignment": "Rolling", "weekStart": "Monday"},
    ),
    _limit(
        "resetAt has an effect only with period Day, Week or Month",
        {"period": "Hour", "resetAt": "00:01"},
        {"period": "Month", "resetAt": "23:59"},
    ),
    _limit(
        "burst needs alignment Rolling",
        {"period": "Day", "burst": 2},
        {"period": "Day", "burst": 2, "alignment": "Rolling"},
    ),
    _limit(
        "burst must not be above amount",
        {"period": "Day", "alignment": "Rolling", "burst": 11},
        {"period": "Day", "alignment": "Rolling", "burst": 10},
    ),
    *(
        _limit(
            "name must not be spacing, reservations, config or store",
            {"name": word, "period": "Day"},
            {"name": f"{word}s", "period": "Day"},
        )
        for word in ("spacing", "reservations", "config", "store")
    ),
    _field("spec.spacing.min", "spacing.min must not be above spacing.max", "181s", "3m"),
    RuleCase(
        rule="spec.spacing",
        message="spacing.max must be longer than zero",
        field="spec.spacing",
        refused=(("spec.spacing", {"min": "0s", "max": "0s"}),),
        accepted=(("spec.spacing", {"min": "0s", "max": "1ms"}),),
    ),
    _field("spec.spacing.max", "spacing.max must be at most 24h", "24h1s", "24h"),
    RuleCase(
        rule="spec.activeHours.rules[]",
        message="days of an active rule must not repeat a day",
        field="spec.activeHours.rules[0]",
        refused=(("spec.activeHours.rules[0].days", ["Monday", "Friday", "Monday"]),),
        accepted=(("spec.activeHours.rules[0].days", ["Monday", "Friday", "Sunday"]),),
    ),
    RuleCase(
        rule="spec.activeHours.rules[].times[]",
        message=_TIMES,
        field="spec.activeHours.rules[0].times[1]",
        refused=(("spec.activeHours.rules[0].times[1]", {"start": "07:00", "end": "07:00"}),),
        accepted=(("spec.activeHours.rules[0].times[1]", {"start": "00:00", "end": "24:00"}),),
    ),
    RuleCase(
        rule="spec.activeHours.exceptions[].times[]",
        message=_TIMES,
        field="spec.activeHours.exceptions[1].times[0]",
        refused=(("spec.activeHours.exceptions[1].times[0].end", "08:00"),),
        accepted=(("spec.activeHours.exceptions[1].times[0].end", "07:59"),),
    ),
    RuleCase(
        rule="spec.circuitBreaker",
        message="circuitBreaker needs at least one of consecutiveFailures, failureRatePercent and slowCalls",
        field="spec.circuitBreaker",
        refused=(("spec.circuitBreaker", {"override": "ForcedOpen"}),),
        accepted=(("spec.circuitBreaker", {"consecutiveFailures": 1}),),
    ),
    _field(
        "spec.circuitBreaker",
        "circuitBreaker.failureRatePercent and slowCalls need circuitBreaker.window",
        {"failureRatePercent": 50},
        {"failureRatePercent": 50, "window": {"size": 50}},
        rule="spec.circuitBreaker",
    ),
    _field(
        "spec.circuitBreaker",
        "circuitBreaker.window has no effect without failureRatePercent or slowCalls",
        {"consecutiveFailures": 5, "window": {"size": 50}},
        {"consecutiveFailures": 5, "window": {"size": 50}, "slowCalls": {"slowerThan": "2s", "ratePercent": 80}},
        rule="spec.circuitBreaker",
    ),
    _field(
        "spec.circuitBreaker.slowCalls.slowerThan",
        "circuitBreaker.slowCalls.slowerThan must be longer than zero",
        "0s",
        "1ms",
    ),
    RuleCase(
        rule="spec.circuitBreaker.window",
        message=_WINDOW_SIZE,
        field="spec.circuitBreaker.window",
        refused=(("spec.circuitBreaker.window.duration", "5m"),),
        accepted=_BY_TIME,
    ),
    RuleCase(
        rule="spec.circuitBreaker.window",
        message=_WINDOW_SIZE,
        field="spec.circuitBreaker.window",
        refused=(("spec.circuitBreaker.window", {"minimumCalls": 20}),),
    ),
    _field(
        "spec.circuitBreaker.window.minimumCalls",
        "circuitBreaker.window.minimumCalls must not be above size",
        51,
        50,
    ),
    _field(
        "spec.circuitBreaker.window",
        _WINDOW_SPAN,
        {"duration": "999ms"},
        {"duration": "1s"},
        rule="spec.circuitBreaker.window",
    ),
    _field(
        "spec.circuitBreaker.window",
        _WINDOW_SPAN,
        {"duration": "24h1ms"},
        {"duration": "24h"},
        rule="spec.circuitBreaker.window",
    ),
    _field(
        "spec.circuitBreaker.openTime.initial", "circuitBreaker.openTime.initial must be longer than zero", "0s", "1ms"
    ),
    _field(
        "spec.circuitBreaker.openTime.initial", "circuitBreaker.openTime.initial must not be above max", "61s", "1m"
    ),
    _field("spec.circuitBreaker.openTime.max", "circuitBreaker.openTime.max must be at most 24h", "1441m", "1440m"),
    _field("spec.circuitBreaker.halfOpen.permitTimeout", _PERMIT, "0ms", "1ms"),
    _field("spec.circuitBreaker.halfOpen.permitTimeout", _PERMIT, "3601s", "1h"),
    RuleCase(
        rule="spec.onStoreUnavailable",
        message=_BUDGET,
        field="spec.onStoreUnavailable",
        refused=(("spec.onStoreUnavailable.action", "Allow"),),
        accepted=(("spec.onStoreUnavailable", {"action": "Allow"}),),
    ),
    RuleCase(
        rule="spec.onStoreUnavailable",
        message=_BUDGET,
        field="spec.onStoreUnavailable",
        refused=(("spec.onStoreUnavailable.localBudget", ABSENT),),
    ),
    _field("spec.onStoreUnavailable.timeout", _TIMEOUT, "9ms", "10ms"),
    _field("spec.onStoreUnavailable.timeout", _TIMEOUT, "61s", "1m"),
    _field("spec.onStoreUnavailable.localBudget.period", _BUDGET_PERIOD, "0.9s", "1s"),
    _field("spec.onStoreUnavailable.localBudget.period", _BUDGET_PERIOD, "745h", "744h"),
)
