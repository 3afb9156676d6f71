"""Another PostgreSQL as the source: the same result as from a table of the target, and as safe."""

import asyncio
import itertools
import json
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shipkeeper.migrations.errors import MigrationError
from shipkeeper.resources.migrationjob import MigrationJobSpec
from support.birthday_data import POSTGRESQL_SCHEMA, Legacy, expect, generate
from support.migration_databases import load_postgresql, migrate, sample_spec
from support.migration_process import killed_at_random
from support.migration_sources import (
    BATCH,
    POSTGRESQL,
    TYPED_TARGET,
    assert_exact,
    load_contacts,
    start_worker,
    typed_spec,
)
from support.postgres_server import running_postgres

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("SHIPKEEPER_KILLS", "8"))
_NUMBERS = itertools.count(1)


class Old:
    """The database that the old application leaves behind."""

    def __init__(self, server: Any, name: str, url: str, connection: Any) -> None:
        self.server = server
        self.name = name
        self.url = url
        self.connection = connection

    async def load(self, legacy: Legacy) -> None:
        """Create the application's tables and fill them."""
        await self.connection.execute(POSTGRESQL_SCHEMA)
        await load_postgresql(self.connection, legacy)

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a query."""
        return [tuple(row) for row in await self.connection.fetch(sql)]


@pytest_asyncio.fixture
async def old(postgres: Any) -> AsyncIterator[Old]:
    """Another database than the target's, on the same server."""
    name = f"old_{next(_NUMBERS)}"
    url = await postgres.create_database(name)
    connection = await postgres.connect(name)
    yield Old(postgres, name, url, connection)
    await connection.close()


def spec_of(**changes: Any) -> MigrationJobSpec:
    """Return the sample's spec with another PostgreSQL as the source."""
    return sample_spec(source=POSTGRESQL, **changes)


async def test_the_result_is_that_of_one_database(postgresql: Any, old: Old) -> None:
    legacy = generate(rows=5_000, seed=101)
    await old.load(legacy)
    await load_contacts(postgresql, legacy)

    phase, report = await migrate(postgresql.url, spec_of(), source_url=old.url)

    assert phase == "Complete"
    await assert_exact(postgresql, legacy)
    found = report.steps[1].verification
    assert found is not None
    assert (found.result, found.rows) == ("Equal", len(expect(legacy).copied))
    [(values,)] = await postgresql.rows("SELECT row_values FROM shipkeeper_migration_rejects LIMIT 1")
    assert set(json.loads(values)) == set(legacy.messages[0])


async def test_sigkill_at_random_points(postgresql: Any, old: Old, tmp_path: Path) -> None:
    legacy = generate(rows=1_500 * KILLS, seed=102)
    await old.load(legacy)
    await load_contacts(postgresql, legacy)
    spec = spec_of(batch=BATCH, rejects={"max": 1_000_000})
    kills = await killed_at_random(
        lambda: start_worker(postgresql.url, old.url, spec, tmp_path),
        times=KILLS,
        chance=random.Random(102),
        longest=1.8,
    )
    assert kills > KILLS // 4
    phase, _ = await migrate(postgresql.url, spec, source_url=old.url)
    assert phase == "Complete"
    await assert_exact(postgresql, legacy)


async def test_source_lost_in_the_middle_and_back(postgresql: Any) -> None:
    legacy = generate(rows=6_000, seed=103)
    await load_contacts(postgresql, legacy)
    with running_postgres() as server:
        url = await server.create_database("old")
        connection = await server.connect("old")
        await Old(server, "old", url, connection).load(legacy)
        await connection.close()
        task = asyncio.create_task(migrate(postgresql.url, spec_of(batch=BATCH), source_url=url))
        await _until_copied(postgresql, rows=1_000)
        await asyncio.to_thread(server.restart)
        phase, _ = await task
    assert phase == "Complete"
    await assert_exact(postgresql, legacy)


