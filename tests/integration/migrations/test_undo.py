"""Rollback: exactly the rows that the consolidation wrote go, and whatever speaks against it is named by its key."""

import asyncio
import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.migrations.errors import MigrationError
from support.birthday_data import Legacy, expect, generate
from support.migration_databases import NAME, Recorder, expected_multiset, migrate, sample_spec
from support.migration_process import start_worker

pytestmark = pytest.mark.integration

FEW = {"initialSize": 100, "minSize": 100, "maxSize": 100}
UNDO = sample_spec(rollback=True, batch=FEW)
INSERT = "INSERT INTO interactions (contact_id, type, status, payload, created_at) VALUES "
REMAINING = "SELECT count(*) FROM interactions"


def where(database: Any, key: int, payload: str = "payload") -> str:
    """Return the condition that finds the target row of a key."""
    if database.url.startswith("sqlite"):
        return f"json_extract({payload}, '$.original_id') = {key}"
    return f"({payload} ->> 'original_id')::int = {key}"


def foreign(key: int, type_: str = "birthday_sent") -> str:
    """Return a row that somebody else wrote, with the identity of a key."""
    payload = json.dumps({"migrated_from": "birthday_messages", "original_id": key})
    return f"{INSERT} (1, '{type_}', 'theirs', '{payload}', '2020-01-01 00:00:00');"


async def copied(database: Any, *, seed: int, rows: int = 500, before: str = "", **data: Any) -> Legacy:
    """Copy rows, and return them; `before` is run before the copy."""
    legacy = generate(rows=rows, seed=seed, **data)
    await database.load(legacy)
    if before:
        await database.execute(before)
    await migrate(database.url, sample_spec())
    return legacy


async def test_what_was_written_goes_and_what_others_wrote_stays(database: Any) -> None:
    theirs = f"{foreign(30)}{foreign(33, 'profile_visit')}"
    legacy = await copied(database, seed=90, before=theirs)
    rejected = next(iter(expect(legacy).rejected))
    await database.execute(f"{foreign(9_999_999, 'other')}{foreign(rejected)}")

    phase, report = await migrate(database.url, UNDO)

    assert phase == "RolledBack"
    kept = await database.rows("SELECT status, count(*) FROM interactions GROUP BY status")
    assert kept == [("theirs", 4)]
    wrote = len(expect(legacy).copied) - 1
    assert {step.name: step.rows_removed for step in report.steps} == {"indexes": 0, "birthday-messages": wrote}
    names = "sqlite_master" if database.url.startswith("sqlite") else "pg_tables"
    column = "name" if database.url.startswith("sqlite") else "tablename"
    left = {name for (name,) in await database.rows(f"SELECT {column} FROM {names}") if name.startswith("shipkeeper")}
    assert {name for name in left if not name.startswith("shipkeeper_migration")} == set()
    assert await database.rows("SELECT count(*) FROM birthday_messages") == [(500,)]


async def test_it_is_done_once_says_so_again_and_lets_a_new_run_begin(database: Any) -> None:
    legacy = await copied(database, seed=91, odd=0)
    await migrate(database.url, UNDO)
    phase, report = await migrate(database.url, UNDO)
    assert (phase, report.steps[1].rows_removed) == ("RolledBack", 500)
    status = Migration(UNDO, name=NAME, url=parse_url(database.url), sink=Recorder(), stop=asyncio.Event())
    assert (await status.status()).phase == "RolledBack"

    phase, report = await migrate(database.url, sample_spec())

    assert (phase, report.progress.rows_copied, report.progress.rows_existing) == ("Complete", 500, 0)
    assert report.steps[1].rows_removed == 0
    assert await database.interactions() == expected_multiset(expect(legacy), step_start=None)
    phase, _ = await migrate(database.url, UNDO)
    assert (phase, await database.rows(REMAINING)) == ("RolledBack", [(0,)])


