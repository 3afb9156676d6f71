"""How version 1, hands and imports wrote the instant of a message, and texts that no one can read."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate

import pytz

PARIS = pytz.timezone("Europe/Paris")

Spelling = Callable[[datetime], str]
"""Writes a wall-clock time in Paris (naive)."""


def _instant(local: datetime) -> datetime:
    """Return the instant of a wall-clock time that exists once."""
    return PARIS.localize(local, is_dst=None)


def _with_offset(local: datetime) -> str:
    return _instant(local).isoformat()


def _utc(local: datetime) -> str:
    return f"{_instant(local).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _compact_offset(local: datetime) -> str:
    return f"{_instant(local):%Y-%m-%dT%H:%M:%S%z}"


def _microseconds(local: datetime) -> str:
    return f"{local:%Y-%m-%dT%H:%M:%S}.000000"


# With weights: naive times came first, offsets later, the rest by hand and by imports.
SPELLINGS: tuple[tuple[int, Spelling], ...] = (
    (420, lambda local: local.isoformat()),
    (80, _microseconds),
    (290, _with_offset),
    (40, _utc),
    (15, _compact_offset),
    (60, lambda local: f"{local:%Y-%m-%d %H:%M:%S}"),
    (10, lambda local: f" {local.isoformat()} "),
    (10, lambda local: f"{local:%d/%m/%Y %H:%M:%S}"),
    (5, lambda local: f"{local:%d-%m-%Y %H:%M:%S}"),
    (5, lambda local: f"{local:%d.%m.%Y %H:%M:%S}"),
    (10, lambda local: str(int(_instant(local).timestamp()))),
)
# These lose the seconds, or the time of the day: what is true is then what is left.
TO_THE_MINUTE: tuple[tuple[int, Spelling], ...] = (
    (20, lambda local: f"{local:%Y-%m-%d %H:%M}"),
    (15, lambda local: f"{local:%d/%m/%Y %H:%M}"),
)
TO_THE_DAY: tuple[tuple[int, Spelling], ...] = (
    (12, lambda local: f"{local:%Y-%m-%d}"),
    (8, lambda local: f"{local:%d/%m/%Y}"),
)
_WAYS = SPELLINGS + TO_THE_MINUTE + TO_THE_DAY
_CUMULATIVE = tuple(accumulate(weight for weight, _ in _WAYS))

EMPTY = ("", " ", "   ")
UNREADABLE = (
    "hier", "lundi matin", "1er mars {year}", "{year}-02-30T10:00:00", "{year}-13-01", "{year}-05-04 25:00", "??",
    "{year}-03-01T09:30:00+01:00 (à vérifier)", "31/04/{year}", "March 3, {year}", "NULL",
    "17092818000000", "0000-00-00 00:00:00",
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A text and the instant that it stands for."""

    text: str
    instant: datetime


def write(local: datetime, dice: random.Random) -> Written:
    """Write the wall-clock time (whole seconds, in the daytime) in one of the ways, and say what it then stands for."""
    way = dice.choices(_WAYS, cum_weights=_CUMULATIVE)[0]
    if way in TO_THE_MINUTE:
        local = local.replace(second=0)
    elif way in TO_THE_DAY:
        local = local.replace(hour=0, minute=0, second=0)
    return Written(way[1](local), _instant(local).astimezone(UTC))


def _last_sunday(year: int, month: int) -> datetime:
    day = datetime(year, month, 31)
    return day - timedelta(days=(day.weekday() + 1) % 7)


def skipped_by_clock_change(year: int, minute: int) -> Written:
    """Return a time that was on no clock: in March, 02:00 is followed by 03:00. Meant is the hour after."""
    local = _last_sunday(year, 3).replace(hour=2, minute=minute)
    return Written(local.isoformat(), (local - timedelta(hours=1)).replace(tzinfo=UTC))


def twice_on_the_clock(year: int, minute: int) -> Written:
    """Return a time that was on the clock twice: in October, 03:00 is followed by 02:00. Taken is the second."""
    local = _last_sunday(year, 10).replace(hour=2, minute=minute)
    return Written(local.isoformat(), (local - timedelta(hours=1)).replace(tzinfo=UTC))
