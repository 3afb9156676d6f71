"""Whose birthday it is, how late a message is, and what it says."""

from datetime import date

import pytest

from birthday_app.api.keys import ApiKeys
from birthday_app.messages import compose, days_late
from birthday_app.models import Contact


@pytest.mark.parametrize(
    ("born", "on", "late"),
    [
        (date(1980, 5, 4), date(2026, 5, 4), 0),
        (date(1980, 5, 4), date(2026, 5, 7), 3),
        (date(1980, 12, 30), date(2026, 1, 2), 3),
        (date(1980, 5, 5), date(2026, 5, 4), 364),
        (date(1980, 2, 29), date(2026, 2, 28), 0),
        (date(1980, 2, 29), date(2026, 3, 1), 1),
        (date(1980, 2, 29), date(2028, 2, 28), 365),
        (date(1980, 2, 29), date(2028, 2, 29), 0),
    ],
)
def test_days_since_the_birthday(born: date, on: date, late: int) -> None:
    assert days_late(born, on=on) == late


def test_the_text_names_the_contact_and_says_how_late_it_is() -> None:
    contact = Contact(id=7, name="Élodie Lefèvre")
    assert "Élodie" in compose(contact, days_late=0)
    assert "Lefèvre" not in compose(contact, days_late=0)
    assert "3 jour(s) de retard" in compose(contact, days_late=3)


def test_both_keys_of_a_rotation_open_and_no_other() -> None:
    keys = ApiKeys(["the-new-key-of-the-tests", "the-old-key-of-the-tests"])
    assert keys.opened_by("the-new-key-of-the-tests")
    assert keys.opened_by("the-old-key-of-the-tests")
    assert not keys.opened_by("the-new-key-of-the-test")
    assert not keys.opened_by("clé-inconnue")
