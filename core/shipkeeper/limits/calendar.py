"""Calendars as tables: where windows begin and hours are open, as instants, over every change of the clocks.

Redis knows no time zones. So each calendar is turned into runs of equal steps ("from here, so many days of 24 hours;
then one of 23; ..."), a few numbers for a year. All instants are whole seconds since 1970-01-01 UTC.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytz

from shipkeeper.resources.schedule import WEEKDAYS, ActiveHours, ActiveRange

DAY = 86_400
HOUR = 3_600
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Run:
    """`count` intervals that begin every `step` seconds from `first` on, each of this length."""

    first: int
    step: int
    count: int
    length: int


@dataclass(frozen=True)
class OffsetSegment:
    """A stretch of time with one offset of local time from UTC."""

    start: int
    end: int
    offset: int


class LocalTime:
    """Local time of one zone between two instants. pytz, not the machine, knows the zones: every replica the same."""

    def __init__(self, zone_name: str, start: int, end: int) -> None:
        self._zone = pytz.timezone(zone_name)
        self.start = start
        self.end = end
        self.segments = tuple(self._find_segments())
        self._starts = [segment.start for segment in self.segments]

    def _offset(self, instant: int) -> int:
        offset = datetime.fromtimestamp(instant, UTC).astimezone(self._zone).utcoffset()
        return round((offset or timedelta()).total_seconds())

    def _find_segments(self) -> Iterator[OffsetSegment]:
        begin, offset = self.start, self._offset(self.start)
        low = self.start
        while low < self.end:
            high = min(low + DAY // 4, self.end)
            if self._offset(high) != offset:
                change = self._first_change(low, high, offset)
                yield OffsetSegment(begin, change, offset)
                begin, offset = change, self._offset(change)
                low = change
            else:
                low = high
        yield OffsetSegment(begin, self.end, offset)

    def _first_change(self, low: int, high: int, offset: int) -> int:
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset(middle) == offset:
                low = middle
            else:
                high = middle
        return high

    def to_local(self, instant: int) -> int:
        """Return local wall-clock time as seconds since 1970-01-01 00:00 local."""
        segment = self.segments[max(0, bisect_right(self._starts, instant) - 1)]
        return instant + segment.offset

    def first_instant(self, wall: int) -> int:
        """Return the first instant at which the wall clock shows this or later (a skipped time: the change itself)."""
        for segment in self.segments:
            candidate = max(segment.start, wall - segment.offset)
            if candidate < segment.end:
                return candidate
        return self.end

    def instants_between(self, wall_start: int, wall_end: int) -> Iterator[tuple[int, int]]:
        """Yield the stretches during which the wall clock shows a time in [start, end)."""
        for segment in self.segments:
            start = max(segment.start, wall_start - segment.offset)
            end = min(segment.end, wall_end - segment.offset)
            if start < end:
                yield start, end


def _day_number(day: date) -> int:
    return (day - _EPOCH).days


def _date(day_number: int) -> date:
    return _EPOCH + timedelta(days=day_number)


def seconds_of(time_of_day: str) -> int:
    """Return HH:MM as seconds since midnight; 24:00 is a whole day."""
    hours, minutes = time_of_day.split(":")
    return int(hours) * HOUR + int(minutes) * 60


def _hour_starts(local: LocalTime) -> Iterator[int]:
    """Yield where the hour on the wall clock begins or changes, in zones with half-hour changes too."""
    before: OffsetSegment | None = None
    for segment in local.segments:
        first = segment.start + (-(segment.start + segment.offset)) % HOUR
        if before is not None and first != segment.start:
            hour_before = (segment.start - 1 + before.offset) // HOUR
            if (segment.start + segment.offset) // HOUR != hour_before:
                yield segment.start
        yield from range(first, segment.end, HOUR)
        before = segment


def _is_first_day(period: str, week_start: str) -> Callable[[date], bool]:
    if period == "Day":
        return lambda day: True
    if period == "Week":
        first = WEEKDAYS.index(week_start)
        return lambda day: day.weekday() == first
    return lambda day: day.day == 1


def window_starts(local: LocalTime, *, period: str, week_start: str = "Monday", reset_at: str = "00:00") -> list[int]:
    """Return where the windows of a calendar period begin, in order: Hour, Day, Week or Month."""
    if period == "Hour":
        return list(_hour_starts(local))
    first_day = local.to_local(local.start) // DAY
    last_day = local.to_local(local.end) // DAY
    begins = _is_first_day(period, week_start)
    walls = (n * DAY + seconds_of(reset_at) for n in range(first_day, last_day + 1) if begins(_date(n)))
    covered = local.to_local(local.start)
    starts = {local.first_instant(wall) for wall in walls if wall >= covered}
    return sorted(start for start in starts if start < local.end)


def windows_as_runs(starts: Sequence[int]) -> tuple[Run, ...]:
    """Turn the starts of adjoining windows into runs; the last start is only the end of the last window."""
    return intervals_as_runs(pairwise(starts))


def intervals_as_runs(intervals: Iterable[tuple[int, int]]) -> tuple[Run, ...]:
    """Turn ordered, disjoint intervals into runs of equal length and step."""
    runs: list[Run] = []
    for start, end in intervals:
        length = end - start
        last = runs[-1] if runs else None
        if last is not None and last.length == length:
            step = start - last.first - (last.count - 1) * last.step
            if last.count == 1:
                runs[-1] = Run(last.first, start - last.first, 2, length)
                continue
            if step == last.step:
                runs[-1] = Run(last.first, last.step, last.count + 1, length)
                continue
        runs.append(Run(start, length, 1, length))
    return tuple(runs)


def _ranges_by_date(hours: ActiveHours) -> Callable[[date], Sequence[ActiveRange]]:
    exceptions: Mapping[str, Sequence[ActiveRange]] = {each.date: each.times for each in hours.exceptions}

    def ranges(day: date) -> Sequence[ActiveRange]:
        special = exceptions.get(day.isoformat())
        if special is not None:
            return special
        weekday = WEEKDAYS[day.weekday()]
        return [active for rule in hours.rules if weekday in rule.days for active in rule.times]

    return ranges


def active_intervals(local: LocalTime, hours: ActiveHours) -> list[tuple[int, int]]:
    """Return when the hours are open, as ordered, disjoint intervals of instants.

    An instant is inside exactly when the wall clock then shows a time of a range; a range that ends before it starts
    runs over midnight and belongs to the day of its start.
    """
    ranges = _ranges_by_date(hours)
    found: list[tuple[int, int]] = []
    for number in range(local.to_local(local.start) // DAY - 1, local.to_local(local.end) // DAY + 1):
        for active in ranges(_date(number)):
            start, end = seconds_of(active.start), seconds_of(active.end)
            end += DAY if end <= start else 0
            found.extend(local.instants_between(number * DAY + start, number * DAY + end))
    return _joined(found)


def _joined(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
