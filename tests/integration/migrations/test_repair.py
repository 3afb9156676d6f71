"""Repair: rows that were lost, changed or doubled are made right again, and nothing else is touched."""

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
from shipkeeper.resources.migrationjob_status import MigrationReport, StepVerification
from support.birthday_data import Legacy, expect, generate
from support.migration_databases import NAME, Recorder, expected_multiset, migrate, sample_spec
from support.migration_process import start_worker

pytestmark = pytest.mark.integration

ROWS = 1_200
SPEC = sample_spec(verification={"rangeSize": 500})
REPAIRING = sample_spec(verification={"rangeSize": 500, "repair": True})
COPY = "INSERT INTO interactions (contact_id, type, status, payload, created_at) "


def where(database: Any, key: int) -> str:
    """Return the condition that finds the target row of a key."""
    if database.url.startswith("sqlite"):
        return f"json_extract(payload, '$.original_id') = {key}"
    return f"(payload ->> 'original_id')::int = {key}"


def doubling(database: Any, key: int) -> str:
    """Return the statement that doubles the row of a key."""
    select = "SELECT contact_id, type, status, payload, created_at FROM interactions"
    return f"{COPY}{select} WHERE {where(database, key)};"


async def copied(database: Any, *, seed: int, rows: int = ROWS) -> Legacy:
    """Copy ordinary rows, and return them."""
    legacy = generate(rows=rows, seed=seed, odd=0)
    await database.load(legacy)
    await migrate(database.url, SPEC)
    return legacy


async def notice(database: Any) -> None:
    """Verify again, which finds a difference."""
    migration = Migration(SPEC, name=NAME, url=parse_url(database.url), sink=Recorder(), stop=asyncio.Event())
    with pytest.raises(MigrationError) as failure:
        await migration.verify()
    assert failure.value.reason == "VerificationFailed"


def comparison(report: MigrationReport) -> StepVerification:
    """Return the last comparison of the copy."""
    found = report.steps[1].verification
    assert found is not None
    return found


async def test_lost_changed_and_doubled_rows_are_made_right_where_they_stand(database: Any) -> None:
    legacy = await copied(database, seed=80)
    numbers = "SELECT id FROM interactions ORDER BY id"
    before = await database.rows(numbers)
    [(lost,)] = await database.rows(f"SELECT id FROM interactions WHERE {where(database, 30)}")
    await database.execute(
        f"DELETE FROM interactions WHERE {where(database, 30)};"
        f"UPDATE interactions SET status = 'failed' WHERE {where(database, 900)};"
        f"{doubling(database, 33)}{doubling(database, 2_100)}"
    )
    await notice(database)

    phase, report = await migrate(database.url, REPAIRING)

    found = comparison(report)
    assert (phase, found.result, found.different_ranges, found.repaired) == ("Complete", "Equal", 0, 4)
    assert {(each.key, each.kind) for each in found.repairs} == {
        ("30", "Missing"),
        ("33", "Doubled"),
        ("900", "Changed"),
        ("2100", "Doubled"),
    }
    assert found.repairs[0].range == "id 3..498"
    assert await database.interactions() == expected_multiset(expect(legacy), step_start=None)
    after = {number for (number,) in await database.rows(numbers)}
    assert {number for (number,) in before} - after == {lost}
    assert report.progress.rows_copied == ROWS


async def test_without_repair_it_stops_and_with_it_the_same_migration_goes_on(database: Any) -> None:
    legacy = generate(rows=ROWS, seed=81, odd=0)
    await database.load(legacy)
    target = where(database, 300).replace("payload", "new.payload")
    # The copy's inserts are meddled with; the repair's update is not.
    if database.url.startswith("sqlite"):
        await database.execute(
            f"CREATE TRIGGER meddle AFTER INSERT ON interactions WHEN {target} "
            "BEGIN UPDATE interactions SET status = 'failed' WHERE id = new.id; END"
        )
    else:
        await database.execute(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {target} THEN new.status := 'failed'; END IF; RETURN new; END $$;"
            "CREATE TRIGGER meddle BEFORE INSERT ON interactions FOR EACH ROW EXECUTE FUNCTION meddle()"
        )
    with pytest.raises(MigrationError, match=r"verification\.repair") as failure:
        await migrate(database.url, SPEC)
    assert (failure.value.reason, failure.value.key) == ("VerificationFailed", "300")

    phase, report = await migrate(database.url, REPAIRING)

    assert (phase, comparison(report).repaired) == ("Complete", 1)
    assert await database.interactions() == expected_multiset(expect(legacy), step_start=None)


async def test_a_damage_that_comes_back_fails_and_repeats_nothing_for_ever(database: Any) -> None:
    await copied(database, seed=82)
    target = where(database, 300)
    if database.url.startswith("sqlite"):
        await database.execute(
            "CREATE TRIGGER meddle AFTER UPDATE OF status ON interactions WHEN new.status <> 'failed' "
            "BEGIN UPDATE interactions SET status = 'failed' WHERE id = new.id; END"
        )
    else:
        await database.execute(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN new.status := 'failed'; RETURN new; END $$;"
            "CREATE TRIGGER meddle BEFORE UPDATE ON interactions FOR EACH ROW EXECUTE FUNCTION meddle()"
        )
    await database.execute(f"UPDATE interactions SET status = 'failed' WHERE {target}")
    await notice(database)
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, REPAIRING)
    assert (failure.value.reason, failure.value.retry, failure.value.key) == ("VerificationFailed", "Never", "300")


