"""Migrations from another database: specs, workers and what must be in the target afterwards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from shipkeeper.resources.migrationjob import MigrationJobSpec
from support.birthday_data import POSTGRESQL_SCHEMA, Legacy, expect
from support.migration_databases import expected_multiset, load_postgresql, sample_spec

BATCH: Final = {"initialSize": 200, "minSize": 200, "maxSize": 200}
SQLITE: Final[dict[str, Any]] = {"sqlite": {"claimName": "legacy", "path": "app.db"}}
POSTGRESQL: Final[dict[str, Any]] = {"urlFrom": {"name": "legacy", "key": "url"}}
TYPED_TARGET: Final = """
CREATE TABLE new (id serial PRIMARY KEY, code text NOT NULL, part bigint NOT NULL, big bigint, price numeric,
  ratio double precision, flag boolean, raw bytea, note text, at timestamp, day date, doc jsonb, ident uuid,
  anything text);
"""

_TESTS: Final = Path(__file__).parents[1]
_STEP_START: Final = "SELECT started_at FROM shipkeeper_migration_steps WHERE step = 'birthday-messages'"


def typed_spec(source: dict[str, Any], **changes: Any) -> MigrationJobSpec:
    """Return the spec of a copy of a table with a composite key and a column of each kind."""
    names = ("code", "part", "big", "price", "ratio", "flag", "raw", "note", "at", "day", "doc", "ident", "anything")
    consolidate = {
        "source": "old",
        "target": "new",
        "key": ["code", "part"],
        "identity": [{"column": "code", "source": "code"}, {"column": "part", "source": "part"}],
        "columns": [{"name": name, "column": name} for name in names],
    }
    return sample_spec(source=source, steps=[{"name": "typed", "consolidate": consolidate}], **changes)


async def load_contacts(postgresql: Any, legacy: Legacy) -> None:
    """Create the application's tables in the target, with the contacts alone."""
    await postgresql.execute(POSTGRESQL_SCHEMA)
    await load_postgresql(postgresql.connection, Legacy(legacy.contacts, ()))


async def assert_exact(postgresql: Any, legacy: Legacy) -> None:
    """Assert that the target is exactly what the oracle says."""
    [(start,)] = await postgresql.rows(_STEP_START)
    expected = expect(legacy)
    assert await postgresql.interactions() == expected_multiset(expected, step_start=start)
    rejects = await postgresql.rows("SELECT row_key FROM shipkeeper_migration_rejects")
    assert sorted(int(key) for (key,) in rejects) == sorted(expected.rejected)


def start_worker(url: str, source_url: str, spec: MigrationJobSpec, folder: Path) -> "subprocess.Popen[str]":
    """Start a worker in a process of its own."""
    file = folder / "spec.json"
    file.write_text(json.dumps(spec.to_wire()))
    paths = os.pathsep.join(filter(None, (str(_TESTS), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"DATABASE_URL": url, "SOURCE_DATABASE_URL": source_url, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "support.migration_process", str(file)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
