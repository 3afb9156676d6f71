"""Backfills: rows set once each, in batches, whatever the key, while others write, and through kills of the worker."""

import asyncio
import random
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from shipkeeper.migrations.database import parse_url
from shipkeeper.migrations.engine import Migration
from shipkeeper.migrations.errors import MigrationError
from shipkeeper.resources.migrationjob import MigrationJobSpec
from shipkeeper.resources.migrationjob_status import MigrationReport
from support.birthday_data import generate
from support.migration_databases import NAME, Recorder, migrate, sample_spec
from support.migration_process import killed_in_the_middle

pytestmark = pytest.mark.integration

BATCH = {"initialSize": 100, "minSize": 100, "maxSize": 100}
FILL = {
    "table": "people",
    "key": ["id"],
    # `times` tells a row that was set twice from one that was set once.
    "assignments": [
        {"name": "email", "expression": "lower(name) || '@example.com'"},
        {"name": "times", "expression": "times + 1"},
    ],
    "where": "email IS NULL",
}
COUNTS = (
    "SELECT count(*), sum(CASE WHEN email = lower(name) || '@example.com' THEN 1 ELSE 0 END), max(times) FROM people"
)


def spec(fill: dict[str, Any] = FILL, **changes: Any) -> MigrationJobSpec:
    """Return a spec that only has this backfill."""
    return sample_spec(**({"steps": [{"name": "fill", "backfill": fill}], "batch": BATCH} | changes))


async def people(database: Any, rows: int, *, key: str = "integer") -> None:
    """Create the table `people` with so many rows that need an email."""
    await database.execute(
        f"CREATE TABLE people (id {key} PRIMARY KEY, name text NOT NULL, email text, times integer NOT NULL DEFAULT 0)"
    )
    await insert(database, [(str(number), f"Person {number}") for number in range(1, rows + 1)])


async def insert(database: Any, rows: list[tuple[str, str]]) -> None:
    """Insert people by id and name."""
    for first in range(0, len(rows), 500):
        values = ", ".join(f"('{key}', '{name}')" for key, name in rows[first : first + 500])
        await database.execute(f"INSERT INTO people (id, name) VALUES {values}")


async def test_rows_that_need_it_are_set_once(database: Any) -> None:
    await people(database, 1_050)
    await database.execute("UPDATE people SET email = 'own@example.com' WHERE id <= 40")
    phase, report = await migrate(database.url, spec())
    assert phase == "Complete"
    assert await database.rows("SELECT count(*), max(times) FROM people WHERE email <> 'own@example.com'") == [
        (1_010, 1)
    ]
    assert await database.rows("SELECT count(*) FROM people WHERE times = 0") == [(40,)]
    step = report.steps[0]
    assert (step.rows_total, step.rows_copied, step.rows_existing, step.rows_rejected) == (1_010, 1_010, 0, 0)
    assert step.batches == 11
    assert (report.progress.percent, report.progress.display) == (100, "100% (1010/1010)")
    assert step.verification is not None
    assert (step.verification.result, step.verification.rows) == ("Equal", 1_050)
    assert report.indexes == ()


async def test_the_plan_shows_statement_rows_and_estimate_and_changes_nothing(database: Any) -> None:
    await people(database, 500)
    phase, report = await migrate(database.url, spec(mode="Plan"))
    assert phase == "Planned"
    assert report.plan is not None
    [step] = report.plan.steps
    assert step.rows == 500
    assert not step.destructive
    assert """UPDATE "people" SET "email" = (lower(name) || '@example.com')""" in step.sql[0]
    assert step.trial_rows_per_second is not None
    assert step.estimated_seconds is not None
    assert await database.rows("SELECT count(*) FROM people WHERE times > 0") == [(0,)]


async def test_nothing_to_do(database: Any) -> None:
    await people(database, 0)
    phase, report = await migrate(database.url, spec())
    assert phase == "Complete"
    assert report.steps[0].rows_total == 0


async def test_a_second_revision_finds_nothing_to_do(database: Any) -> None:
    await people(database, 300)
    await migrate(database.url, spec())
    _, report = await migrate(database.url, spec(revision=2))
    assert report.steps[0].rows_copied == 0
    assert await database.rows(COUNTS) == [(300, 300, 1)]


