"""The legacy rows in a database: all or nothing, once, as the earlier tool and version 2 left the rest."""

from collections import Counter

import pytest
from sqlalchemy import func, select, text

from birthday_app.legacy_data.__main__ import expected_counts, fill
from birthday_app.legacy_data.rows import contacts_for, make_rows
from birthday_app.legacy_data.tables import birthday_messages
from birthday_app.models import Contact, Interaction
from birthday_app.services import Services
from birthday_app.settings import Settings

pytestmark = pytest.mark.integration

ROWS = 400


async def test_the_rows_and_their_surroundings_are_written_once(settings: Settings, services: Services) -> None:
    assert await fill(settings.database_url, rows=ROWS)
    assert not await fill(settings.database_url, rows=ROWS)
    expected = expected_counts(ROWS)
    assert sum(expected.values()) == 2 * ROWS
    async with services.sessions() as session:
        stored = (await session.execute(select(birthday_messages).order_by(birthday_messages.c.id))).mappings().all()
        assert [dict(row) for row in stored] == [row.columns for row in make_rows(ROWS, contacts_for(ROWS))]
        interactions = list(await session.scalars(select(Interaction)))
        assert await session.scalar(select(func.count()).select_from(Contact)) == len(contacts_for(ROWS))
    kinds = Counter((each.type, "migrated_from" in (each.payload or {})) for each in interactions)
    assert kinds["birthday_sent", True] == expected["already"]
    assert kinds["birthday_sent", False] == kinds["profile_visit", False] > 0


async def test_new_rows_get_free_ids(settings: Settings, services: Services) -> None:
    await fill(settings.database_url, rows=10)
    async with services.sessions.begin() as session:
        session.add(Contact(name="Nouvelle", profile_url="https://example.org/new"))
    async with services.sessions() as session:
        newest = await session.scalar(select(func.max(Contact.id)))
        names = list(await session.scalars(select(Contact.name).where(Contact.id == newest)))
    assert names == ["Nouvelle"]


async def test_the_indexes_that_the_migration_builds_are_not_there(settings: Settings, services: Services) -> None:
    await fill(settings.database_url, rows=10)
    catalog = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'index'",
        "postgresql": "SELECT indexname FROM pg_indexes",
    }
    async with services.engine.connect() as connection:
        names = set(await connection.scalars(text(catalog[services.engine.dialect.name])))
    assert names >= {"idx_birthday_messages_sent_at", "idx_birthday_messages_contact_name", "idx_no_dup_msg"}
    assert not names & {
        "idx_contact_birth_date",
        "idx_contact_status",
        "idx_contact_created_at",
        "idx_interaction_contact_type",
        "idx_selector_success",
    }
