"""Which texts are instants, and which. The zone is Paris: 2024-03-31 has no 02:30, 2024-10-27 has it twice."""

from datetime import UTC, datetime

import pytest

from shipkeeper.migrations.timestamps import UnreadableTimestampError, read_timestamp
from shipkeeper.resources.migrationmapping import TimestampFromText

RULES = TimestampFromText(
    column="sent_at",
    forms=("Iso8601WithOffset", "Iso8601", "Iso8601Date", "DayMonthYear", "EpochSeconds"),
    naive_zone="Europe/Paris",
)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2024-03-01T09:30:00+01:00", datetime(2024, 3, 1, 8, 30)),
        ("2024-03-01 09:30:00Z", datetime(2024, 3, 1, 9, 30)),
        ("2024-07-01T09:30:00.5", datetime(2024, 7, 1, 7, 30, 0, 500_000)),
        ("  2024-01-15  ", datetime(2024, 1, 14, 23, 0)),
        ("01/07/2024 09:30", datetime(2024, 7, 1, 7, 30)),
        ("1709281800", datetime(2024, 3, 1, 8, 30)),
        ("2024-03-31T02:30:00", datetime(2024, 3, 31, 1, 30)),
        ("2024-10-27T02:30:00", datetime(2024, 10, 27, 1, 30)),
        ("2024-02-29", datetime(2024, 2, 28, 23, 0)),
    ],
)
def test_texts_that_name_an_instant(text: str, instant: datetime) -> None:
    assert read_timestamp(text, RULES) == instant.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "hier", "2024-02-30", "2023-02-29", "2024-13-01", "25:00", "2019", "20190304", "1/7/2024", "0001-01-01"],
)
def test_texts_that_name_none(text: str) -> None:
    with pytest.raises(UnreadableTimestampError):
        read_timestamp(text, RULES)


@pytest.mark.parametrize(
    ("text", "change", "instant"),
    [
        ("2024-10-27T02:30:00", {"ambiguous": "Earlier"}, datetime(2024, 10, 27, 0, 30)),
        ("2024-10-27T02:30:00", {"ambiguous": "Reject"}, None),
        ("2024-03-31T02:30:00", {"nonexistent": "Reject"}, None),
    ],
)
def test_what_the_clock_changes_make_of_it(text: str, change: dict[str, str], instant: datetime | None) -> None:
    rules = TimestampFromText.model_validate({**RULES.to_wire(), **change})
    if instant is None:
        with pytest.raises(UnreadableTimestampError):
            read_timestamp(text, rules)
    else:
        assert read_timestamp(text, rules) == instant.replace(tzinfo=UTC)
