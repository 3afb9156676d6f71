"""From a policy to what Redis holds: canonical bytes with a hash, calendars as tables, rules that are Off left out.

Pure and repeatable: the same policy in the same month (and the same release of the zone database) gives the same bytes,
so that the hash alone says whether Redis holds what is declared.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from shipkeeper.resources.circuitbreaker import CircuitBreaker
from shipkeeper.resources.ratelimitpolicy import EXECUTION, Limit, RateLimitPolicySpec, Spacing
from shipkeeper.resources.schedule import ActiveHours, milliseconds

from .calendar import LocalTime, Run, active_intervals, intervals_as_runs, window_starts, windows_as_runs
from .keys import PolicyKeys

FORMAT: Final = 1
ROLLING_STEPS: Final = 16
# Tables are compiled from the beginning of the month, so that they change once a month, and reach far beyond it.
HORIZON: Final = timedelta(days=400)
_LONGEST_WINDOW = timedelta(days=33)
_SIMPLE_STEPS = {"Second": 1, "Minute": 60}


@dataclass(frozen=True)
class CompiledPolicy:
    """What is stored for a policy."""

    body: bytes
    """Canonical JSON."""
    hash: str
    """SHA-1 of the body in hex: Redis can compute it, so what is stored can be proven."""
    valid_until: datetime
    """The tables say nothing from here on; calls would be denied."""


def table_start(now: datetime) -> datetime:
    """Return the beginning of the UTC month: the instant from which tables are compiled."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def compile_policy(spec: RateLimitPolicySpec, keys: PolicyKeys, *, now: datetime) -> CompiledPolicy:
    """Compile a policy; `now` only chooses the month in which its tables begin."""
    start = table_start(now)
    valid_until = start + HORIZON
    local = _local_time(
        spec.time_zone,
        round((start - _LONGEST_WINDOW).timestamp()),
        round((valid_until + _LONGEST_WINDOW).timestamp()),
    )
    document: dict[str, Any] = {
        "format": FORMAT,
        "policy": f"{keys.namespace}/{keys.policy}",
        "mode": spec.mode,
        "validUntil": round(valid_until.timestamp()) * 1000,
        "limits": [_limit(limit, local, spec.time_zone) for limit in spec.limits if limit.mode != "Off"],
        "onStateLoss": spec.on_state_loss,
        # Not for Redis: what a client does when Redis does not answer.
        "client": spec.on_store_unavailable.to_wire(),
    }
    if spec.spacing is not None and spec.spacing.mode != "Off":
        document["spacing"] = _spacing(spec.spacing)
    if spec.active_hours is not None and spec.active_hours.mode != "Off":
        document["active"] = _active(spec.active_hours, local)
    if spec.circuit_breaker is not None and spec.circuit_breaker.override != "Disabled":
        document["breaker"] = _breaker(spec.circuit_breaker)
    if spec.max_subjects is not None:
        document["maxSubjects"] = spec.max_subjects
        document["subjectsKey"] = keys.subjects
    body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    return CompiledPolicy(body, body_hash(body), valid_until)


# To search a year for clock changes takes longer than all the rest, and the policies of a month share a few zones.
_local_time = lru_cache(maxsize=64)(LocalTime)


def body_hash(body: bytes) -> str:
    """Return the hash that a verdict and the status carry. SHA-1 is what Redis offers; it guards against mix-ups."""
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()


def _limit(limit: Limit, local: LocalTime, zone: str) -> dict[str, Any]:
    compiled: dict[str, Any] = {"name": limit.name, "amount": limit.amount, "mode": limit.mode}
    if limit.period == EXECUTION:
        return compiled | {"kind": "X"}
    if limit.alignment == "Calendar":
        # Which windows these are, so that what was taken from others is not given back to them.
        window = f"{limit.period}/{limit.week_start}/{limit.reset_at}/{zone}"
        return compiled | {"kind": "C", "window": window, "runs": _windows(limit, local)}
    period = period_milliseconds(limit)
    if limit.alignment == "FirstUse":
        return compiled | {"kind": "F", "period": period}
    rolling = {"kind": "R", "period": period, "step": -(-period // ROLLING_STEPS)}
    return compiled | rolling | ({"burst": limit.burst} if limit.burst is not None else {})


_PERIOD_MILLISECONDS = {"Second": 1000, "Minute": 60_000, "Hour": 3_600_000, "Day": 86_400_000, "Week": 604_800_000}


def period_milliseconds(limit: Limit) -> int:
    """Return the length of a rolling or first-use window."""
    return _PERIOD_MILLISECONDS.get(limit.period) or milliseconds(limit.period)


def _windows(limit: Limit, local: LocalTime) -> list[int]:
    step = _SIMPLE_STEPS.get(limit.period)
    if step is not None:
        # Every zone's offset is a multiple of a minute, so these windows are the same everywhere.
        first = local.start - local.start % step
        return [first * 1000, step * 1000, (local.end - first) // step]
    starts = window_starts(local, period=limit.period, week_start=limit.week_start, reset_at=limit.reset_at)
    return _numbers((run.first, run.step, run.count) for run in _milliseconds(windows_as_runs(starts)))


def _milliseconds(runs: Iterable[Run]) -> Iterable[Run]:
    return (Run(run.first * 1000, run.step * 1000, run.count, run.length * 1000) for run in runs)


def _numbers(rows: Iterable[tuple[int, ...]]) -> list[int]:
    return [number for row in rows for number in row]


def _spacing(spacing: Spacing) -> dict[str, Any]:
    return {"min": milliseconds(spacing.min), "max": milliseconds(spacing.max), "mode": spacing.mode}


def _active(hours: ActiveHours, local: LocalTime) -> dict[str, Any]:
    runs = _milliseconds(intervals_as_runs(active_intervals(local, hours)))
    return {"mode": hours.mode, "runs": _numbers((run.first, run.step, run.count, run.length) for run in runs)}


def _breaker(breaker: CircuitBreaker) -> dict[str, Any]:
    window, slow = breaker.window, breaker.slow_calls
    compiled = {
        "override": breaker.override,
        "consecutive": breaker.consecutive_failures,
        "failureRate": breaker.failure_rate_percent,
        "slowRate": slow.rate_percent if slow else None,
        "slowerThan": milliseconds(slow.slower_than) if slow else None,
        "windowSize": window.size if window else None,
        "windowDuration": milliseconds(window.duration) if window and window.duration else None,
        "minimumCalls": window.minimum_calls if window else None,
        "openInitial": milliseconds(breaker.open_time.initial),
        "openMultiplier": breaker.open_time.multiplier,
        "openMax": milliseconds(breaker.open_time.max),
        "permits": breaker.half_open.permits,
        "permitTimeout": milliseconds(breaker.half_open.permit_timeout),
        "successThreshold": breaker.half_open.success_threshold,
    }
    # An absent number is left out: Lua's JSON would read null as a value that is true.
    return {name: value for name, value in compiled.items() if value is not None}