@pytest.mark.parametrize("kind", ["uuid", "text"])
async def test_keys_of_other_types(database: Any, kind: str) -> None:
    await people(database, 0, key=kind)
    chance = random.Random(7)
    if kind == "uuid":
        keys = [str(uuid.UUID(int=chance.getrandbits(128))) for _ in range(730)]
    else:
        keys = [f"{prefix}{number}" for number in range(243) for prefix in ("é", "A-", "a ")]
    await insert(database, [(key, f"Person {key}") for key in keys])
    phase, report = await migrate(database.url, spec())
    assert phase == "Complete"
    assert report.steps[0].rows_copied == len(keys)
    assert await database.rows("SELECT count(*), min(times), max(times) FROM people WHERE email IS NOT NULL") == [
        (len(keys), 1, 1)
    ]


async def test_composite_key(database: Any) -> None:
    await database.execute(
        "CREATE TABLE lines (bill integer NOT NULL, step text NOT NULL, cents integer, total integer, "
        "PRIMARY KEY (bill, step))"
    )
    values = ", ".join(f"({bill}, 's{line}', {line})" for bill in range(40) for line in range(20))
    await database.execute(f"INSERT INTO lines (bill, step, cents) VALUES {values}")
    # A row that cannot be set: its key column is called as a column of the reject table is.
    await database.execute("UPDATE lines SET cents = NULL WHERE bill = 7 AND step = 's3'")
    fill = {
        "table": "lines",
        "key": ["bill", "step"],
        "assignments": [{"name": "total", "expression": "lines.cents * 2"}],
        "where": "total IS NULL",
    }
    phase, report = await migrate(database.url, spec(fill))
    assert phase == "Complete"
    assert report.steps[0].rows_copied == 799
    assert [(each.key, each.reason) for each in report.rejects] == [
        ("7, s3", "backfill.where still selects the row after its columns were set")
    ]
    assert await database.rows("SELECT count(*) FROM lines WHERE total = cents * 2") == [(799,)]


async def test_a_row_that_the_database_refuses_is_rejected_and_left_as_it_was(database: Any) -> None:
    await people(database, 450)
    await database.execute("CREATE UNIQUE INDEX one_email ON people (email)")
    await database.execute("UPDATE people SET name = 'Person 77' WHERE id = 301")
    phase, report = await migrate(database.url, spec())
    assert phase == "Complete"
    step = report.steps[0]
    assert (step.rows_total, step.rows_copied, step.rows_rejected) == (450, 449, 1)
    assert report.rejects[0].key == "301"
    assert "one_email" in report.rejects[0].reason or "UNIQUE" in report.rejects[0].reason
    assert await database.rows("SELECT email, times FROM people WHERE id = 301") == [(None, 0)]


async def test_rejected_rows_are_tried_again_after_a_fix(database: Any) -> None:
    await people(database, 450)
    await database.execute("CREATE UNIQUE INDEX one_email ON people (email)")
    await database.execute("UPDATE people SET name = 'Person 77' WHERE id IN (301, 302)")
    _, report = await migrate(database.url, spec())
    assert report.steps[0].rows_rejected == 2
    await database.execute("UPDATE people SET name = 'Person 301' WHERE id = 301")
    phase, report = await migrate(database.url, spec(rejects={"retry": 1}))
    assert phase == "Complete"
    step = report.steps[0]
    assert (step.rows_total, step.rows_copied, step.rows_existing, step.rows_rejected) == (450, 449, 0, 1)
    assert [each.key for each in report.rejects] == ["302"]
    await database.execute("UPDATE people SET name = 'Person 302' WHERE id = 302")
    _, again = await migrate(database.url, spec(rejects={"retry": 1}))
    assert again.steps[0].rows_rejected == 1  # Each number is one try.
    _, last = await migrate(database.url, spec(rejects={"retry": 2}))
    assert (last.steps[0].rows_copied, last.steps[0].rows_rejected) == (450, 0)
    assert await database.rows(COUNTS) == [(450, 450, 1)]


