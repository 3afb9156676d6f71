"""The rows of version 1's table, each with what must become of it in version 2."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, Literal

from birthday_app.legacy_data.people import MOST_CONTACTS, Person, make_people, missing_contact_id
from birthday_app.legacy_data.spellings import (
    EMPTY,
    UNREADABLE,
    Written,
    skipped_by_clock_change,
    twice_on_the_clock,
    write,
)

SEED = 20_180_101
FIRST_YEAR = 2018
YEARS = 8
FEWEST_CONTACTS = 12_000
ROWS_A_CONTACT = 4
MOST_ROWS = MOST_CONTACTS * YEARS

Outcome = Literal["copied", "already", "rejected"]

MODES = ("standard", "unlimited", "custom", "routine", None)
TEXTS = (
    "Joyeux anniversaire {name} ! 🎂",
    "Bon anniversaire {name} 🎉🥳, à bientôt",
    'Très bel anniversaire « {name} » — "profite" !',
    "Salut {name},\nencore une année de plus 😄\n\tÀ très vite \\o/",
)

# Of 10,000 rows: how they name their contact.
NAMING = {"by id": 9_100, "by name": 600, "unknown": 120, "ambiguous": 80, "misspelt": 40, "gone": 60}
_NAMINGS = tuple(NAMING)
_NAMING_CUMULATIVE = tuple(accumulate(NAMING.values()))
# Of 10,000 rows: what is odd about when.
UNREADABLE_TIME = 150
EMPTY_TIME = 100
SKIPPED_TIME = 12
TWICE_TIME = 12
# Of 100 rows that can be copied: those that an earlier tool copied.
COPIED_EARLIER = 6


@dataclass(frozen=True, kw_only=True)
class LegacyRow:
    """A row as it is stored, and what must become of it."""

    columns: dict[str, Any]
    outcome: Outcome
    contact_id: int | None
    """The contact of the interaction; None for a row that is rejected."""
    instant: datetime | None
    """When the message was sent; None for a row that is rejected, or whose time was never written down."""


@dataclass(frozen=True)
class Whom:
    """How a row names its contact, and which one it is."""

    written_id: int | None
    written_name: str
    contact_id: int | None


def contacts_for(rows: int) -> list[Person]:
    """Return the contacts that so many rows (at most MOST_ROWS) are about."""
    return make_people(min(max(FEWEST_CONTACTS, rows // ROWS_A_CONTACT), MOST_CONTACTS))


def make_rows(count: int, people: Sequence[Person]) -> Iterator[LegacyRow]:
    """Yield that many rows, the same on each call."""
    dice = random.Random(SEED)  # noqa: S311  Test data, the same each time.
    named_once = [person for person in people if not person.has_homonym]
    homonyms = [person for person in people if person.has_homonym]
    for number in range(count):
        # Each contact has at most one row a year, as birthdays are.
        year = FIRST_YEAR + number // len(people) % YEARS
        whom = _whom(dice, people[number % len(people)], named_once, homonyms)
        yield _row(dice, number=number, year=year, whom=whom)


def _whom(dice: random.Random, person: Person, named_once: Sequence[Person], homonyms: Sequence[Person]) -> Whom:
    other = dice.choice(named_once)
    match dice.choices(_NAMINGS, cum_weights=_NAMING_CUMULATIVE)[0]:
        case "by name":
            return Whom(None, other.name, other.id)
        case "unknown":
            return Whom(None, f"Inconnu·e {dice.randrange(1000)}", None)
        case "ambiguous":
            return Whom(None, dice.choice(homonyms).name, None)
        case "misspelt":
            return Whom(None, other.name.lower(), None)
        case "gone":
            return Whom(missing_contact_id(person), person.name, None)
    # The name is the one of that time: contacts change theirs.
    return Whom(person.id, person.name if dice.randrange(40) else f"{person.name} (ancien nom)", person.id)


def _when(dice: random.Random, year: int) -> tuple[str, Written | None, bool]:
    """Return the text, what it stands for, and whether the row can be copied as far as its time goes."""
    draw = dice.randrange(10_000)
    if draw < UNREADABLE_TIME:
        return dice.choice(UNREADABLE).format(year=year), None, False
    if draw < UNREADABLE_TIME + EMPTY_TIME:
        return dice.choice(EMPTY), None, True
    minute = dice.randrange(60)
    if draw < UNREADABLE_TIME + EMPTY_TIME + SKIPPED_TIME:
        written = skipped_by_clock_change(year, minute)
    elif draw < UNREADABLE_TIME + EMPTY_TIME + SKIPPED_TIME + TWICE_TIME:
        written = twice_on_the_clock(year, minute)
    else:
        day = datetime(year, 1, 1) + timedelta(days=dice.randrange(365))
        written = write(day + timedelta(hours=7, seconds=dice.randrange(12 * 3600)), dice)
    return written.text, written, True


def _row(dice: random.Random, *, number: int, year: int, whom: Whom) -> LegacyRow:
    text, written, readable = _when(dice, year)
    copied = readable and whom.contact_id is not None
    # An earlier tool copied only what it could read, and began at the oldest rows.
    earlier = copied and written is not None and dice.randrange(100) < COPIED_EARLIER
    days_late = dice.choice((None, 0, 0, 0, 1, 2, 3, 7, 10))
    answered = dice.randrange(20) == 0
    message = "" if dice.randrange(50) == 0 else dice.choice(TEXTS).format(name=whom.written_name)
    columns = {
        "id": number + number // 97 + 1,  # Rows were deleted by hand.
        "contact_id": whom.written_id,
        "contact_name": whom.written_name,
        "message_text": message if text.strip() else f"{message} ({year})",
        "sent_at": text,
        "is_late": None if days_late is None else days_late > 0,
        "days_late": days_late,
        "response_received": answered,
        "response_text": "Merci beaucoup ! 😊" if answered else None,
        "response_date": f"{year}-12-31" if answered else None,
        "script_mode": dice.choice(MODES),
    }
    return LegacyRow(
        columns=columns,
        outcome="already" if earlier else "copied" if copied else "rejected",
        contact_id=whom.contact_id if copied else None,
        instant=written.instant if copied and written else None,
    )