async def test_nothing_begun_is_rolled_back_at_once(database: Any) -> None:
    await database.load(generate(rows=10, seed=92, odd=0))
    phase, report = await migrate(database.url, UNDO)
    assert (phase, [step.rows_removed for step in report.steps]) == ("RolledBack", [0, 0])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("UPDATE interactions SET status = 'answered' WHERE {row}", "RowChanged"),
        ("UPDATE birthday_messages SET message_text = 'x' WHERE id = {key}", "RowChanged"),
        ("DELETE FROM birthday_messages WHERE id = {key}", "SourceRowGone"),
        (
            "INSERT INTO interactions (contact_id, type, status, payload, created_at) "
            "SELECT contact_id, type, status, payload, created_at FROM interactions WHERE {row}",
            "RowDoubled",
        ),
        (
            "CREATE TABLE replies (id integer PRIMARY KEY, interaction_id integer REFERENCES interactions (id) "
            "ON DELETE CASCADE); INSERT INTO replies SELECT 1, id FROM interactions WHERE {row}",
            "RowReferenced",
        ),
        (
            "CREATE TABLE replies (id integer PRIMARY KEY, interaction_id integer REFERENCES interactions (id)); "
            "INSERT INTO replies SELECT 1, id FROM interactions WHERE {row}",
            "RowReferenced",
        ),
    ],
)
async def test_what_speaks_against_it_is_named_and_nothing_is_removed(database: Any, damage: str, reason: str) -> None:
    await copied(database, seed=93, odd=0)
    await database.execute(damage.format(row=where(database, 900), key=900))
    before = await database.interactions()
    with pytest.raises(MigrationError, match="key 900 ") as failure:
        await migrate(database.url, UNDO)
    assert (failure.value.reason, failure.value.retry, failure.value.key) == (reason, "WhenMended", "900")
    assert await database.interactions() == before


async def test_rows_that_the_application_removed_itself_are_no_obstacle(database: Any) -> None:
    await copied(database, seed=94, odd=0)
    await database.execute(f"DELETE FROM interactions WHERE {where(database, 900)}")
    phase, report = await migrate(database.url, UNDO)
    assert (phase, report.steps[1].rows_removed) == ("RolledBack", 499)
    assert await database.rows(REMAINING) == [(0,)]


async def test_a_copy_that_was_stopped_half_way_is_undone(database: Any) -> None:
    legacy = generate(rows=1_000, seed=95, odd=0)
    for message in legacy.messages[500:600]:
        message["sent_at"] = "hier"
    await database.load(legacy)
    with pytest.raises(MigrationError):
        await migrate(database.url, sample_spec(batch=FEW, rejects={"max": 10}))
    await database.execute(foreign(2_997))  # A key that the copy did not come to.
    phase, report = await migrate(database.url, UNDO)
    assert (phase, report.steps[1].rows_removed) == ("RolledBack", 500)
    assert await database.rows("SELECT status FROM interactions") == [("theirs",)]
    assert await database.rows("SELECT count(*) FROM shipkeeper_migration_rejects") == [(0,)]


async def test_an_unfinished_rollback_is_not_taken_for_a_complete_migration(database: Any) -> None:
    await copied(database, seed=96, odd=0)
    stop = asyncio.Event()
    migration = Migration(UNDO, name=NAME, url=parse_url(database.url), sink=Recorder(), stop=stop)
    task = asyncio.create_task(migration.run())
    async with asyncio.timeout(60):
        while not any(step.rows_removed for step in migration.reporter.report.steps):  # noqa: ASYNC110 # It has no event.
            await asyncio.sleep(0)
    stop.set()
    assert await task == "Interrupted"
    [(left,)] = await database.rows(REMAINING)
    assert 0 < left < 500
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, sample_spec())
    assert (failure.value.reason, failure.value.retry) == ("RollbackUnfinished", "Never")
    phase, report = await migrate(database.url, UNDO)
    assert (phase, report.steps[1].rows_removed) == ("RolledBack", 500)