async def test_too_many_rows_that_cannot_be_set(database: Any) -> None:
    await people(database, 200)
    fill = FILL | {"assignments": [{"name": "email", "expression": "nullif(name, name)"}]}
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, spec(fill, rejects={"max": 10}))
    assert (failure.value.reason, failure.value.retry) == ("TooManyRejects", "Never")
    assert await database.rows("SELECT count(*) FROM people WHERE email IS NULL AND times = 0") == [(200,)]


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no such table": ({"table": "persons"}, "TableMissing", "persons"),
    "no such column": ({"assignments": [{"name": "mail", "expression": "1"}]}, "ColumnMissing", "mail"),
    "no such column in where": ({"where": "mail IS NULL"}, "ColumnMissing", "mail"),
    "key not unique": ({"key": ["name"]}, "KeyNotUnique", "backfill.key"),
    "no SQL": ({"where": "email IS"}, "StatementFailed", ""),
    "no expression": ({"assignments": [{"name": "email", "expression": "lower("}]}, "StatementFailed", ""),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_is_wrong_is_named_before_anything_begins(database: Any, wrong: str) -> None:
    await people(database, 0)  # No row meets the expression, and yet it is found out.
    change, reason, named = WRONG[wrong]
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, spec(FILL | change))
    assert failure.value.reason == reason
    assert named in failure.value.message
    assert "step fill" in failure.value.message or "backfill.key" in failure.value.message
    assert failure.value.retry == "WhenMended"


async def test_the_documented_example_works(postgresql: Any) -> None:
    await postgresql.load(generate(rows=10, seed=1))
    text = (Path(__file__).parents[3] / "docs" / "migrations.md").read_text()
    section = text.partition("### Backfill")[2]
    steps = yaml.safe_load(section.partition("```yaml")[2].partition("```")[0])
    phase, report = await migrate(postgresql.url, sample_spec(steps=steps))
    assert phase == "Complete"
    assert report.steps[1].rows_copied > 0
    column = "SELECT convalidated FROM pg_constraint WHERE conname = 'profile_host_there'"
    assert await postgresql.rows(column) == [(True,)]


async def test_sigkill_at_random_points(database: Any, tmp_path: Path) -> None:
    rows, kills = 30_000, 0
    await people(database, rows)
    done = "SELECT count(*) FROM people WHERE times = 1"
    for pause in (0.0, 0.02, 0.15, 0.05, 0.3):
        if await killed_in_the_middle(database, spec(), tmp_path, progress=done, pause=pause):
            kills += 1
            [(written,)] = await database.rows(done)
            [(counted,)] = await database.rows("SELECT rows_copied FROM shipkeeper_migration_steps")
            assert 0 < counted == written
    assert kills > 2
    phase, report = await migrate(database.url, spec())
    assert phase == "Complete"
    assert await database.rows(COUNTS) == [(rows, rows, 1)]
    assert report.steps[0].rows_copied == rows


async def test_the_application_writes_all_the_while(postgresql: Any, postgres: Any) -> None:
    rows = 12_000
    await people(postgresql, rows, key="text")
    writing = asyncio.create_task(_write(postgresql, postgres, rows))
    phase, report = await migrate(postgresql.url, spec())
    writing.cancel()
    written = await asyncio.gather(writing, return_exceptions=True)
    assert isinstance(written[0], asyncio.CancelledError)
    assert phase == "Complete"
    step = report.steps[0]
    assert step.rows_total == step.rows_copied + step.rows_existing
    # Each row was set at most once by the migration, and what the application set itself stayed.
    assert await postgresql.rows("SELECT max(times) FROM people") == [(1,)]
    assert await postgresql.rows("SELECT count(*) FROM people WHERE email = 'app@example.com' AND times > 0") == [(0,)]
    [(touched,)] = await postgresql.rows("SELECT count(*) FROM people WHERE name = 'Changed'")
    assert touched > 50
    left = await postgresql.rows("SELECT count(*) FROM people WHERE email IS NULL AND id NOT LIKE 'late-%'")
    assert left == [(0,)]


async def _write(database: Any, postgres: Any, rows: int) -> None:
    """Rename, set, remove and add rows, as fast as one client can."""
    connection = await postgres.connect(database.url.rpartition("/")[2])
    chance = random.Random(8)
    try:
        for number in range(1_000_000):
            key = str(chance.randint(1, rows))
            match number % 4:
                case 0:
                    await connection.execute("UPDATE people SET name = 'Changed' WHERE id = $1", key)
                case 1:
                    await connection.execute(
                        "UPDATE people SET email = 'app@example.com' WHERE id = $1 AND email IS NULL", key
                    )
                case 2:
                    await connection.execute("DELETE FROM people WHERE id = $1", key)
                case 3:
                    await connection.execute(
                        "INSERT INTO people (id, name, email) VALUES ($1, 'New', 'app@example.com')", f"late-{number}"
                    )
    finally:
        await connection.close()


