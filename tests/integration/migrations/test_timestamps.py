"""PostgreSQL's set-based reading of timestamps and Python's row by row must be the same function."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shipkeeper.migrations.catalog import Column
from shipkeeper.migrations.postgresql import PostgresqlDialect
from shipkeeper.migrations.timestamps import UnreadableTimestampError, read_timestamp
from shipkeeper.resources.migrationmapping import TimestampFromText

pytestmark = pytest.mark.integration

TEXT = Column(name="t", type="text", family="text", nullable=True, has_default=False)
TIMESTAMP = Column(name="at", type="timestamp without time zone", family="timestamp", nullable=True, has_default=False)
# Zones whose rules have not changed lately: PostgreSQL and pytz bring zone databases of different ages.
ZONES = (
    "Europe/Paris",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "UTC",
    "Europe/Moscow",
)

two = st.integers(0, 99).map("{:02}".format)
year = st.one_of(st.integers(1950, 2037).map(str), st.integers(0, 9999).map("{:04}".format))
mostly_month = st.one_of(st.integers(1, 12).map("{:02}".format), two)
mostly_day = st.one_of(st.integers(1, 31).map("{:02}".format), two)
clock = st.builds(
    "{}:{}{}".format,
    st.one_of(st.integers(0, 23).map("{:02}".format), two),
    st.one_of(st.integers(0, 59).map("{:02}".format), two),
    st.one_of(
        st.just(""),
        st.builds(":{:02}".format, st.integers(0, 61)),
        st.builds(":{:02}.{}".format, st.integers(0, 59), st.text("0123456789", min_size=0, max_size=8)),
    ),
)
offset = st.sampled_from(
    ("Z", "z", "+01:00", "-0330", "+14:59", "+15:00", "+1", "+01", "-12:60", "+05:45", " +01:00", "")
)
separator = st.sampled_from(("T", " ", "t", "  ", ""))
slash = st.sampled_from(("/", "-", ".", ":"))
space = st.sampled_from(("", "", "", " ", "\t", "\n ", "\u00a0"))
near_dst = st.builds(
    "{}T{:02}:{:02}:00".format,
    st.sampled_from(("2024-03-31", "2024-10-27", "2024-03-10", "2024-11-03", "2024-04-07", "2024-10-06", "2014-10-26")),
    st.integers(0, 4),
    st.integers(0, 59),
)
texts = st.one_of(
    st.builds(
        lambda y, m, d, s, c, o: f"{y}-{m}-{d}{s}{c}{o}", year, mostly_month, mostly_day, separator, clock, offset
    ),
    st.builds(lambda y, m, d: f"{y}-{m}-{d}", year, mostly_month, mostly_day),
    st.builds(lambda y, m, d, a, b: f"{d}{a}{m}{b}{y}", year, mostly_month, mostly_day, slash, slash),
    st.builds(lambda y, m, d, a, c: f"{d}{a}{m}{a}{y} {c}", year, mostly_month, mostly_day, slash, clock),
    near_dst,
    st.integers(-(10**13), 10**14).map(str),
    st.integers(-(10**10), 10**11).map(str),
    st.text("0123456789-:T+.Z /", max_size=26),
    st.sampled_from(
        ("", "hier", "2024-02-29", "2023-02-29", "1900-02-29", "2000-02-29", "0001-01-01", "9999-12-31", "२०२४-03-01")
    ),
)
spaced = st.builds("{}{}{}".format, space, texts, space)
rules = st.builds(
    TimestampFromText,
    column=st.just("t"),
    forms=st.sampled_from(
        (
            ("Iso8601WithOffset", "Iso8601"),
            ("Iso8601WithOffset", "Iso8601", "Iso8601Date", "DayMonthYear", "EpochSeconds"),
            ("Iso8601Date", "MonthDayYear", "EpochMilliseconds", "Iso8601"),
            ("EpochMilliseconds", "EpochSeconds"),
        )
    ),
    naive_zone=st.sampled_from(ZONES),
    ambiguous=st.sampled_from(("Later", "Earlier", "Reject")),
    nonexistent=st.sampled_from(("ShiftForward", "Reject")),
)


def in_python(text: str, how: TimestampFromText) -> datetime | None:
    """Read one text as SQLite's function does."""
    try:
        return read_timestamp(text, how).replace(tzinfo=None)
    except UnreadableTimestampError:
        return None


@settings(
    max_examples=150,
    phases=(Phase.explicit, Phase.generate),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batch=st.lists(spaced, min_size=20, max_size=60), how=rules)
def test_both_readers_agree(postgresql: Any, reader_loop: Any, batch: list[str], how: TimestampFromText) -> None:
    expression = PostgresqlDialect().timestamp("source.t", source=TEXT, rules=how, target=TIMESTAMP)
    query = f"SELECT {expression} FROM unnest($1::text[]) WITH ORDINALITY AS source(t, n) ORDER BY n"
    found = reader_loop(postgresql.connection.fetch(query, batch))
    assert dict(zip(batch, (row[0] for row in found), strict=True)) == {text: in_python(text, how) for text in batch}


@pytest.fixture
def reader_loop(postgresql: Any) -> Any:
    """Run a coroutine of the fixture's connection from a synchronous test."""
    return postgresql.connection._loop.run_until_complete
