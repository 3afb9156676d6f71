"""Boundary tables against the wall clock, in zones whose clocks change in every way."""

import itertools
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from shipkeeper.limits.calendar import (
    DAY,
    HOUR,
    LocalTime,
    Run,
    active_intervals,
    intervals_as_runs,
    window_starts,
    windows_as_runs,
)
from shipkeeper.resources.schedule import ActiveHours

START = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
END = START + 400 * DAY
ZONES = (
    "Europe/Paris",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "Africa/Cairo",  # at midnight
    "America/Santiago",
    "Asia/Kolkata",
    "Pacific/Kiritimati",
    "UTC",
)
LOCALS = {zone: LocalTime(zone, START, END) for zone in ZONES}


def wall_clock(zone: str, instant: int) -> datetime:
    return datetime.fromtimestamp(instant, UTC).astimezone(pytz.timezone(zone)).replace(tzinfo=None)


def expanded(runs: Iterable[Run]) -> list[tuple[int, int]]:
    return [
        (run.first + index * run.step, run.first + index * run.step + run.length)
        for run in runs
        for index in range(run.count)
    ]


@pytest.mark.parametrize("zone", ZONES)
@given(instant=st.integers(START, END - 1))
def test_local_time_is_the_wall_clock(zone: str, instant: int) -> None:
    seconds = (wall_clock(zone, instant) - datetime(1970, 1, 1)).total_seconds()
    assert LOCALS[zone].to_local(instant) == seconds


@pytest.mark.parametrize("zone", ZONES)
def test_days_begin_at_the_first_instant_of_their_date(zone: str) -> None:
    starts = window_starts(LOCALS[zone], period="Day")
    assert 398 <= len(starts) <= 401
    for start in starts:
        before, after = wall_clock(zone, start - 1), wall_clock(zone, start)
        assert after.date() > before.date()


def test_the_two_changes_of_paris_make_a_short_and_a_long_day() -> None:
    starts = window_starts(LOCALS["Europe/Paris"], period="Day")
    lengths = {
        wall_clock("Europe/Paris", start).date(): (end - start) // HOUR for start, end in itertools.pairwise(starts)
    }
    assert {day: hours for day, hours in lengths.items() if hours != 24} == {
        date(2026, 3, 29): 23,
        date(2026, 10, 25): 25,
    }


@pytest.mark.parametrize("zone", ZONES)
def test_weeks_and_months_begin_on_their_days(zone: str) -> None:
    weeks = window_starts(LOCALS[zone], period="Week", week_start="Sunday", reset_at="12:00")
    assert all(wall_clock(zone, start).strftime("%A %H:%M") == "Sunday 12:00" for start in weeks)
    months = window_starts(LOCALS[zone], period="Month", reset_at="06:00")
    assert all(wall_clock(zone, start).strftime("%d %H:%M") == "01 06:00" for start in months)
    assert len(months) in (13, 14)


@pytest.mark.parametrize("zone", ZONES)
def test_hours_begin_where_the_hour_on_the_clock_does(zone: str) -> None:
    starts = window_starts(LOCALS[zone], period="Hour")
    gaps = {end - start for start, end in itertools.pairwise(starts)}
    usual = {HOUR, HOUR // 2, 3 * HOUR // 2} if zone == "Australia/Lord_Howe" else {HOUR}
    assert gaps <= usual
    assert all(wall_clock(zone, start).minute in (0, 30) for start in starts)


def test_a_reset_that_a_change_of_clocks_skips_is_the_change() -> None:
    starts = window_starts(LOCALS["Europe/Paris"], period="Day", reset_at="02:30")
    assert round(datetime(2026, 3, 29, 1, 0, tzinfo=UTC).timestamp()) in starts


def test_a_reset_that_comes_twice_is_the_first() -> None:
    starts = window_starts(LOCALS["Europe/Paris"], period="Day", reset_at="02:30")
    assert round(datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()) in starts
    assert round(datetime(2026, 10, 25, 1, 30, tzinfo=UTC).timestamp()) not in starts


@given(lengths=st.lists(st.sampled_from([3600, 7200, 86400]), min_size=1, max_size=40), first=st.integers(0, 10**6))
def test_runs_are_the_same_windows(lengths: list[int], first: int) -> None:
    starts = [first]
    for length in lengths:
        starts.append(starts[-1] + length)
    windows = list(itertools.pairwise(starts))
    assert expanded(windows_as_runs(starts)) == windows


@given(
    parts=st.lists(
        st.tuples(st.sampled_from([3600, 7200]), st.sampled_from([3600, 7200, 86400])), min_size=1, max_size=40
    )
)
def test_runs_are_the_same_intervals(parts: list[tuple[int, int]]) -> None:
    intervals, at = [], 0
    for gap, length in parts:
        at += gap
        intervals.append((at, at + length))
        at += length
    assert expanded(intervals_as_runs(intervals)) == intervals


def test_a_year_of_a_calendar_is_a_few_numbers() -> None:
    assert len(windows_as_runs(window_starts(LOCALS["Europe/Paris"], period="Day"))) == 5
    assert len(windows_as_runs(window_starts(LOCALS["Europe/Paris"], period="Week"))) == 5


RANGES = st.tuples(st.integers(0, 95), st.integers(1, 96)).filter(lambda pair: pair[0] != pair[1])


def clock(quarters: int) -> str:
    return f"{quarters // 4:02}:{quarters % 4 * 15:02}"


@settings(max_examples=60, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    ranges=st.lists(RANGES, min_size=1, max_size=3),
    days=st.lists(st.sampled_from(["Monday", "Saturday", "Sunday"]), min_size=1, max_size=3, unique=True),
    instants=st.lists(st.integers(START + 2 * DAY, END - 2 * DAY), min_size=1, max_size=30),
    change=st.sampled_from(["2026-03-29", "2026-10-25", "2026-04-05", "2026-10-04"]),
    offset=st.integers(-DAY, DAY),
)
def test_an_instant_is_inside_exactly_when_the_wall_clock_says_so(
    zone: str, ranges: list[tuple[int, int]], days: list[str], instants: list[int], change: str, offset: int
) -> None:
    times = [{"start": clock(start), "end": clock(end)} for start, end in ranges]
    exception = {"date": "2026-06-01", "times": []}
    hours = ActiveHours.model_validate({"rules": [{"days": days, "times": times}], "exceptions": [exception]})
    intervals = active_intervals(LOCALS[zone], hours)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(intervals))
    near_change = round(datetime.fromisoformat(change).replace(tzinfo=UTC).timestamp()) + offset
    for instant in [*instants, near_change]:
        inside = any(start <= instant < end for start, end in intervals)
        assert inside == is_active(wall_clock(zone, instant), ranges, days)


def is_active(local: datetime, ranges: list[tuple[int, int]], days: list[str]) -> bool:
    """The definition, by wall clock alone."""
    minute = local.hour * 60 + local.minute

    def open_on(day: date) -> bool:
        return day.strftime("%A") in days and day != date(2026, 6, 1)

    for start, end in ranges:
        over_midnight = end <= start
        if open_on(local.date()) and start * 15 <= minute and (minute < end * 15 or over_midnight):
            return True
        if over_midnight and open_on(local.date() - timedelta(days=1)) and minute < end * 15:
            return True
    return False
