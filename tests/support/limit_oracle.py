"""What a policy should decide, worked out the slow way: from wall clocks and a list of admitted calls.

It shares only the models with the compiler and the Lua library: windows are labels of local time, active hours are
looked up on the wall clock, and every count is a sum over the calls that were admitted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytz

from shipkeeper.resources.ratelimitpolicy import Limit, RateLimitPolicySpec
from shipkeeper.resources.schedule import WEEKDAYS, milliseconds

MINUTE = 60_000
_LENGTHS = {"Minute": MINUTE, "Hour": 60 * MINUTE, "Day": 1440 * MINUTE, "Week": 7 * 1440 * MINUTE}
_ROLLING_STEPS = 16


@dataclass(frozen=True)
class AdmittedCall:
    """One call that was let through."""

    at: int
    cost: int
    execution: str


@dataclass(frozen=True)
class Expected:
    """What the library should answer."""

    allowed: bool
    rules: frozenset[str]
    """Every rule that refuses."""
    retry_at: int | None
    """Milliseconds; None when allowed or never."""
    remaining: dict[str, int]
    """Units left per limit after the decision."""


@dataclass
class Oracle:
    """Decides for one subject."""

    spec: RateLimitPolicySpec
    calls: list[AdmittedCall] = field(default_factory=list)
    next_call: int = 0

    def local(self, now: int) -> datetime:
        """Return the wall clock of the policy's zone."""
        zone = pytz.timezone(self.spec.time_zone)
        return datetime.fromtimestamp(now / 1000, UTC).astimezone(zone)

    def decide(self, now: int, cost: int, execution: str) -> Expected:
        """Return what acquire should answer; nothing is charged."""
        refusals: dict[str, int | None] = {}
        for limit in self._enforced():
            used, free_at = self._use(limit, now, cost, execution)
            if cost > limit.amount:
                refusals[limit.name] = None
            elif used + cost > limit.amount:
                refusals[limit.name] = free_at
        if self.spec.spacing is not None and now < self.next_call:
            refusals["spacing"] = self.next_call
        if self.spec.active_hours is not None and not self.is_open(now):
            refusals["activeHours"] = self.next_opening(now)
        allowed = not refusals
        charged = cost if allowed else 0
        remaining = {
            limit.name: max(0, limit.amount - self._use(limit, now, cost, execution)[0] - charged)
            for limit in self._enforced()
        }
        return Expected(allowed, frozenset(refusals), self._retry(refusals), remaining)

    def _enforced(self) -> list[Limit]:
        return [limit for limit in self.spec.limits if limit.mode == "Enforce"]

    def admit(self, now: int, cost: int, execution: str, next_call: int) -> None:
        """Charge a call, with the pause that the server drew."""
        self.calls.append(AdmittedCall(now, cost, execution))
        self.next_call = next_call

    def _retry(self, refusals: dict[str, int | None]) -> int | None:
        if not refusals or None in refusals.values():
            return None
        retry = max(at for at in refusals.values() if at is not None)
        return self.next_opening(retry) if self.spec.active_hours is not None else retry

    def _use(self, limit: Limit, now: int, cost: int, execution: str) -> tuple[int, int | None]:
        """Return what counts now, and from when the cost would fit."""
        if limit.period == "Execution":
            return sum(call.cost for call in self.calls if call.execution == execution), None
        if limit.alignment == "Calendar":
            label = self.label(limit, now)
            used = sum(call.cost for call in self.calls if self.label(limit, call.at) == label)
            stride = 6 * 60 * MINUTE if limit.period in ("Day", "Week", "Month") else MINUTE
            return used, self._first_instant(now, lambda at: self.label(limit, at) != label, stride=stride)
        period = _LENGTHS.get(limit.period) or milliseconds(limit.period)
        if limit.alignment == "FirstUse":
            return self._first_use(now, period)
        return self._rolling(now, period, limit.amount - cost)

    def _first_use(self, now: int, period: int) -> tuple[int, int | None]:
        start, used = None, 0
        for call in self.calls:
            if start is None or call.at >= start + period:
                start, used = call.at, 0
            used += call.cost
        if start is None or now >= start + period:
            return 0, None
        return used, start + period

    def _rolling(self, now: int, period: int, room: int) -> tuple[int, int | None]:
        step = -(-period // _ROLLING_STEPS)

        def used_at(instant: int) -> int:
            return sum(call.cost for call in self.calls if call.at // step + _ROLLING_STEPS >= instant // step)

        free = now
        while used_at(free) > room and free < now + 3 * period:
            free = (free // step + 1) * step
        return used_at(now), free

    def label(self, limit: Limit, now: int) -> object:
        """Return a name of the calendar window that holds the instant: equal for all instants of one window."""
        if limit.period == "Minute":
            return now // MINUTE
        local = self.local(now)
        if limit.period == "Hour":
            return local.date(), local.hour, local.utcoffset()
        hours, minutes = limit.reset_at.split(":")
        day = (local.replace(tzinfo=None) - timedelta(hours=int(hours), minutes=int(minutes))).date()
        if limit.period == "Day":
            return day
        if limit.period == "Week":
            return day - timedelta(days=(day.weekday() - WEEKDAYS.index(limit.week_start)) % 7)
        return day.year, day.month

    def is_open(self, now: int) -> bool:
        """Whether the wall clock shows an active time."""
        hours = self.spec.active_hours
        assert hours is not None
        local = self.local(now)
        today, yesterday = local.date(), local.date() - timedelta(days=1)
        clock = f"{local.hour:02}:{local.minute:02}"
        special = {each.date: each.times for each in hours.exceptions}

        def ranges(day: object) -> list[tuple[str, str]]:
            text = str(day)
            if text in special:
                return [(each.start, each.end) for each in special[text]]
            weekday = WEEKDAYS[datetime.fromisoformat(text).weekday()]
            return [(each.start, each.end) for rule in hours.rules if weekday in rule.days for each in rule.times]

        starts_today = any(start <= clock and (clock < end or end <= start) for start, end in ranges(today))
        over_midnight = any(end <= start and clock < end for start, end in ranges(yesterday))
        return starts_today or over_midnight

    def next_opening(self, now: int) -> int | None:
        """Return the first active instant at or after this one, within ten days."""
        if self.is_open(now):
            return now
        return self._first_instant(now, self.is_open)

    def _first_instant(self, now: int, holds: Callable[[int], bool], *, stride: int = 5 * MINUTE) -> int | None:
        """Return the first whole minute after now where it holds, if it then holds for the stride."""
        low = now // MINUTE * MINUTE
        while low < now + 40 * 1440 * MINUTE:
            if holds(low + stride):
                if stride == MINUTE:
                    return low + MINUTE
                return self._first_instant(low, holds, stride=5 * MINUTE if stride > 5 * MINUTE else MINUTE)
            low += stride
        return None
