"""The step `sql`: run exactly once behind its guard, bounded in time, undone whole where it fails."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shipkeeper.migrations.errors import MigrationError
from shipkeeper.resources.migrationjob import MigrationJobSpec
from support.migration_databases import migrate, sample_spec
from support.migration_process import killed_in_the_middle, start_worker

pytestmark = pytest.mark.integration

PEOPLE = "CREATE TABLE people (id integer PRIMARY KEY, name text, email text)"
# It counts how often it ran; the guard holds as soon as it ran at all.
COUNT = {
    "statement": "INSERT INTO runs (step) VALUES ('count')",
    "unless": "SELECT 1 FROM runs WHERE step = 'count'",
}


def spec(*steps: dict[str, Any], **changes: Any) -> MigrationJobSpec:
    """Return a spec with these steps; those without a name are statements."""
    named = [step if "name" in step else {"name": f"sql-{number}", "sql": step} for number, step in enumerate(steps)]
    return sample_spec(**({"steps": named} | changes))


async def runs(database: Any, rows: int = 0) -> None:
    """Create the tables that the statements write to."""
    await database.execute("CREATE TABLE runs (step text)")
    await database.execute(PEOPLE)
    for number in range(rows):
        await database.execute(f"INSERT INTO people VALUES ({number}, 'Person {number}', NULL)")


async def refused(database: Any, step: dict[str, Any], **changes: Any) -> MigrationError:
    """Run one statement and return how it failed."""
    with pytest.raises(MigrationError) as failure:
        await migrate(database.url, spec(step, **changes))
    return failure.value


async def test_it_runs_once(database: Any) -> None:
    await runs(database)
    phase, report = await migrate(database.url, spec(COUNT))
    assert phase == "Complete"
    assert report.steps[0].state == "Done"
    await migrate(database.url, spec(COUNT))
    await migrate(database.url, spec(COUNT, revision=2))
    assert await database.rows("SELECT count(*) FROM runs") == [(1,)]


async def test_it_is_skipped_where_the_guard_says_it_is_done(database: Any) -> None:
    await runs(database)
    await database.execute("INSERT INTO runs VALUES ('count')")
    _, planned = await migrate(database.url, spec(COUNT, mode="Plan"))
    assert planned.plan is not None
    assert (planned.plan.steps[0].action, planned.plan.steps[0].sql) == ("nothing: unless gives a row", ())
    phase, _ = await migrate(database.url, spec(COUNT))
    assert phase == "Complete"
    assert await database.rows("SELECT count(*) FROM runs") == [(1,)]


async def test_the_plan_shows_it_word_for_word_and_changes_nothing(database: Any) -> None:
    await runs(database)
    drop = {"statement": "DROP TABLE people  -- at last", "unless": GONE[database.url.startswith("sqlite")]}
    _, report = await migrate(database.url, spec(COUNT, drop, mode="Plan"))
    assert report.plan is not None
    first, second = report.plan.steps
    assert (first.sql, first.destructive) == ((COUNT["statement"],), False)
    assert COUNT["unless"] in first.action
    assert (second.sql, second.destructive) == ((drop["statement"],), True)
    assert await database.rows("SELECT count(*) FROM runs") == [(0,)]
    harmless = await migrate(database.url, spec(COUNT, mode="Plan"))
    assert harmless[1].plan is not None
    assert harmless[1].plan.hash != report.plan.hash


GONE = {
    False: "SELECT 1 WHERE to_regclass('people') IS NULL",
    True: "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'people')",
}


async def test_a_declared_destructive_statement_waits_for_its_approval(database: Any) -> None:
    await runs(database, rows=3)
    change = {"statement": "UPDATE people SET name = ''", "unless": "SELECT 1 FROM people WHERE name = ''"}
    step = change | {"destructive": True}
    phase, report = await migrate(database.url, spec(step, approval={"mode": "Manual"}))
    assert phase == "AwaitingApproval"
    assert report.plan is not None
    assert report.plan.steps[0].destructive
    assert await database.rows("SELECT count(*) FROM people WHERE name = ''") == [(0,)]
    approval = {"mode": "Manual", "planHash": report.plan.hash}
    phase, _ = await migrate(database.url, spec(step, approval=approval))
    assert phase == "Complete"
    assert await database.rows("SELECT count(*) FROM people WHERE name = ''") == [(3,)]


async def test_expand_fill_contract(postgresql: Any) -> None:
    """The usual way to a column that may not be null: steps that need what a statement before them creates."""
    await runs(postgresql, rows=25)
    column = "SELECT 1 FROM information_schema.columns WHERE table_name = 'people' AND column_name = 'short'"
    check = "SELECT 1 FROM pg_constraint WHERE conname = 'short_there'"
    steps = (
        {"name": "add", "sql": {"statement": "ALTER TABLE people ADD COLUMN short text", "unless": column}},
        {
            "name": "fill",
            "backfill": {
                "table": "people",
                "key": ["id"],
                "assignments": [{"name": "short", "expression": "left(name, 8)"}],
                "where": "short IS NULL",
            },
        },
        {
            "name": "check",
            "sql": {
                "statement": "ALTER TABLE people ADD CONSTRAINT short_there CHECK (short IS NOT NULL) NOT VALID",
                "unless": check,
            },
        },
        {
            "name": "validate",
            "sql": {
                "statement": "ALTER TABLE people VALIDATE CONSTRAINT short_there",
                "unless": f"{check} AND convalidated",
            },
        },
        {
            "name": "index",
            "createIndexes": {"indexes": [{"name": "i", "table": "people", "keys": [{"column": "short"}]}]},
        },
    )
    _, planned = await migrate(postgresql.url, spec(*steps, mode="Plan"))
    assert planned.plan is not None
    actions = [step.action for step in planned.plan.steps]
    assert actions[1].startswith(
        "looked at when step add has run; before it: step fill, assignments: table people has no"
    )
    assert actions[4].startswith("looked at when step validate has run")
    phase, report = await migrate(postgresql.url, spec(*steps))
    assert phase == "Complete"
    assert [step.state for step in report.steps] == ["Done"] * 5
    assert await postgresql.rows("SELECT count(*) FROM people WHERE short = left(name, 8)") == [(25,)]


async def test_a_statement_that_leaves_its_guard_unsatisfied_is_undone(database: Any) -> None:
    await runs(database)
    failure = await refused(database, COUNT | {"unless": "SELECT 1 FROM runs WHERE step = 'other'"})
    assert (failure.reason, failure.retry) == ("GuardNotSatisfied", "Never")
    assert await database.rows("SELECT count(*) FROM runs") == [(0,)]


FAILURES = {
    "no table": ({"statement": "INSERT INTO missing VALUES (1)"}, "TableMissing", "42P01", "statement"),
    "no SQL": ({"statement": "INSERT nothing"}, "StatementFailed", "42601", "statement"),
    "constraint": ({"statement": "INSERT INTO people VALUES (1)"}, "StatementFailed", "23505", "statement"),
    "no table in the guard": ({"unless": "SELECT 1 FROM missing"}, "TableMissing", "42P01", "unless"),
}


@pytest.mark.parametrize("what", FAILURES)
async def test_a_failing_statement_is_named_and_not_tried_again_at_once(database: Any, what: str) -> None:
    await runs(database, rows=2)
    change, reason, state, field = FAILURES[what]
    failure = await refused(database, COUNT | change)
    assert (failure.reason, failure.retry) == (reason, "WhenMended")
    assert f"step sql-0, sql.{field}: " in failure.message
    assert failure.sql_state == (state if database.url.startswith("postgresql") else None)
    assert await database.rows("SELECT count(*) FROM runs") == [(0,)]


async def test_it_goes_on_once_the_cause_is_mended(database: Any) -> None:
    await runs(database)
    step = {"statement": "INSERT INTO later VALUES (1)", "unless": "SELECT 1 FROM runs WHERE step = 'x'"}
    mark = {"statement": "INSERT INTO runs VALUES ('x')", "unless": step["unless"]}
    changes = {
        "steps": [{"name": "one", "sql": step | {"unless": "SELECT 1 FROM later"}}, {"name": "two", "sql": mark}]
    }
    with pytest.raises(MigrationError):
        await migrate(database.url, sample_spec(**changes))
    await database.execute("CREATE TABLE later (a integer)")
    phase, _ = await migrate(database.url, sample_spec(**changes))
    assert phase == "Complete"
    assert await database.rows("SELECT count(*) FROM later") == [(1,)]


@pytest.mark.parametrize(
    "step",
    [
        {"statement": "VACUUM people"},
        {"statement": "COMMIT"},
        {"statement": "INSERT INTO runs VALUES ('a'); INSERT INTO runs VALUES ('b')"},
        {"unless": "SELECT count(*) FROM runs"},
        {"unless": "DELETE FROM runs RETURNING 1"},
    ],
)
async def test_what_cannot_be_run_exactly_once_is_refused_in_the_plan(database: Any, step: dict[str, Any]) -> None:
    await runs(database)
    failure = await refused(database, COUNT | step, mode="Plan")
    assert (failure.reason, failure.retry) == ("StatementRefused", "Never")


async def test_a_guard_cannot_write(postgresql: Any) -> None:
    await runs(postgresql)
    guard = "WITH a AS (INSERT INTO runs VALUES ('guard') RETURNING 1) SELECT * FROM a"
    assert (await refused(postgresql, COUNT | {"unless": guard})).reason == "StatementFailed"
    assert await postgresql.rows("SELECT count(*) FROM runs") == [(0,)]


async def test_what_the_server_will_not_run_in_a_transaction_is_refused_by_its_own_word(postgresql: Any) -> None:
    await runs(postgresql)
    statement = "CREATE SUBSCRIPTION s CONNECTION 'dbname=none' PUBLICATION p"
    failure = await refused(postgresql, COUNT | {"statement": statement})
    assert (failure.reason, failure.retry, failure.sql_state) == ("StatementRefused", "Never", "25001")


SLOW = {
    False: "INSERT INTO runs SELECT 'count' FROM pg_sleep(60)",
    True: "INSERT INTO runs WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT 'count' FROM n WHERE i < 0",
}


async def test_a_statement_that_takes_too_long_is_undone(database: Any) -> None:
    await runs(database)
    step = COUNT | {"statement": SLOW[database.url.startswith("sqlite")], "timeout": "400ms"}
    began = asyncio.get_running_loop().time()
    failure = await refused(database, step)
    assert asyncio.get_running_loop().time() - began < 20
    assert (failure.reason, failure.retry) == ("StatementTimeout", "WhenMended")
    assert await database.rows("SELECT count(*) FROM runs") == [(0,)]
    phase, _ = await migrate(database.url, spec(COUNT, revision=2))
    assert phase == "Complete"


async def test_it_waits_for_a_lock_only_so_long_and_lets_others_pass(postgresql: Any, postgres: Any) -> None:
    await runs(postgresql, rows=1)
    column = "SELECT 1 FROM information_schema.columns WHERE table_name = 'people' AND column_name = 'age'"
    step = {"statement": "ALTER TABLE people ADD COLUMN age integer", "unless": column}
    other = await postgres.connect(postgresql.url.rpartition("/")[2])
    async with postgresql.connection.transaction():
        await postgresql.rows("SELECT * FROM people")
        running = asyncio.create_task(
            migrate(postgresql.url, spec(step, locks={"tableTimeout": "200ms", "attempts": 20}))
        )
        await asyncio.sleep(1)
        # Queued behind ALTER TABLE, a reader waits as long as that does: not until this transaction ends.
        assert await asyncio.wait_for(other.fetch("SELECT count(*) FROM people"), timeout=15)
        assert not running.done()
    phase, _ = await running
    await other.close()
    assert phase == "Complete"


async def test_data_is_lost_only_after_verification(postgresql: Any) -> None:
    """A backfill that is done, but was since found undone, holds the statement up."""
    await runs(postgresql, rows=5)
    fill = {
        "name": "fill",
        "backfill": {
            "table": "people",
            "key": ["id"],
            "assignments": [{"name": "email", "expression": "name"}],
            "where": "email IS NULL",
        },
    }
    drop = {"name": "drop", "sql": {"statement": "ALTER TABLE people DROP name", "unless": NO_NAME}}
    await postgresql.execute("CREATE VIEW uses AS SELECT name FROM people")  # The first try fails here.
    with pytest.raises(MigrationError, match="other objects depend on it"):
        await migrate(postgresql.url, spec(fill, drop))
    await postgresql.execute("DROP VIEW uses")
    await postgresql.execute(
        "UPDATE shipkeeper_migration_steps SET verification = replace(verification, 'Equal', 'Different')"
    )
    with pytest.raises(MigrationError, match="only after fill is verified") as failure:
        await migrate(postgresql.url, spec(fill, drop))
    assert failure.value.reason == "NotVerified"
    assert await postgresql.rows("SELECT count(name) FROM people") == [(5,)]


NO_NAME = (
    "SELECT 1 WHERE NOT EXISTS "
    "(SELECT 1 FROM information_schema.columns WHERE table_name = 'people' AND column_name = 'name')"
)


async def test_sigkill_at_random_points(postgresql: Any, tmp_path: Path) -> None:
    """Each of many statements ran exactly once, wherever the worker was killed."""
    await runs(postgresql)
    steps = [
        {
            "statement": f"INSERT INTO runs SELECT 's{number}' FROM pg_sleep(0.05)",
            "unless": f"SELECT 1 FROM runs WHERE step = 's{number}'",
        }
        for number in range(30)
    ]
    kills = 0
    for pause in (0.0, 0.01, 0.06, 0.03, 0.1):
        kills += await killed_in_the_middle(
            postgresql, spec(*steps), tmp_path, progress="SELECT count(*) FROM runs", pause=pause
        )
    phase, _ = await migrate(postgresql.url, spec(*steps))
    assert phase == "Complete"
    assert kills > 1
    assert await postgresql.rows("SELECT count(*), count(DISTINCT step) FROM runs") == [(30, 30)]


async def test_two_workers_at_once(database: Any, tmp_path: Path) -> None:
    await runs(database)
    workers = [start_worker(database.url, spec(COUNT), tmp_path) for _ in range(2)]
    for worker in workers:
        out, errors = await asyncio.to_thread(worker.communicate, timeout=120)
        assert (worker.returncode, out.strip()) == (0, "Complete"), errors
    assert await database.rows("SELECT count(*) FROM runs") == [(1,)]