async def test_sessions_of_the_source_ended_again_and_again(postgresql: Any, old: Old) -> None:
    legacy = generate(rows=6_000, seed=104)
    await old.load(legacy)
    await load_contacts(postgresql, legacy)
    task = asyncio.create_task(migrate(postgresql.url, spec_of(batch=BATCH), source_url=old.url))
    ended = 0
    for rows in range(500, 5_000, 500):
        await _until_copied(postgresql, rows=rows)
        [(count,)] = await old.rows(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            f"WHERE datname = '{old.name}' AND pid <> pg_backend_pid()"
        )
        ended += count
    phase, _ = await task
    assert ended > 3
    assert phase == "Complete"
    await assert_exact(postgresql, legacy)


async def _until_copied(postgresql: Any, *, rows: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        [(there,)] = await postgresql.rows("SELECT count(*) FROM interactions")
        if there >= rows:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"fewer than {rows} rows were copied in time")


TYPED_SOURCE = """
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TABLE old (code varchar(20) COLLATE "C", part bigint, big bigint, price numeric(40, 20), ratio double precision,
  flag boolean, raw bytea, note text, at timestamptz, day date, doc json, ident uuid, anything mood,
  PRIMARY KEY (code, part));
INSERT INTO old
SELECT code, part, CASE WHEN part = 0 THEN 9223372036854775807 END, 12345678901234567890.00000000000000000001, 1e300,
  part = 0, CASE WHEN part = 0 THEN ''::bytea ELSE '\\x00ff'::bytea END, nullif(code, 'a'), 'infinity', '0044-03-15 BC',
  '{"a": [1, null]}', '0f8fad5b-d9cb-469f-a165-70867728950e', CASE WHEN part = 0 THEN 'glad'::mood END
FROM unnest(ARRAY['a', 'B', 'c', 'É', 'z-1', 'Z_2', '10', '9', ' ', '', 'it''s']) AS code,
  unnest(ARRAY[-1, 0, 4611686018427387904]) AS part;
"""


async def test_composite_and_text_keys_and_every_kind_of_value(postgresql: Any, old: Old) -> None:
    """The keys sort otherwise in the source ("C") than in the target; each value arrives as it was."""
    await old.connection.execute(TYPED_SOURCE)
    await postgresql.execute(TYPED_TARGET)
    small = {"initialSize": 4, "minSize": 4, "maxSize": 4}
    spec = typed_spec(POSTGRESQL, batch=small, verification={"rangeSize": 100})

    phase, report = await migrate(postgresql.url, spec, source_url=old.url)

    assert phase == "Complete"
    assert (report.progress.rows_copied, report.progress.rows_rejected) == (33, 0)
    columns = "code, part, big, ratio, flag, raw, note, at::text, day::text, doc::jsonb::text, ident, anything::text"
    there = await postgresql.rows(f"SELECT trim_scale(price)::text, {columns} FROM new")
    expected = await old.rows(f"SELECT trim_scale(price)::text, {columns} FROM old")
    assert sorted(there, key=repr) == sorted(expected, key=repr)


async def test_retire_renames_in_the_source_after_verification(postgresql: Any, old: Old) -> None:
    legacy = generate(rows=300, seed=105, odd=0)
    await old.load(legacy)
    await load_contacts(postgresql, legacy)
    # A table of the same name in the target is not touched.
    before = await postgresql.rows("SELECT to_regclass('birthday_messages')::text")
    steps = [*spec_of().to_wire()["steps"], {"name": "retire", "retire": {"table": "birthday_messages"}}]

    _, report = await migrate(postgresql.url, spec_of(steps=steps, mode="Plan"), source_url=old.url)
    assert report.plan is not None
    assert report.plan.steps[-1].destructive
    assert (
        report.plan.steps[-1].action == "rename birthday_messages of the source database, after its content is verified"
    )

    phase, _ = await migrate(postgresql.url, spec_of(steps=steps), source_url=old.url)

    assert phase == "Complete"
    names = "SELECT to_regclass('birthday_messages')::text, to_regclass('birthday_messages_retired')::text"
    assert await old.rows(names) == [(None, "birthday_messages_retired")]
    assert await postgresql.rows("SELECT to_regclass('birthday_messages')::text") == before
    phase, _ = await migrate(postgresql.url, spec_of(steps=steps), source_url=old.url)
    assert phase == "Complete"


