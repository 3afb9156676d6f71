"""Writes the legacy rows, and what stands beside them in the tables of version 2, into a database."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from birthday_app.legacy_data.people import Person, contact_row
from birthday_app.legacy_data.rows import LegacyRow, contacts_for, make_rows
from birthday_app.legacy_data.tables import birthday_messages, legacy_metadata
from birthday_app.models import BIRTHDAY_SENT, PROFILE_VISIT, Base, Contact, Interaction, LinkedinSelector

CHUNK = 5_000
SELECTORS = 24
# Every so many contacts has a visit and a message that version 2 made itself.
ACTIVE_CONTACT = 12


async def write(engine: AsyncEngine, *, rows: int) -> bool:
    """Create what tables are missing and fill them, in one transaction; False where legacy rows were there already."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(legacy_metadata.create_all)
        if await connection.scalar(select(birthday_messages.c.id).limit(1)) is not None:
            return False
        people = contacts_for(rows)
        await _insert(connection, Contact, (contact_row(number, person) for number, person in enumerate(people)))
        await _insert(connection, LinkedinSelector, map(_selector, range(SELECTORS)))
        await _insert(connection, Interaction, _own_interactions(people))
        await _insert(connection, birthday_messages, (row.columns for row in make_rows(rows, people)))
        earlier = (row for row in make_rows(rows, people) if row.outcome == "already")
        await _insert(connection, Interaction, map(_as_the_earlier_tool_wrote_it, earlier))
        if engine.dialect.name == "postgresql":
            await _advance_sequences(connection)
    return True


async def _insert(connection: AsyncConnection, table: Table | type[Base], rows: Iterable[dict[str, Any]]) -> None:
    for chunk in _chunks(rows):
        await connection.execute(insert(table), chunk)


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


async def _advance_sequences(connection: AsyncConnection) -> None:
    """Let the next contact get a free id: rows with ids of their own do not move a sequence."""
    highest = await connection.scalar(select(func.max(Contact.id)))
    await connection.execute(text("SELECT setval('contacts_id_seq', :highest)"), {"highest": highest})


def _selector(number: int) -> dict[str, Any]:
    return {
        "key": f"profile.section.{number}",
        "selector_value": f"section:nth-of-type({number + 1})",
        "score": number * 4,
        "last_success_at": datetime(2025, 6, 1) + timedelta(hours=number) if number % 3 else None,
    }


def _own_interactions(people: Iterable[Person]) -> Iterator[dict[str, Any]]:
    for number, person in enumerate(people):
        if number % ACTIVE_CONTACT:
            continue
        created = datetime(2025, 1, 1) + timedelta(minutes=number)
        yield _interaction(person.id, PROFILE_VISIT, None, created)
        # A birthday message of version 2 itself: of the same type as the migrated ones, but not one of them.
        yield _interaction(person.id, BIRTHDAY_SENT, {"contact_name": person.name, "days_late": 0}, created)


def _as_the_earlier_tool_wrote_it(row: LegacyRow) -> dict[str, Any]:
    if row.contact_id is None or row.instant is None:
        raise ValueError("the earlier tool copied only rows whose contact and time it knew")
    payload = {
        "message_text": row.columns["message_text"],
        "contact_name": row.columns["contact_name"],
        "migrated_from": "birthday_messages",
        "original_id": row.columns["id"],
        "original_sent_at": row.columns["sent_at"],
    }
    return _interaction(row.contact_id, BIRTHDAY_SENT, payload, row.instant.astimezone(UTC).replace(tzinfo=None))


def _interaction(contact_id: int, type_: str, payload: dict[str, Any] | None, created: datetime) -> dict[str, Any]:
    return {
        "contact_id": contact_id,
        "type": type_,
        "status": "success",
        "payload": payload,
        "created_at": created,
    }