async def test_a_row_written_to_during_the_rollback_is_found(database: Any) -> None:
    await copied(database, seed=97, odd=0)
    touched, changed = where(database, 1_500, "payload"), where(database, 1_497, "payload")
    # When the first row goes, the application writes to two of the last: one keeps its content, one does not.
    statements = (
        f"UPDATE interactions SET type = type WHERE {touched}; UPDATE interactions SET status = 'x' WHERE {changed};"
    )
    first = where(database, 3, "old.payload")
    if database.url.startswith("sqlite"):
        await database.execute(
            f"CREATE TRIGGER meddle AFTER DELETE ON interactions WHEN {first} BEGIN {statements} END"
        )
    else:
        await database.execute(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {first} THEN {statements} END IF; RETURN old; END $$;"
            "CREATE TRIGGER meddle AFTER DELETE ON interactions FOR EACH ROW EXECUTE FUNCTION meddle()"
        )
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, UNDO)
    assert (failure.value.reason, failure.value.key) == ("RowChanged", "1497")
    await database.execute(f"UPDATE interactions SET status = 'success' WHERE {changed}")
    phase, report = await migrate(database.url, UNDO)
    assert (phase, report.steps[1].rows_removed) == ("RolledBack", 500)


async def test_a_retired_source_is_named(database: Any) -> None:
    await database.load(generate(rows=100, seed=98, odd=0))
    steps = [*sample_spec().to_wire()["steps"], {"name": "retire", "retire": {"table": "birthday_messages"}}]
    await migrate(database.url, sample_spec(steps=steps))
    with pytest.raises(MigrationError, match="rename birthday_messages_retired back") as failure:
        await migrate(database.url, sample_spec(steps=steps, rollback=True))
    assert failure.value.reason == "SourceRetired"
    await database.execute("ALTER TABLE birthday_messages_retired RENAME TO birthday_messages")
    phase, _ = await migrate(database.url, sample_spec(steps=steps, rollback=True))
    assert (phase, await database.rows(REMAINING)) == ("RolledBack", [(0,)])


async def test_the_plan_names_it_as_destructive_and_an_approval_is_asked_for(database: Any) -> None:
    await copied(database, seed=99, odd=0)
    phase, report = await migrate(database.url, sample_spec(rollback=True, mode="Plan"))
    assert (phase, await database.rows(REMAINING)) == ("Planned", [(500,)])
    assert report.plan is not None
    removal, indexes = report.plan.steps
    assert (removal.destructive, removal.rows, indexes.destructive) == (True, 500, False)
    assert "DELETE FROM" in removal.sql[0]
    phase, waiting = await migrate(database.url, sample_spec(rollback=True, approval={"mode": "Manual"}))
    assert (phase, await database.rows(REMAINING)) == ("AwaitingApproval", [(500,)])
    assert waiting.plan is not None
    approval = {"mode": "Manual", "planHash": waiting.plan.hash}
    phase, _ = await migrate(database.url, sample_spec(rollback=True, approval=approval))
    assert (phase, await database.rows(REMAINING)) == ("RolledBack", [(0,)])


async def test_sigkill_at_random_points_of_a_rollback(postgresql: Any, tmp_path: Path) -> None:
    await copied(postgresql, seed=100, rows=6_000, odd=0, before=foreign(30))
    await postgresql.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.0005); RETURN old; END $$;"
        "CREATE TRIGGER slow BEFORE DELETE ON interactions FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    chance = random.Random(9)
    for _ in range(4):
        worker = start_worker(postgresql.url, UNDO, tmp_path)
        with contextlib.suppress(Exception):
            await asyncio.to_thread(worker.wait, chance.uniform(0.9, 2.5))
        worker.kill()
        worker.communicate()
    phase, report = await migrate(postgresql.url, UNDO)
    assert (phase, report.steps[1].rows_removed) == ("RolledBack", 5_999)
    assert await postgresql.rows("SELECT status FROM interactions") == [("theirs",)]