async def test_retire_needs_the_owner_and_reading_needs_only_select(postgresql: Any, old: Old) -> None:
    legacy = generate(rows=100, seed=106, odd=0)
    await old.load(legacy)
    await load_contacts(postgresql, legacy)
    reader = f"reader_{old.name}"
    await old.connection.execute(
        f"CREATE ROLE {reader} LOGIN PASSWORD 'r3ader'; GRANT SELECT ON birthday_messages TO {reader}"
    )
    host = old.url.rpartition("@")[2]
    url = f"postgresql://{reader}:r3ader@{host}"
    steps = [*spec_of().to_wire()["steps"], {"name": "retire", "retire": {"table": "birthday_messages"}}]
    with pytest.raises(MigrationError, match=r"source: .*owner") as failure:
        await migrate(postgresql.url, spec_of(steps=steps, mode="Plan"), source_url=url)
    assert failure.value.reason == "PermissionDenied"
    phase, _ = await migrate(postgresql.url, spec_of(), source_url=url)
    assert phase == "Complete"
    await assert_exact(postgresql, legacy)


async def test_rows_that_came_later_keep_the_source_table_in_use(postgresql: Any, old: Old) -> None:
    legacy = generate(rows=100, seed=107, odd=0)
    await old.load(legacy)
    await load_contacts(postgresql, legacy)
    steps = [*spec_of().to_wire()["steps"], {"name": "retire", "retire": {"table": "birthday_messages"}}]
    spec = spec_of(steps=steps, locks={"tableTimeout": "60s"})
    # The application still works on the table when the worker comes to lock it, and adds a row.
    transaction = old.connection.transaction()
    await transaction.start()
    await old.connection.execute("LOCK TABLE birthday_messages IN ACCESS SHARE MODE")
    task = asyncio.create_task(migrate(postgresql.url, spec, source_url=old.url))
    await _until_waiting(old)
    await old.connection.execute(
        "INSERT INTO birthday_messages (id, contact_id, contact_name, message_text, sent_at) "
        "VALUES (9999, 1, 'x', 'y', '2024-01-01T10:00:00')"
    )
    await transaction.commit()

    with pytest.raises(MigrationError, match="101 rows, of which 100") as failure:
        await task

    assert failure.value.reason == "SourceHasNewRows"
    assert await old.rows("SELECT count(*) FROM birthday_messages") == [(101,)]


async def _until_waiting(old: Old) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if await old.rows("SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the worker never came to lock the table")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("correct%20horse", "wr0ng-secret"), "DatabaseAuthFailed"),
        (("/old_", "/no_such_"), "DatabaseMissing"),
    ],
)
async def test_a_source_that_cannot_be_reached_is_named_without_its_secret(
    postgresql: Any, old: Old, change: tuple[str, str], reason: str
) -> None:
    await load_contacts(postgresql, generate(rows=1, seed=108))
    with pytest.raises(MigrationError, match="source: ") as failure:
        await migrate(postgresql.url, spec_of(), source_url=old.url.replace(*change))
    assert failure.value.reason == reason
    assert "wr0ng" not in str(failure.value)
    assert old.server.password not in str(failure.value)


async def test_complete_work_needs_the_source_no_more(postgresql: Any, old: Old) -> None:
    legacy = generate(rows=50, seed=109)
    await old.load(legacy)
    await load_contacts(postgresql, legacy)
    await migrate(postgresql.url, spec_of(), source_url=old.url)
    gone = old.url.replace("/old_", "/gone_")
    phase, report = await migrate(postgresql.url, spec_of(), source_url=gone)
    assert phase == "Complete"
    assert report.progress.rows_total == 50
