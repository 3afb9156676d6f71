"""Use of a policy's limits, as status shows it: at a slow pace, only on change, from numbers the store answered.

Status is not a metric. A decision changes counters many times a second; status follows at most every half minute. Only
a circuit that opens or closes is shown at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

from shipkeeper.limits.store_state import Circuit, StoreState, SubjectUse
from shipkeeper.limits.verdict import LimitState
from shipkeeper.resources.ratelimitpolicy import Limit, RateLimitPolicy
from shipkeeper.resources.ratelimitpolicy_status import (
    BreakerState,
    BreakerStatus,
    LimitStatus,
    RateLimitPolicyStatus,
)

from .ratelimitpolicy_facts import ObservedStore

REFRESH = timedelta(seconds=30)

_STATES: tuple[BreakerState, ...] = ("Closed", "Open", "HalfOpen", "ForcedOpen", "Disabled")
_TRIPS = ("", "ConsecutiveFailures", "FailureRate", "SlowCalls", "ProbeFailed")
_SEVERITY = {"ForcedOpen": 4, "Open": 3, "HalfOpen": 2, "Closed": 1, "Disabled": 0}


def definition(limit: Limit, time_zone: str) -> str:
    """Return as one line what decides which window a count belongs to."""
    if limit.alignment != "Calendar" or limit.period == "Execution":
        return f"{limit.period} {limit.alignment}" if limit.alignment != "Calendar" else limit.period
    start = f" from {limit.week_start}" if limit.period == "Week" else ""
    at = f" at {limit.reset_at}" if limit.period in ("Day", "Week", "Month") else ""
    return f"{limit.period} Calendar{start}{at} {time_zone}"


def usage_is_due(resource: RateLimitPolicy, *, now: datetime) -> bool:
    """Whether use should be read: it was not yet for this generation, or the last change shown is old enough."""
    status = resource.status
    if status is None or status.observed_generation != resource.metadata.generation:
        return True
    if {limit.name for limit in status.limits} != {limit.name for limit in resource.spec.limits if limit.mode != "Off"}:
        return True
    return status.usage_as_of is None or now - status.usage_as_of >= REFRESH


def subjects_to_read(resource: RateLimitPolicy, store: StoreState, *, default: str) -> tuple[str, ...]:
    """Return the subjects whose use may be worth showing: those shown now, and those the store saw near a limit."""
    status = resource.status
    shown = [limit.subject for limit in status.limits if limit.subject] if status else []
    if status and status.breaker and status.breaker.subject:
        shown.append(status.breaker.subject)
    return tuple(dict.fromkeys([*shown, *store.busy_subjects, default]))[:12]


def with_usage(
    resource: RateLimitPolicy,
    observed: ObservedStore,
    status: RateLimitPolicyStatus,
    *,
    never_binding: Mapping[str, str],
    now: datetime,
) -> RateLimitPolicyStatus:
    """Return the status with use and breaker brought up to date, where they were read and differ."""
    if observed.uses is None or observed.store is None:
        return status
    breaker = _breaker(resource, observed.uses)
    changed_circuit = _circuit_identity(breaker) != _circuit_identity(status.breaker)
    if not usage_is_due(resource, now=now) and not changed_circuit:
        return status
    limits = tuple(_limit_statuses(resource, observed.store, observed.uses, never_binding))
    if limits == status.limits and breaker == status.breaker:
        return status
    return status.model_copy(
        update={"limits": limits, "breaker": breaker, "tightest": _tightest(limits), "usage_as_of": now}
    )


def _circuit_identity(breaker: BreakerStatus | None) -> tuple[str, datetime | None] | None:
    if breaker is None:
        return None
    return breaker.state, None if breaker.state == "Closed" else breaker.since


def _limit_statuses(
    resource: RateLimitPolicy, store: StoreState, uses: Sequence[SubjectUse], never_binding: Mapping[str, str]
) -> Iterable[LimitStatus]:
    before = {limit.name: limit for limit in resource.status.limits} if resource.status else {}
    for limit in resource.spec.limits:
        candidates = [(use.subject, each) for use in uses for each in use.limits if each.name == limit.name]
        if not candidates:
            continue
        # The subject already shown wins a tie, so that status does not change for nothing.
        shown = before[limit.name].subject if limit.name in before else ""
        subject, use = max(candidates, key=lambda pair: (pair[1].used, pair[0] == shown))
        yield LimitStatus(
            name=limit.name,
            amount=use.amount,
            used=use.used,
            remaining=use.remaining,
            subject=subject if use.used else shown,
            resets_at=_whole_second(use.resets_at) if use.used else None,
            denied=store.denied.get(limit.name, 0),
            would_deny=store.would_deny.get(limit.name, 0),
            never_binds=never_binding.get(limit.name, ""),
            definition=definition(limit, resource.spec.time_zone),
            after_edit=_after_edit(before.get(limit.name), definition(limit, resource.spec.time_zone), use),
        )


def _whole_second(instant: datetime | None) -> datetime | None:
    return instant.replace(microsecond=0) if instant else None


def _after_edit(
    before: LimitStatus | None, now_defined: str, use: LimitState
) -> Literal["", "CountKept", "CountRestarted"]:
    if before is None or not before.definition:
        return ""
    if before.definition == now_defined:
        return before.after_edit
    if before.used == 0:
        return ""
    return "CountKept" if use.used >= before.used else "CountRestarted"


def _tightest(limits: Sequence[LimitStatus]) -> str:
    if not limits:
        return ""
    limit = max(limits, key=lambda each: each.used / each.amount)
    return f"{limit.name} {limit.used}/{limit.amount}"


def _breaker(resource: RateLimitPolicy, uses: Sequence[SubjectUse]) -> BreakerStatus | None:
    declared = resource.spec.circuit_breaker
    if declared is None:
        return None
    if declared.override == "Disabled":
        return BreakerStatus(state="Disabled")
    circuits = [(use.subject, use.circuit) for use in uses if use.circuit is not None]
    if not circuits:
        return BreakerStatus(state="ForcedOpen" if declared.override == "ForcedOpen" else "Closed")
    shown = resource.status.breaker.subject if resource.status and resource.status.breaker else ""
    subject, circuit = max(
        circuits, key=lambda pair: (_SEVERITY[_STATES[pair[1].state]], pair[1].consecutive_failures, pair[0] == shown)
    )
    return _breaker_status(subject, circuit)


def _breaker_status(subject: str, circuit: Circuit) -> BreakerStatus:
    is_open = _STATES[circuit.state] == "Open"
    return BreakerStatus(
        state=_STATES[circuit.state],
        subject=subject if circuit.since else "",
        since=_whole_second(circuit.since),
        open_until=_whole_second(circuit.open_until) if is_open else None,
        permits_in_use=circuit.permits_in_use,
        consecutive_failures=circuit.consecutive_failures,
        last_trip=_TRIPS[circuit.last_trip],
    )
