"""Local time for the limiter's oracle: zoneinfo's arithmetic, on the zone data that the compiler reads through pytz.

One release of the data on both sides, so that a difference is an error of the arithmetic and not of the machine's
packages. All instants are milliseconds since 1970.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from zoneinfo import ZoneInfo

import pytz

from shipkeeper.resources.ratelimitpolicy import Limit
from shipkeeper.resources.schedule import WEEKDAYS, ActiveHours

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
_LONGEST_WINDOW = 33 * DAY


@cache
def time_zone(name: str) -> ZoneInfo:
    """Return the zone."""
    with pytz.open_resource(name) as data:  # type: ignore[attr-defined] # its stubs lack it
        return ZoneInfo.from_file(data, key=name)


def milliseconds_of(moment: datetime | None) -> int | None:
    """Return an instant as milliseconds since 1970."""
    return None if moment is None else round(moment.timestamp() * 1000)


def local_time(zone: ZoneInfo, now: int) -> datetime:
    """Return what the wall clock shows, with its offset."""
    return datetime.fromtimestamp(now // 1000, UTC).astimezone(zone)


def _offset(zone: ZoneInfo, now: int) -> timedelta:
    return local_time(zone, now).utcoffset() or timedelta()


def clock_change(zone: ZoneInfo, low: int, high: int) -> int | None:
    """Return the first instant in (low, high] with another offset than low has, when high has another one."""
    if _offset(zone, low) == _offset(zone, high):
        return None
    before = _offset(zone, low)
    while high - low > SECOND:
        middle = (low + high) // 2 // SECOND * SECOND
        if _offset(zone, middle) == before:
            low = middle
        else:
            high = middle
    return high


def _furthest_wall(zone: ZoneInfo, now: int) -> datetime:
    """Return the latest wall-clock time shown so far: while times come twice, the one before the clock went back."""
    local = local_time(zone, now)
    if local.fold:
        change = clock_change(zone, now - 3 * HOUR, now)
        if change is not None:
            local = local_time(zone, change - SECOND)
    return local.replace(tzinfo=None)


def _first_day(limit: Limit, zone: ZoneInfo, now: int) -> date:
    """Return the date on which the limit's day, week or month began."""
    hours, minutes = limit.reset_at.split(":")
    day = (_furthest_wall(zone, now) - timedelta(hours=int(hours), minutes=int(minutes))).date()
    if limit.period == "Week":
        return day - timedelta(days=(day.weekday() - WEEKDAYS.index(limit.week_start)) % 7)
    return day.replace(day=1) if limit.period == "Month" else day


def _hour_window(zone: ZoneInfo, now: int) -> tuple[int, int]:
    """Return the hour on the wall clock: it begins at minute 0, or where a change shows another hour."""

    def begins(instant: int) -> bool:
        shown = local_time(zone, instant)
        return shown.minute == 0 or shown.hour != local_time(zone, instant - MINUTE).hour

    start = now // MINUTE * MINUTE
    while not begins(start):
        start -= MINUTE
    end = now // MINUTE * MINUTE + MINUTE
    while not begins(end):
        end += MINUTE
    return start, end


def calendar_window(limit: Limit, zone_name: str, now: int) -> tuple[int, int]:
    """Return the start and the end of the calendar window that holds an instant."""
    if limit.period in ("Second", "Minute"):
        length = SECOND if limit.period == "Second" else MINUTE
        return now // length * length, now // length * length + length
    return _window_of_minute(limit, zone_name, now // MINUTE)


@lru_cache(maxsize=4096)
def _window_of_minute(limit: Limit, zone_name: str, minute: int) -> tuple[int, int]:
    zone, now = time_zone(zone_name), minute * MINUTE
    if limit.period == "Hour":
        return _hour_window(zone, now)
    window = _first_day(limit, zone, now)

    def first_minute_at_or_after(low: int, high: int, wanted: date) -> int:
        while high - low > 1:
            middle = (low + high) // 2
            if _first_day(limit, zone, middle * MINUTE) >= wanted:
                high = middle
            else:
                low = middle
        return high * MINUTE

    reach = _LONGEST_WINDOW // MINUTE
    end = first_minute_at_or_after(minute, minute + reach, window + timedelta(days=1))
    return first_minute_at_or_after(minute - reach, minute, window), end


def _ranges(hours: ActiveHours, day: date) -> list[tuple[str, str]]:
    for exception in hours.exceptions:
        if exception.date == day.isoformat():
            return [(each.start, each.end) for each in exception.times]
    weekday = WEEKDAYS[day.weekday()]
    return [(each.start, each.end) for rule in hours.rules if weekday in rule.days for each in rule.times]


def is_open(hours: ActiveHours, zone_name: str, now: int) -> bool:
    """Whether the wall clock shows an active time."""
    local = local_time(time_zone(zone_name), now)
    today, clock = local.date(), f"{local.hour:02}:{local.minute:02}"
    starts_today = any(start <= clock and (clock < end or end <= start) for start, end in _ranges(hours, today))
    yesterday = _ranges(hours, today - timedelta(days=1))
    return starts_today or any(end <= start and clock < end for start, end in yesterday)


def next_opening(hours: ActiveHours, zone_name: str, now: int, *, days: int = 400) -> int | None:
    """Return the first active instant at or after this one; None when there is none within so many days."""
    if is_open(hours, zone_name, now):
        return now
    first = local_time(time_zone(zone_name), now).date() - timedelta(days=1)
    for number in range(days):
        day = first + timedelta(days=number)
        found = [at for at in _possible_openings(hours, zone_name, day) if at > now and is_open(hours, zone_name, at)]
        # A later day's start can come earlier only where clocks change, so the next day is looked at as well.
        found += [
            at
            for at in _possible_openings(hours, zone_name, day + timedelta(days=1))
            if found and now < at < min(found) and is_open(hours, zone_name, at)
        ]
        if found:
            return min(found)
    return None


def active_edges(hours: ActiveHours, zone_name: str, now: int) -> set[int]:
    """Return the instants of about a day from now on at which the hours may open or close."""
    today = local_time(time_zone(zone_name), now).date()
    days = [today + timedelta(days=number) for number in (-1, 0, 1)]
    found = {at for day in days for at in _possible_openings(hours, zone_name, day)}
    for day in days:
        found |= {at for _, end in _ranges(hours, day) for at in _instants(day, end, zone_name)}
    return found


def _possible_openings(hours: ActiveHours, zone_name: str, day: date) -> Iterator[int]:
    """Yield the instants of a day at which the hours may open: a range's start, once or twice, and a clock change."""
    for start, _ in _ranges(hours, day):
        yield from _instants(day, start, zone_name)
    zone = time_zone(zone_name)
    midnight = _instant(datetime(day.year, day.month, day.day), zone, 0)
    change = clock_change(zone, midnight - HOUR, midnight + 26 * HOUR)
    if change is not None:
        yield change


def _instants(day: date, clock: str, zone_name: str) -> Iterator[int]:
    """Yield when the wall clock shows a time of a date, once or twice."""
    hour, minute = clock.split(":")
    wall = datetime(day.year, day.month, day.day) + timedelta(hours=int(hour), minutes=int(minute))
    for fold in (0, 1):
        yield _instant(wall, time_zone(zone_name), fold)


def _instant(wall: datetime, zone: ZoneInfo, fold: int) -> int:
    return round(wall.replace(tzinfo=zone, fold=fold).timestamp()) * 1000
