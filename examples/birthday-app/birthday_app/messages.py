"""What a birthday message says, and for whom it is due today."""

import calendar
from collections.abc import Sequence
from datetime import date, datetime, timedelta

import pytz
from sqlalchemy import case, extract, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from birthday_app.models import Contact

PARIS = pytz.timezone("Europe/Paris")
# Nobody is congratulated twice for one birthday, however late the first time was.
DAYS_BETWEEN_MESSAGES = 300

ON_TIME = (
    "Joyeux anniversaire {first_name} ! 🎂",
    "Très bel anniversaire {first_name}, profite bien de ta journée 🎉",
    "Bon anniversaire {first_name} ! 🥳 Au plaisir d'échanger bientôt.",
)
LATE = "Avec {days} jour(s) de retard, joyeux anniversaire {first_name} ! 🎈"


def today() -> date:
    """Return the date in the time zone in which birthdays are counted."""
    return datetime.now(PARIS).date()


def compose(contact: Contact, *, days_late: int) -> str:
    """Return the text for a contact; the same contact always gets the same wording."""
    first_name = contact.name.split()[0]
    if days_late:
        return LATE.format(first_name=first_name, days=days_late)
    return ON_TIME[contact.id % len(ON_TIME)].format(first_name=first_name)


def days_late(birth_date: date, *, on: date) -> int:
    """Return how many days ago the last birthday was; 29 February is celebrated on the 28th in common years."""
    for year in (on.year, on.year - 1):
        try:
            birthday = birth_date.replace(year=year)
        except ValueError:
            birthday = date(year, 2, 28)
        if birthday <= on:
            return (on - birthday).days
    raise AssertionError("a birthday in the year before is always past")


def _birthdays(*, on: date, max_days_late: int) -> dict[int, int]:
    """Return the birthdays (100 * month + day) of the last days, each with how many days ago it was."""
    ago: dict[int, int] = {}
    for late in range(max_days_late + 1):
        day = on - timedelta(days=late)
        ago.setdefault(100 * day.month + day.day, late)
        if (day.month, day.day) == (2, 28) and not calendar.isleap(day.year):
            ago.setdefault(229, late)
    return ago


async def due(session: AsyncSession, *, on: date, max_days_late: int, limit: int) -> Sequence[Contact]:
    """Return the contacts with a birthday on that day or up to `max_days_late` days before, and without a message yet.

    The latest birthday comes first.
    """
    ago = _birthdays(on=on, max_days_late=max_days_late)
    birthday = 100 * extract("month", Contact.birth_date) + extract("day", Contact.birth_date)
    recently = datetime.combine(on, datetime.min.time()) - timedelta(days=DAYS_BETWEEN_MESSAGES)
    query = (
        select(Contact)
        .where(
            birthday.in_(ago),
            Contact.status != "blacklisted",
            or_(Contact.last_birthday_message_at.is_(None), Contact.last_birthday_message_at < recently),
        )
        .order_by(case(ago, value=birthday), Contact.id)
        .limit(limit)
    )
    return list(await session.scalars(query))
