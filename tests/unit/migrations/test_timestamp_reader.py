"""The stated rules for text that says when."""

from datetime import datetime

import pytest

from shipkeeper.migrations.timestamps import UnreadableTimestampError, read_timestamp
from shipkeeper.resources.migrationmapping import TimestampForm, TimestampFromText

ALL_BUT_MONTH_FIRST: tuple[TimestampForm, ...] = (
    "Iso8601WithOffset",
    "Iso8601",
    "Iso8601Date",
    "DayMonthYear",
    "EpochSeconds",
    "EpochMilliseconds",
)
PARIS = TimestampFromText(column="t", forms=ALL_BUT_MONTH_FIRST, naive_zone="Europe/Paris")


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2024-03-01T09:30:00+01:00", "2024-03-01T08:30:00"),
        ("2024-03-01 09:30Z", "2024-03-01T09:30:00"),
        ("2024-03-01T09:30:00.5-0330", "2024-03-01T13:00:00.500000"),
        ("2024-03-01T09:30:00+01", "2024-03-01T08:30:00"),
        ("2024-03-01T09:30:00", "2024-03-01T08:30:00"),
        ("2024-07-01T09:30:00.123456", "2024-07-01T07:30:00.123456"),
        (" 2024-07-01 09:30\n", "2024-07-01T07:30:00"),
        ("2024-03-01", "2024-02-29T23:00:00"),
        ("01/03/2024", "2024-02-29T23:00:00"),
        ("29.02.2024 09:30:15", "2024-02-29T08:30:15"),
        ("1709281800", "2024-03-01T08:30:00"),
        ("1709281800500", "2024-03-01T08:30:00.500000"),
        # Skipped by the clock change: read with the offset before it.
        ("2024-03-31T02:30:00", "2024-03-31T01:30:00"),
        # Twice: the later instant.
        ("2024-10-27T02:30:00", "2024-10-27T01:30:00"),
    ],
)
def test_accepted_forms(text: str, utc: str) -> None:
    assert read_timestamp(text, PARIS).replace(tzinfo=None) == datetime.fromisoformat(utc)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hier",
        "2024-02-30",
        "2023-02-29T10:00:00",
        "2024-13-01",
        "2024-01-01T24:00:00",
        "2024-01-01T10:00:60",
        "2024-1-1",
        "32/01/2024",
        "2024-01-01T10:00:00+15:00",
        "2024-01-01T10:00:00.1234567",
        "0001-01-01",
        "9999-12-31",
        "２０２４-01-01",
        "2024-01-01\n2024-01-01",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UnreadableTimestampError):
        read_timestamp(text, PARIS)


def test_rules_for_times_that_exist_twice_or_never() -> None:
    earlier = PARIS.model_copy(update={"ambiguous": "Earlier"})
    assert read_timestamp("2024-10-27T02:30:00", earlier).replace(tzinfo=None) == datetime(2024, 10, 27, 0, 30)
    strict = PARIS.model_copy(update={"ambiguous": "Reject", "nonexistent": "Reject"})
    for text in ("2024-10-27T02:30:00", "2024-03-31T02:30:00"):
        with pytest.raises(UnreadableTimestampError, match="Europe/Paris"):
            read_timestamp(text, strict)
    assert read_timestamp("2024-10-27T03:30:00", strict).hour == 2


def test_month_first() -> None:
    rules = TimestampFromText(column="t", forms=("MonthDayYear",))
    assert read_timestamp("03/01/2024 10:00", rules).replace(tzinfo=None) == datetime(2024, 3, 1, 10)
