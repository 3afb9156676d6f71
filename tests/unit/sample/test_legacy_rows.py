"""The legacy rows: the same each time, with every odd shape, within the table's own rules."""

from collections import Counter
from datetime import UTC, datetime

import pytest

from birthday_app.legacy_data.people import Person, contact_row
from birthday_app.legacy_data.rows import MOST_ROWS, YEARS, LegacyRow, contacts_for, make_rows
from birthday_app.legacy_data.spellings import skipped_by_clock_change, twice_on_the_clock

ROWS = 14_000


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return contacts_for(ROWS)


@pytest.fixture(scope="module")
def rows(people: list[Person]) -> list[LegacyRow]:
    return list(make_rows(ROWS, people))


def test_they_are_the_same_each_time(rows: list[LegacyRow], people: list[Person]) -> None:
    assert list(make_rows(ROWS, people)) == rows


def test_each_row_has_one_outcome_and_what_goes_with_it(rows: list[LegacyRow]) -> None:
    for row in rows:
        assert (row.outcome == "rejected") == (row.contact_id is None)
        assert row.instant is None or row.instant.tzinfo is UTC
        assert row.outcome != "already" or row.instant is not None
    counts = Counter(row.outcome for row in rows)
    assert min(counts["copied"], counts["already"], counts["rejected"]) > ROWS // 50


def test_a_readable_time_of_a_known_contact_is_never_rejected(rows: list[LegacyRow], people: list[Person]) -> None:
    ids = {person.id for person in people}
    names = Counter(person.name for person in people)
    for row in rows:
        written = row.columns["contact_id"]
        known = written in ids if written is not None else names[row.columns["contact_name"]] == 1
        assert known or row.outcome == "rejected"
        if known and row.columns["sent_at"].strip() == "":
            assert row.outcome == "copied"
            assert row.instant is None


def test_the_odd_shapes_are_all_there(rows: list[LegacyRow]) -> None:
    texts = [row.columns["sent_at"] for row in rows]
    for shape in ("+02:00", "+01:00", "Z", "/", ".000000", "hier", "-02-30", "-13-01", "25:00"):
        assert any(shape in text for text in texts), shape
    assert any(text.isdigit() and len(text) <= 10 for text in texts)
    assert any(text == "" for text in texts)
    assert any(text.isspace() for text in texts)
    assert {row.columns["script_mode"] for row in rows} == {"standard", "unlimited", "custom", "routine", None}
    assert any(row.columns["message_text"] == "" for row in rows)
    assert any("🎂" in row.columns["message_text"] for row in rows)


def test_no_two_rows_are_duplicates_to_the_table(rows: list[LegacyRow]) -> None:
    keys = Counter(
        (row.columns["contact_id"], row.columns["sent_at"][:10], row.columns["message_text"])
        for row in rows
        if row.columns["contact_id"] is not None
    )
    assert max(keys.values()) == 1


def test_a_contact_has_one_row_a_year_at_most_even_in_the_largest_size() -> None:
    assert len(contacts_for(MOST_ROWS)) * YEARS >= MOST_ROWS


def test_every_day_of_the_year_is_somebodys_birthday() -> None:
    born = [contact_row(number, person)["birth_date"] for number, person in enumerate(contacts_for(1))]
    days = Counter((day.month, day.day) for day in born if day is not None)
    assert len(days) == 366
    assert min(days.values()) >= 20


def test_times_that_clock_changes_skip_or_repeat() -> None:
    skipped, repeated = skipped_by_clock_change(2024, 30), twice_on_the_clock(2024, 30)
    assert (skipped.text, skipped.instant) == ("2024-03-31T02:30:00", datetime(2024, 3, 31, 1, 30, tzinfo=UTC))
    assert (repeated.text, repeated.instant) == ("2024-10-27T02:30:00", datetime(2024, 10, 27, 1, 30, tzinfo=UTC))
