"""The sample's MigrationJob on the generated legacy rows: every row ends as its maker says, on PostgreSQL and SQLite.

The generator and the migration share no code: one writes times in the ways of old installs, the other reads them.
"""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text

from birthday_app.legacy_data.__main__ import fill
from birthday_app.legacy_data.rows import LegacyRow, contacts_for, make_rows
from birthday_app.models import Interaction
from birthday_app.services import Services
from birthday_app.settings import Settings
from support.migration_databases import migrate, sample_spec

pytestmark = pytest.mark.integration

ROWS = 2_000


@pytest.fixture(scope="module")
def rows() -> list[LegacyRow]:
    return list(make_rows(ROWS, contacts_for(ROWS)))


async def _copies(services: Services) -> dict[int, list[Interaction]]:
    copies: dict[int, list[Interaction]] = {}
    async with services.sessions() as session:
        for each in await session.scalars(select(Interaction)):
            payload: dict[str, Any] = each.payload or {}
            if payload.get("migrated_from") == "birthday_messages":
                copies.setdefault(int(payload["original_id"]), []).append(each)
    return copies


def _differences(row: LegacyRow, copy: Interaction) -> list[str]:
    payload: dict[str, Any] = copy.payload or {}
    wanted: dict[str, Any] = {
        "contact_id": row.contact_id,
        "type": "birthday_sent",
        "status": "success" if row.columns["sent_at"].strip() else "pending",
        "message_text": row.columns["message_text"],
        "original_sent_at": row.columns["sent_at"],
    }
    found: dict[str, Any] = {
        "contact_id": copy.contact_id,
        "type": copy.type,
        "status": copy.status,
        "message_text": payload.get("message_text"),
        "original_sent_at": payload.get("original_sent_at"),
    }
    if row.instant is not None:
        wanted["instant"], found["instant"] = row.instant, copy.created_at.replace(tzinfo=UTC)
    if row.outcome == "copied":
        for name in ("contact_name", "is_late", "days_late", "script_mode", "response_received", "response_text"):
            wanted[name], found[name] = row.columns[name], payload.get(name)
    return [f"{name}: {found[name]!r}, not {wanted[name]!r}" for name in wanted if found[name] != wanted[name]]


async def test_every_row_ends_as_its_maker_says(settings: Settings, services: Services, rows: list[LegacyRow]) -> None:
    await fill(settings.database_url, rows=ROWS)
    began = datetime.now(UTC).replace(microsecond=0)
    phase, report = await migrate(settings.database_url, sample_spec())
    assert phase == "Complete", json.dumps(report.model_dump(mode="json"), indent=1)
    outcomes = [row.outcome for row in rows]
    assert report.progress is not None
    assert (report.progress.rows_copied, report.progress.rows_existing, report.progress.rows_rejected) == (
        outcomes.count("copied"),
        outcomes.count("already"),
        outcomes.count("rejected"),
    )
    copies = await _copies(services)
    async with services.sessions() as session:
        keys = await session.scalars(text("SELECT row_key FROM shipkeeper_migration_rejects"))
        rejected = {int(key) for key in keys}
    wrong = []
    for row in rows:
        key = row.columns["id"]
        copied = copies.get(key, [])
        if (len(copied), key in rejected) != ((0, True) if row.outcome == "rejected" else (1, False)):
            wrong.append(f"{row.columns}: {row.outcome}, but {len(copied)} copies, rejected: {key in rejected}")
        elif copied:
            wrong += [f"{row.columns}: {difference}" for difference in _differences(row, copied[0])]
            unwritten = row.instant is None
            assert not unwritten or copied[0].created_at.replace(tzinfo=UTC) >= began
    assert not wrong, "\n".join(wrong[:20])
