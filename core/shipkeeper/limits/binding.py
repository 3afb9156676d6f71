"""Limits that can never be the one that denies, because the other rules never let so much through.

"100 a week" under "15 a day" on five active days admits at most 75: the week's limit looks like protection and is none.
A warning, not an error: the other rule may be loosened tomorrow. Only what is certain is said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from shipkeeper.resources.ratelimitpolicy import EXECUTION, Limit, RateLimitPolicySpec
from shipkeeper.resources.schedule import milliseconds

from .calendar import LocalTime, active_intervals, window_starts
from .compiler import HORIZON, period_milliseconds, table_start

Interval = tuple[int, int]
_CALENDAR = ("Hour", "Day", "Week", "Month")
_NOMINAL_SECONDS = {"Second": 1, "Minute": 60, "Hour": 3600, "Day": 86_400, "Week": 604_800, "Month": 31 * 86_400}


@dataclass(frozen=True)
class _Bound:
    """Another rule, and the most it admits during some stretch of time."""

    text: str
    most: Callable[[Sequence[Interval]], int]


def limits_that_never_bind(spec: RateLimitPolicySpec, *, now: datetime) -> dict[str, str]:
    """Return for each enforced limit that cannot deny why not, by the limit's name."""
    start = table_start(now)
    local = LocalTime(spec.time_zone, round(start.timestamp()), round((start + HORIZON).timestamp()))
    whole: list[Interval] = [(local.start, local.end)]
    hours = spec.active_hours
    open_time = active_intervals(local, hours) if hours is not None and hours.mode == "Enforce" else whole
    enforced = [limit for limit in spec.limits if limit.mode == "Enforce"]
    bounds = {limit.name: bound for limit in enforced if (bound := _bound_of(limit, local)) is not None}
    found = {}
    for limit in enforced:
        windows = _windows(limit, local)
        others = [bound for name, bound in bounds.items() if name != limit.name]
        if spec.spacing is not None and spec.spacing.mode == "Enforce":
            others.append(_spacing_bound(milliseconds(spec.spacing.min)))
        reason = _reason(limit, windows, open_time, others)
        if reason:
            found[limit.name] = reason
    return found


def _windows(limit: Limit, local: LocalTime) -> list[Interval]:
    """Return the limit's calendar windows that are worth a look; none where its windows have no fixed place."""
    if limit.alignment != "Calendar" or limit.period not in ("Day", "Week", "Month"):
        return []
    starts = window_starts(local, period=limit.period, week_start=limit.week_start, reset_at=limit.reset_at)
    return list(pairwise(starts))


def _bound_of(limit: Limit, local: LocalTime) -> _Bound | None:
    if limit.period == EXECUTION:
        return None  # any number of executions may run in a stretch of time
    text = f"{limit.name} ({limit.amount} per {limit.period})"
    if limit.alignment == "Calendar" and limit.period in _CALENDAR:
        starts = window_starts(local, period=limit.period, week_start=limit.week_start, reset_at=limit.reset_at)
        return _Bound(text, lambda stretch: limit.amount * _windows_touched(starts, stretch))
    seconds = _NOMINAL_SECONDS.get(limit.period) or period_milliseconds(limit) / 1000

    def most(stretch: Sequence[Interval]) -> int:
        # A span of the period's length admits the amount; a stretch is covered by so many spans and one more.
        return limit.amount * (int((stretch[-1][1] - stretch[0][0]) / seconds) + 2) if stretch else 0

    return _Bound(text, most)


def _windows_touched(starts: Sequence[int], stretch: Sequence[Interval]) -> int:
    count, at = 0, 0
    for index, start in enumerate(starts):
        end = starts[index + 1] if index + 1 < len(starts) else start + _NOMINAL_SECONDS["Month"]
        while at < len(stretch) and stretch[at][1] <= start:
            at += 1
        if at < len(stretch) and stretch[at][0] < end:
            count += 1
    return count


def _spacing_bound(gap_milliseconds: int) -> _Bound:
    gap = gap_milliseconds / 1000

    def most(stretch: Sequence[Interval]) -> int:
        if gap <= 0 or not stretch:
            return 10**12
        return sum(int((end - start) / gap) + 1 for start, end in stretch)

    return _Bound(f"spacing (at least {gap:g} s)", most)


def _reason(limit: Limit, windows: Sequence[Interval], open_time: Sequence[Interval], others: Sequence[_Bound]) -> str:
    if not windows:
        return ""
    stretches = [_clip(open_time, window) for window in windows]
    for other in others:
        most = max(other.most(stretch) for stretch in stretches)
        if most <= limit.amount:
            return f"{other.text} admits at most {most} in any such window, so {limit.amount} is never exceeded"
    return ""


def _clip(intervals: Sequence[Interval], window: Interval) -> list[Interval]:
    return [
        (max(start, window[0]), min(end, window[1]))
        for start, end in intervals
        if start < window[1] and end > window[0]
    ]
