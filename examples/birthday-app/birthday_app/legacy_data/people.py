"""The contacts that the messages of version 1 went to."""

import itertools
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

FIRST_NAMES = (
    "Élodie", "Jean-Paul", "Zoé", "François", "Amélie", "Noël", "Chloé", "Rémi", "Inès", "Loïc", "Maëlle", "Gaël",
    "Anne", "Hugo", "Léa", "Étienne", "Sofia", "Mathéo", "Aïcha", "Yann", "Camille", "Björn", "Nadia", "Cédric",
)  # fmt: skip
LAST_NAMES = (
    "Lefèvre", "O'Connor", "Müller", "Da Silva", "N'Guyen", "Bérenger", "Martin", "Dupont", "Garcia", "Petit", "Roux",
    "Fournier", "Girard", "Bonnet", "Lambert", "Fontaine", "Rousseau", "Blanchard", "Guérin", "Boyer", "Garnier",
    "Chevalier", "François", "Legrand", "Gauthier", "Perrin", "Robin", "Clément", "Morin", "Nicolas", "Henry",
    "Roussel", "Mathieu", "Gautier", "Masson", "Marchand", "Duval", "Denis", "Dumont", "Marie", "Lemaire", "Noël",
    "Meyer",     "Dufour", "Meunier", "Brun", "Blanc", "Giraud", "Joly", "Rivière", "Lucas", "Brunet", "Gaillard",
    "Barbier", "Arnaud", "Martinez", "Gérard", "Roche", "Renard", "Schmitt",
)  # fmt: skip
INITIALS = ("", "A. ", "B. ", "C. ", "D. ", "E. ", "F. ", "G. ", "H. ", "J. ", "K. ", "L. ")
STATUSES = ("contacted", "contacted", "contacted", "visited", "contacted", "new", "contacted", "visited")

# The last contacts share their name with one of the first, as homonyms do.
HOMONYMS = 120
MOST_CONTACTS = len(FIRST_NAMES) * len(LAST_NAMES) * len(INITIALS) + HOMONYMS


@dataclass(frozen=True)
class Person:
    """A contact, as far as a message row tells of it."""

    id: int
    name: str
    has_homonym: bool


def make_people(count: int) -> list[Person]:
    """Return that many contacts; ids have gaps, as deleted contacts leave them."""
    names = (
        f"{first} {initial}{last}" for initial, last, first in itertools.product(INITIALS, LAST_NAMES, FIRST_NAMES)
    )
    distinct = list(itertools.islice(names, count - HOMONYMS))
    all_names = distinct + distinct[:HOMONYMS]
    return [
        Person(
            id=number + number // 50 + 1,
            name=name,
            has_homonym=number < HOMONYMS or number >= count - HOMONYMS,
        )
        for number, name in enumerate(all_names)
    ]


def missing_contact_id(person: Person) -> int:
    """Return an id that no contact has: one of the gaps, beyond the last."""
    return person.id + 10_000_000


def contact_row(number: int, person: Person) -> dict[str, Any]:
    """Return the contact's row in version 2. Birthdays fall evenly on all 366 days, so that every day has some."""
    born = date(1960 + 4 * (number % 10), 1, 1) + timedelta(days=number % 366)
    created = datetime(2018, 1, 1) + timedelta(hours=number)
    return {
        "id": person.id,
        "name": person.name,
        "profile_url": f"https://www.linkedin.com/in/contact-{person.id}",
        "headline": "Ingénieure logiciel 🚀" if number % 3 == 0 else None,
        "location": "Paris" if number % 2 == 0 else None,
        "open_to_work": number % 11 == 0,
        "fit_score": (number % 100) / 100,
        "skills": ["python", "sql"] if number % 4 == 0 else None,
        "work_history": None,
        "birth_date": None if number % 59 == 0 else born,
        "last_birthday_message_at": None,
        "status": "blacklisted" if number % 97 == 0 else STATUSES[number % len(STATUSES)],
        "created_at": created,
        "updated_at": created,
    }
