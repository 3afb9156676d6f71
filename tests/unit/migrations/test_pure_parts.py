"""The parts of the engine that only compute: sizes, windows, spans, URLs, what is not supported."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.errors import MigrationError, explain, last_error
from shipkeeper.migrations.reporting import Rate, shown_span
from shipkeeper.migrations.sizing import BatchSizer
from shipkeeper.migrations.support import unsupported
from shipkeeper.migrations.throttle import is_open
from shipkeeper.resources.migrationjob import Batch, DailyWindow
from support.migration_databases import sample_spec


def test_a_batch_grows_and_shrinks_toward_its_duration() -> None:
    sizer = BatchSizer(Batch(initial_size=1_000, min_size=100, max_size=4_000, target_duration="500ms"))
    sizer.succeeded(rows=1_000, took_milliseconds=100)
    assert sizer.size == 2_000
    sizer.succeeded(rows=2_000, took_milliseconds=100)
    sizer.succeeded(rows=4_000, took_milliseconds=100)
    assert sizer.size == 4_000
    sizer.succeeded(rows=4_000, took_milliseconds=750)
    assert sizer.size == 2_667
    sizer.succeeded(rows=10, took_milliseconds=1)  # The last range of the table.
    assert sizer.size == 2_667


@given(bad=st.integers(0, 999))
def test_a_failing_row_is_isolated_in_few_batches(bad: int) -> None:
    sizer = BatchSizer(Batch(initial_size=1_000, min_size=1_000, max_size=1_000))
    position, tries, rejected = 0, 0, None
    while position < 1_000:
        rows = min(sizer.size, 1_000 - position)
        tries += 1
        if position <= bad < position + rows and rejected is None:
            if rows > 1:
                sizer.failed(rows=rows)
                continue
            rejected = position
        sizer.succeeded(rows=rows, took_milliseconds=500)
        position += rows
    assert rejected == bad
    # Halving to the row, and doubling back after it: about twice the logarithm each.
    assert tries <= 4 * 10


@pytest.mark.parametrize(
    ("start", "end", "clock", "is_in"),
    [
        ("01:00", "05:00", "00:59", False),
        ("01:00", "05:00", "01:00", True),
        ("01:00", "05:00", "05:00", False),
        ("22:00", "06:00", "23:30", True),
        ("22:00", "06:00", "05:59", True),
        ("22:00", "06:00", "06:00", False),
    ],
)
def test_daily_window(start: str, end: str, clock: str, is_in: bool) -> None:
    window = DailyWindow(start=start, end=end)
    assert is_open(window, now=datetime.fromisoformat(f"2024-06-01T{clock}:00+00:00")) is is_in


def test_daily_window_is_by_its_own_clock() -> None:
    window = DailyWindow(start="01:00", end="02:00", time_zone="Europe/Paris")
    assert is_open(window, now=datetime(2024, 6, 1, 23, 30, tzinfo=UTC))
    assert not is_open(window, now=datetime(2024, 6, 1, 1, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1s"), (59, "59s"), (80, "1m20s"), (7_500, "2h5m"), (270_000, "3d3h"), (3_600, "1h")]
)
def test_spans_for_people(seconds: float, text: str) -> None:
    assert shown_span(seconds) == text


def test_rate_follows_the_batches() -> None:
    rate = Rate()
    rate.add(rows=1_000, seconds=1)
    assert rate.value == 1_000
    for _ in range(50):
        rate.add(rows=2_000, seconds=1)
    assert 1_900 < rate.value <= 2_000
    rate.add(rows=5, seconds=0)
    assert rate.value <= 2_000


@pytest.mark.parametrize("driver", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2"])
def test_urls_of_other_drivers_are_understood(driver: str) -> None:
    url = parse_url(f" {driver}://app:p%40ss@db:5432/app\n")
    assert url.value.drivername == "postgresql+asyncpg"
    assert url.value.password == "p@ss"
    assert "p%40ss" not in repr(url)
    assert "p@ss" in url.secrets()


@pytest.mark.parametrize(
    "text", ["", "nonsense", "mysql://a:secret@b/c", "postgresql:///c", "sqlite://", "sqlite:///:memory:"]
)
def test_bad_urls_are_not_quoted(text: str) -> None:
    with pytest.raises(MigrationError) as failure:
        parse_url(text)
    assert failure.value.reason == "DatabaseUrlInvalid"
    assert "secret" not in str(failure.value)


def test_secrets_are_taken_out_of_texts() -> None:
    error = MigrationError("StatementFailed", "no entry for app:hunter2", retry="Never", key="k" * 300)
    shown = last_error(error, secrets=("hunter2",))
    assert shown.message == "no entry for app:***"
    assert shown.key is not None
    assert len(shown.key) == 256


def test_a_bug_is_called_one() -> None:
    assert explain(ZeroDivisionError("division by zero")).reason == "InternalError"
    assert explain(ConnectionRefusedError("refused")).reason == "DatabaseUnreachable"
    assert explain(TimeoutError()).retry == "Soon"


def test_what_is_not_supported_is_named() -> None:
    assert unsupported(sample_spec()) == ()
    steps = sample_spec().to_wire()["steps"]
    steps[1]["consolidate"]["follow"] = True
    spec = sample_spec(steps=steps, parallelism=2)
    assert [field for field, _ in unsupported(spec)] == [
        "spec.parallelism",
        "spec.steps[1].consolidate.follow",
    ]


def test_what_a_source_cannot_be_is_named() -> None:
    file = {"sqlite": {"claimName": "old", "path": "old.db"}}
    steps = [*sample_spec().to_wire()["steps"], {"name": "retire", "retire": {"table": "birthday_messages"}}]
    assert unsupported(sample_spec(source=file)) == ()
    assert unsupported(sample_spec(source={"urlFrom": {"name": "old", "key": "url"}}, steps=steps)) == ()
    assert [field for field, _ in unsupported(sample_spec(source=file, steps=steps))] == ["spec.steps[2].retire"]
    assert [field for field, _ in unsupported(sample_spec(source=file, database=file))] == ["spec.source"]
    for change in (
        {"rollback": True},
        {"parallelism": 2},
        {"verification": {"repair": True}},
        {"rejects": {"retry": 1}},
    ):
        assert unsupported(sample_spec(source=file, **change)), change
