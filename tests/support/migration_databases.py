"""Databases of the birthday application for tests of migrations: loading, running, reading back."""

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
import yaml

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationjob_status import MigrationReport, Phase
from support.birthday_data import LEGACY_COLUMNS, Expectation, Legacy, Row, canonical

SAMPLE: Final = Path(__file__).parents[2] / "manifests" / "samples" / "migrationjob.yaml"
NAME: Final = "birthday/birthday-consolidation"
_CONTACT_COLUMNS: Final = (
    "id",
    "name",
    "profile_url",
    "open_to_work",
    "fit_score",
    "status",
    "created_at",
    "updated_at",
)


def sample_spec(**changes: Any) -> MigrationJobSpec:
    """Return the sample's spec with top-level fields replaced (wire form)."""
    spec: dict[str, Any] = yaml.safe_load(SAMPLE.read_text())["spec"]
    return MigrationJobSpec.model_validate(spec | changes)


@dataclass
class Recorder:
    """A sink that keeps every report."""

    reports: list[MigrationReport] = field(default_factory=list)

    async def write(self, report: MigrationReport) -> None:
        """Keep it."""
        self.reports.append(report)

    @property
    def last(self) -> MigrationReport:
        """The newest report."""
        return self.reports[-1]


async def migrate(
    url: str,
    spec: MigrationJobSpec,
    *,
    name: str = NAME,
    stop: asyncio.Event | None = None,
    source_url: str | None = None,
) -> tuple[Phase, MigrationReport]:
    """Run the migration in this process and return how it ended and its last report."""
    recorder = Recorder()
    migration = Migration(
        spec,
        name=name,
        url=parse_url(url),
        sink=recorder,
        stop=stop or asyncio.Event(),
        source_url=parse_url(source_url) if source_url is not None else None,
    )
    phase = await migration.run()
    return phase, recorder.last


async def load_postgresql(connection: "asyncpg.Connection", legacy: Legacy) -> None:
    """Fill the application's tables."""
    contacts = [tuple(person[name] for name in _CONTACT_COLUMNS) for person in legacy.contacts]
    messages = [tuple(message[name] for name in LEGACY_COLUMNS) for message in legacy.messages]
    await connection.copy_records_to_table("contacts", records=contacts, columns=list(_CONTACT_COLUMNS))
    await connection.copy_records_to_table("birthday_messages", records=messages, columns=list(LEGACY_COLUMNS))
    await connection.execute("ANALYZE")


def load_sqlite(path: Path, schema: str, legacy: Legacy) -> None:
    """Create a SQLite file of the application and fill it."""
    with sqlite3.connect(path) as connection:
        connection.executescript(schema)
        marks = ", ".join("?" * len(_CONTACT_COLUMNS))
        contacts = [tuple(_plain(person[name]) for name in _CONTACT_COLUMNS) for person in legacy.contacts]
        connection.executemany(f"INSERT INTO contacts ({', '.join(_CONTACT_COLUMNS)}) VALUES ({marks})", contacts)
        marks = ", ".join("?" * len(LEGACY_COLUMNS))
        messages = [tuple(_plain(message[name]) for name in LEGACY_COLUMNS) for message in legacy.messages]
        connection.executemany(
            f"INSERT INTO birthday_messages ({', '.join(LEGACY_COLUMNS)}) VALUES ({marks})", messages
        )
    connection.close()


def _plain(value: Any) -> Any:
    return value.isoformat(sep=" ") if isinstance(value, datetime) else value


async def interactions_in_postgresql(connection: "asyncpg.Connection") -> Counter[str]:
    """Return the multiset of interactions, as the oracle writes them."""
    rows = await connection.fetch("SELECT contact_id, type, status, created_at, payload FROM interactions")
    return Counter(canonical(dict(row) | {"payload": json.loads(row["payload"])}) for row in rows)


def interactions_in_sqlite(path: Path) -> Counter[str]:
    """Return the multiset of interactions, as the oracle writes them."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT contact_id, type, status, created_at, payload FROM interactions").fetchall()
    connection.close()
    return Counter(
        canonical(
            {
                "contact_id": contact,
                "type": type_,
                "status": status,
                "created_at": datetime.fromisoformat(created),
                "payload": json.loads(payload),
            }
        )
        for contact, type_, status, created, payload in rows
    )


def expected_multiset(expectation: Expectation, *, step_start: datetime | None) -> Counter[str]:
    """Return the multiset that the oracle expects; rows without a time have the step's start."""
    rows: Sequence[Row] = list(expectation.copied.values())
    return Counter(canonical(row | {"created_at": row["created_at"] or step_start}) for row in rows)