async def test_what_the_copy_did_not_write_is_never_touched(database: Any) -> None:
    legacy = generate(rows=ROWS, seed=83, odd=0)
    await database.load(legacy)
    payload = json.dumps({"migrated_from": "birthday_messages", "original_id": 30})
    # An earlier tool's row, with other content than ours; and one whose source row will be gone.
    await database.execute(f"{COPY}VALUES (1, 'birthday_sent', 'odd', '{payload}', '2020-01-01 00:00:00')")
    spec = sample_spec().to_wire()
    spec["steps"][1]["consolidate"]["existingContent"] = "Verify"
    with pytest.raises(MigrationError):
        await migrate(database.url, sample_spec(steps=spec["steps"], verification={"rangeSize": 500}))
    await database.execute(
        "DELETE FROM birthday_messages WHERE id = 900;"
        f"UPDATE interactions SET status = 'x' WHERE {where(database, 600)}"
    )
    before = await database.rows(f"SELECT * FROM interactions WHERE {where(database, 30)} OR {where(database, 900)}")

    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, sample_spec(steps=spec["steps"], verification={"rangeSize": 500, "repair": True}))

    assert failure.value.reason == "VerificationFailed"
    assert before == await database.rows(
        f"SELECT * FROM interactions WHERE {where(database, 30)} OR {where(database, 900)}"
    )
    [(status,)] = await database.rows(f"SELECT status FROM interactions WHERE {where(database, 600)}")
    assert status == "success"
    [(stored,)] = await database.rows(
        "SELECT verification FROM shipkeeper_migration_steps WHERE step = 'birthday-messages'"
    )
    found = StepVerification.model_validate_json(stored)
    assert {(each.key, each.kind) for each in found.differences} == {("30", "Changed"), ("900", "Extra")}
    assert [each.key for each in found.repairs] == ["600"]


@pytest.mark.parametrize("action", ["NO ACTION", "CASCADE"])
async def test_of_a_doubled_row_the_referenced_one_stays(database: Any, action: str) -> None:
    legacy = await copied(database, seed=84)
    await database.execute(
        "CREATE TABLE replies (id integer PRIMARY KEY, interaction_id integer NOT NULL "
        f"REFERENCES interactions (id) ON DELETE {action});"
        f"{doubling(database, 30)}"
        f"INSERT INTO replies SELECT 1, max(id) FROM interactions WHERE {where(database, 30)}"
    )
    await notice(database)
    phase, _ = await migrate(database.url, REPAIRING)
    assert phase == "Complete"
    assert await database.rows("SELECT count(*) FROM replies") == [(1,)]
    assert await database.interactions() == expected_multiset(expect(legacy), step_start=None)

    await database.execute(
        f"{doubling(database, 30)}INSERT INTO replies SELECT 2, max(id) FROM interactions WHERE {where(database, 30)}"
    )
    await notice(database)
    with pytest.raises(MigrationError, match="key 30 stands more than once") as failure:
        await migrate(database.url, REPAIRING)
    assert (failure.value.reason, failure.value.key) == ("RowReferenced", "30")
    assert await database.rows("SELECT count(*) FROM replies") == [(2,)]


async def test_composite_text_keys_are_repaired(database: Any) -> None:
    await database.execute(
        "CREATE TABLE old (a integer NOT NULL, k varchar(20) NOT NULL, v text, PRIMARY KEY (a, k));"
        "CREATE TABLE new (a integer, k varchar(20), v text NOT NULL);"
    )
    rows = ", ".join(f"({n % 7}, 'k{n}', 'v{n}')" for n in range(1_000))
    await database.execute(f"INSERT INTO old VALUES {rows}")
    consolidate = {
        "source": "old",
        "target": "new",
        "key": ["k", "a"],
        "identity": [{"column": "a", "source": "a"}, {"column": "k", "source": "k"}],
        "columns": [{"name": name, "column": name} for name in ("a", "k", "v")],
    }
    steps = [{"name": "copy", "consolidate": consolidate}]
    await migrate(database.url, sample_spec(steps=steps, verification={"rangeSize": 100}))
    await database.execute(
        "UPDATE new SET v = 'x' WHERE a = 3 AND k = 'k10'; DELETE FROM new WHERE a = 1;"
        "INSERT INTO new SELECT * FROM new WHERE a = 5"
    )
    spec = sample_spec(steps=steps, verification={"rangeSize": 100})
    migration = Migration(spec, name=NAME, url=parse_url(database.url), sink=Recorder(), stop=asyncio.Event())
    with pytest.raises(MigrationError):
        await migration.verify()
    phase, _ = await migrate(database.url, sample_spec(steps=steps, verification={"rangeSize": 100, "repair": True}))
    assert phase == "Complete"
    assert sorted(await database.rows("SELECT a, k, v FROM new")) == sorted(await database.rows("SELECT * FROM old"))


async def test_sigkill_at_random_points_of_a_repair(postgresql: Any, tmp_path: Path) -> None:
    legacy = await copied(postgresql, seed=85, rows=6_000)
    await postgresql.execute(
        "UPDATE interactions SET status = 'lost' WHERE id % 3 = 0; DELETE FROM interactions WHERE id % 7 = 0"
    )
    await notice(postgresql)
    await postgresql.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.0005); RETURN new; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON interactions FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    chance = random.Random(8)
    for _ in range(4):
        worker = start_worker(postgresql.url, REPAIRING, tmp_path)
        with contextlib.suppress(Exception):
            await asyncio.to_thread(worker.wait, chance.uniform(0.9, 2.0))
        worker.kill()
        worker.communicate()
    phase, report = await migrate(postgresql.url, REPAIRING)
    assert phase == "Complete"
    assert await postgresql.interactions() == expected_multiset(expect(legacy), step_start=None)
    damaged = sum(1 for number in range(1, 6_001) if number % 3 == 0 or number % 7 == 0)
    assert comparison(report).repaired == damaged