async def test_rows_added_behind_the_cursor_are_taken_by_another_pass(postgresql: Any) -> None:
    await people(postgresql, 1_000)
    # The first batch adds rows below the cursor, as an application with random keys does.
    await postgresql.execute(
        "CREATE FUNCTION add_behind() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.id = 500 THEN INSERT INTO people (id, name) SELECT -n, 'Late' FROM generate_series(1, 250) n; END IF; "
        "RETURN NEW; END $$"
    )
    await postgresql.execute(
        "CREATE TRIGGER add_behind AFTER UPDATE ON people FOR EACH ROW EXECUTE FUNCTION add_behind()"
    )
    phase, report = await migrate(postgresql.url, spec())
    assert phase == "Complete"
    assert report.steps[0].rows_copied == report.steps[0].rows_total == 1_250
    assert await postgresql.rows("SELECT count(*), max(times) FROM people WHERE email IS NOT NULL") == [(1_250, 1)]


async def test_rows_that_keep_coming_are_named_and_it_goes_on_once_they_stop(postgresql: Any) -> None:
    await people(postgresql, 300)
    await postgresql.execute(
        "CREATE FUNCTION add_more() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO people (id, name) SELECT min(id) - 1, 'Late' FROM people; RETURN NULL; END $$"
    )
    await postgresql.execute(
        "CREATE TRIGGER add_more AFTER UPDATE ON people FOR EACH STATEMENT EXECUTE FUNCTION add_more()"
    )
    with pytest.raises(MigrationError) as failure:
        await migrate(postgresql.url, spec())
    assert (failure.value.reason, failure.value.retry) == ("BackfillRowsRemain", "WhenMended")
    await postgresql.execute("DROP TRIGGER add_more ON people")
    phase, report = await migrate(postgresql.url, spec())
    assert phase == "Complete"
    assert report.steps[0].verification is not None
    assert report.steps[0].verification.result == "Equal"
    assert await postgresql.rows("SELECT count(*) FROM people WHERE email IS NULL") == [(0,)]


async def test_a_locked_row_is_waited_for_and_not_for_long(postgresql: Any) -> None:
    await people(postgresql, 300)
    held = spec(locks={"tableTimeout": "100ms", "attempts": 2})
    async with postgresql.connection.transaction():
        await postgresql.execute("UPDATE people SET name = 'Held' WHERE id = 150")
        running = asyncio.create_task(migrate(postgresql.url, held))
        # The first batch is through; the one with the locked row tries again and again.
        await asyncio.sleep(1.5)
        assert not running.done()
    phase, _ = await running
    assert phase == "Complete"
    assert await postgresql.rows("SELECT email FROM people WHERE id = 150") == [("held@example.com",)]


async def test_verify_once_more(database: Any) -> None:
    await people(database, 200)
    await migrate(database.url, spec())
    assert (await _verify(database))[1] is None
    await database.execute("UPDATE people SET email = NULL WHERE id IN (40, 60)")
    report, failure = await _verify(database)
    assert failure is not None
    assert failure.reason == "BackfillRowsRemain"
    found = report.steps[0].verification
    assert found is not None
    assert [(each.key, each.kind) for each in found.differences] == [("40", "Unset"), ("60", "Unset")]


async def _verify(database: Any) -> tuple[MigrationReport, MigrationError | None]:
    recorder = Recorder()
    migration = Migration(spec(), name=NAME, url=parse_url(database.url), sink=recorder, stop=asyncio.Event())
    try:
        return await migration.verify(), None
    except MigrationError as error:
        return recorder.last, error


async def test_stop_ends_after_the_batch_and_it_goes_on_from_there(database: Any) -> None:
    await people(database, 5_000)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.25, stop.set)
    phase, report = await migrate(database.url, spec(), stop=stop)
    assert phase == "Interrupted"
    assert report.progress.rows_copied < 5_000
    phase, report = await migrate(database.url, spec())
    assert phase == "Complete"
    assert report.steps[0].rows_copied == 5_000
    assert await database.rows(COUNTS) == [(5_000, 5_000, 1)]
